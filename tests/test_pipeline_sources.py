"""A changed module changes the keys of what it makes, and of nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from compile import pipeline as compile_pipeline
from compile.backend import Job, Source, read_source
from configs.errors import ConfigError
from configs.load import load_target
from configs.schema import TASK_COMPONENTS, Task
from export import pipeline as export_pipeline
from export.checkpoint import inspect
from pipeline import sources as sources_module
from pipeline.command import select
from pipeline.manifest import key_of
from pipeline.sources import DECIDES_NOTHING, source_digest, sources
from pipeline.tpu_tools.process import MemoryBudget, VendorTools
from tests.test_house_imports import ALLOWED, files, imported, module_name
from verify import opened, plan
from verify.artifacts import TargetArtifacts
from verify.results import Kind

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "reference.yaml"
TASKS: tuple[Task, ...] = ("caption", "itm")
TARGETS = {
    "openvino": ("f16", "int8"),
    "openvino_npu": ("f16",),
    "bm1684": ("f32",),
    "bm1684x": ("f16", "int8"),
    "bm1688": ("f16",),
}
KINDS: tuple[Kind, ...] = ("component", "layers", "host", "file", "tokens")


@cache
def jobs() -> list[tuple[Job, Source]]:
    """Everything to compile, each with what is exported of it."""
    found = []
    for target, precisions in TARGETS.items():
        selection = select(
            CONFIG, task=",".join(TASKS), target=target, precision=",".join(precisions)
        )
        for job in compile_pipeline.jobs(selection):
            found.append((job, read_source(job.layout, job.task, job.component)))
    return found


def forget() -> None:
    cached = ("_digest", "_below", "_is_own", "_module")
    for function in (*(getattr(sources_module, name) for name in cached), opened.simulator_version):
        function.cache_clear()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the source tree, of which all digests are."""
    folder = tmp_path_factory.mktemp("tree")
    for package in ALLOWED:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=unwanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources_module, "REPOSITORY_ROOT", folder)
        # Checkpoints stay as they are.
        patch.setattr(export_pipeline, "inspect", cache(inspect))
        forget()
        yield folder
    forget()


@pytest.fixture(scope="module")
def before(tree: Path) -> dict[str, str]:  # noqa: ARG001 - makes it
    return keys()


def keys() -> dict[str, str]:
    """Keys of everything that the stages would make of two tasks, by stage and name."""
    forget()
    found = {}
    for task_plan in export_pipeline.plan(select(CONFIG, task=",".join(TASKS))):
        found[f"export {task_plan.task}"] = task_plan.task_item.key
        for item in task_plan.items:
            found[f"export {task_plan.task} {item.component}"] = key_of(item.key_inputs)
    backends = compile_pipeline.backends(MemoryBudget(1), VendorTools())
    for job, source in jobs():
        backend = backends[job.target.backend]
        inputs = backend.key_inputs(backend.plan(job, source))
        found[f"{job.target.name} {job.precision} {job.task} {job.component}"] = key_of(inputs)
    for kind in KINDS:
        for target in (None, "openvino", "bm1684x"):
            artifacts = TargetArtifacts(load_target(target) if target else None, "f16", {})
            decides = [plan.check_sources(kind, artifacts), plan._backend(artifacts)]
            found[f"verify {kind} {target or 'onnx'}"] = key_of({"decides": decides})
    found["report"] = source_digest("verify.page.page")
    return found


#: The text decoder of a chip's set of integers is none.
INTEGERS = ("openvino int8 * vision_encoder", "bm1684x int8 itm *", "bm1684x int8 * [!t]*")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("compile/bmodel/estimates/published.py", ()),
        ("compile/pipeline.py", ()),
        ("configs/schema.py", ()),
        ("pipeline/console.py", ()),
        ("runtime/cli/drawing.py", ()),
        ("verify/evaluation/console_table.py", ()),
        ("verify/bisect/diagnosis.py", ()),
        ("benchmarks/table.py", ()),
        ("verify/page/figures.py", ("report",)),
        ("verify/verdicts/merging.py", ("report",)),
        ("verify/verdicts/junit.py", ()),
        ("export/components/vision_encoder.py", ("export * vision_encoder",)),
        ("export/components/text_layers.py", ("export * text_*", "export * cross_key_values")),
        ("export/processor.py", ("export *",)),
        ("export/task_manifest.py", ("export caption", "export itm")),
        ("compile/ir/rewrites/stateful_cache.py", ("openvino * caption text_decoder",)),
        ("compile/ir/rewrites/merged_cross_key_values.py", ("openvino * caption vision_encoder",)),
        ("compile/ir/precision.py", ("openvino int8 *",)),
        ("compile/ir/static.py", ("openvino_npu *",)),
        ("compile/ir/backend.py", ("openvino *", "openvino_npu *")),
        ("compile/bmodel/rewrites/expand_attention_masks.py", ("bm1688 *",)),
        ("compile/bmodel/build.py", ("bm*",)),
        ("compile/bmodel/integers/search.py", INTEGERS[1:]),
        ("compile/graphs/static_graph.py", ("openvino*", "bm*")),
        ("pipeline/tpu_tools/command_lines.py", ("bm*",)),
        ("pipeline/scenes/drawing.py", ("export * *", *INTEGERS, "verify *", "report")),
        ("runtime/preprocessing/images.py", (*INTEGERS, "verify *")),
        ("runtime/generation/generate.py", ("verify host *", "verify tokens *")),
        ("runtime/sessions/openvino_session.py", ("verify * openvino",)),
        ("runtime/simulator/worker.py", ("verify * bm1684x",)),
        ("verify/host/search.py", ("verify host *",)),
        ("verify/layers/integer_ir.py", ("verify layers *",)),
        ("verify/answers/whole_answers.py", ("verify tokens *",)),
        ("verify/parity/components.py", ("verify component *",)),
        ("configs/tolerances.py", ("verify *", "report")),
    ],
)
@pytest.mark.usefixtures("exported_artifacts")
def test_a_comment_changes_what_its_module_makes(
    tree: Path, before: dict[str, str], file: str, expected: tuple[str, ...]
) -> None:
    content = (tree / file).read_text()
    (tree / file).write_text(f"{content}# a comment\n")
    after = keys()
    (tree / file).write_text(content)
    wanted = {name for name in before if any(fnmatch(name, pattern) for pattern in expected)}
    assert {name for name in before if before[name] != after[name]} == wanted
    assert all(any(fnmatch(name, pattern) for name in before) for pattern in expected)


@pytest.mark.parametrize("package", ALLOWED)
def test_every_import_is_found(package: str) -> None:
    """The scan takes import statements alone; a whole syntax tree says the same."""
    for path in files(package):
        found = sources_module._module(module_name(path)).imports
        wanted = {name for name in imported(path, types=False) if sources_module._is_own(name)}
        assert wanted <= set(found), path
        around = {name for name in found if any(one.startswith(f"{name}.") for one in found)}
        assert set(found) <= wanted | around, path


def test_modules_loaded_by_name_count_unless_named() -> None:
    every = sources("export.pipeline")
    assert {f"export.components.{name}" for name in TASK_COMPONENTS["itm"]} <= every
    chosen = sources("export.pipeline", by_name=["export.components.vision_encoder"])
    assert every - chosen == {
        "export.components.cross_key_values",
        "export.components.text_decoder",
        "export.components.text_encoder",
        "export.components.text_encoder_unimodal",
        "export.components.text_layers",
        "export.components.vision_projection",
    }
    assert "compile.bmodel.rewrites.argmax_head" in sources("compile.bmodel.prepare")


def test_what_decides_nothing_exists_and_is_left_out() -> None:
    for name, reason in DECIDES_NOTHING.items():
        assert sources(name), reason
    # What the package offers to its users is loaded by name.
    # A bundle has no key: it is made anew each time.
    keyed = [package for package in ALLOWED if package != "bundle"]
    direct = {path for package in keyed for path in files(package) if "runtime" in imported(path)}
    assert not direct
    assert not set(DECIDES_NOTHING) & sources("compile.bmodel.backend", "verify.pipeline")
    with pytest.raises(ConfigError, match=r"compile\.nothing: no module"):
        sources("compile.nothing")


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        ("component", ("verify.parity.components", "verify.parity.padding")),
        ("layers", ("verify.layers.checks", "verify.layers.chip_constants")),
        ("host", ("verify.host.check",)),
        ("file", ("verify.parity.combined",)),
        ("tokens", ("verify.answers.whole_answers", "verify.answers.quality")),
    ],
)
def test_a_check_leaves_nothing_out_that_it_imports(kind: Kind, modules: tuple[str, ...]) -> None:
    others = {name for name, kinds in plan._ONLY_FOR.items() if kind not in kinds}
    assert not {name for name in sources(*modules) for other in others if name.startswith(other)}
    assert all(sources(name) for name in (*plan._ONLY_FOR, *plan._RUNS))
