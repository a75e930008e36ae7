"""A dry run prints a script; run as it is, it makes what a build makes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from compile.backend import read_source
from compile.pipeline import backends, jobs
from pipeline.command import select
from pipeline.manifest import ComponentManifest, read_manifest
from pipeline.tpu_tools.process import MemoryBudget, VendorTools
from tests.compile_private import ROOT, PrivatePipeline, private_pipeline

MATCHING = ("vision_encoder", "text_encoder", "text_encoder_unimodal", "vision_projection")


@pytest.fixture
def decoder(exported_artifacts: Path, tmp_path: Path) -> PrivatePipeline:
    return private_pipeline(exported_artifacts, tmp_path, "caption", "text_decoder")


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def script(pipeline: PrivatePipeline, *arguments: str) -> str:
    """What a dry run prints; it writes nothing."""
    before = files(pipeline.folder)
    result = pipeline.run("--dry-run", *arguments)
    assert result.returncode == 0, result.stderr
    assert files(pipeline.folder) == before
    return result.stdout


def pasted(text: str) -> None:
    """Runs a script at the top of the checkout, in a shell with another Python's variables."""
    result = subprocess.run(
        ["/bin/bash", "-eu"],
        input=text,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr + result.stdout[-2000:]


def test_every_command_is_printed_once(decoder: PrivatePipeline) -> None:
    lines = script(decoder, "--component", "text_decoder").splitlines()
    # BM1684 and BM1684X have the same rewrites, and BM1688 one more, which before it is tried may
    # need its own graph of the two nets; three deploy both; two combine them.
    assert sum("compile prepare" in line for line in lines) == 2
    assert sum("model_transform.py" in line for line in lines) == 4
    assert sum("model_deploy.py" in line for line in lines) == 6
    assert sum("model_tool --combine first_pass/" in line for line in lines) == 2
    assert sum("--target openvino" in line for line in lines) == 1
    assert any("--chip bm1684 --quantize F32" in line for line in lines)
    assert any("--chip bm1688 --quantize F16" in line for line in lines)
    # The task's other components are not built: its one file says what it waits for.
    assert sum("once there is" in line for line in lines) == 2
    assert "model_tool --combine caption_" not in "\n".join(lines)


def test_before_the_export_the_script_is_the_export(decoder: PrivatePipeline) -> None:
    for file in (decoder.root / "caption" / "onnx").iterdir():
        file.unlink()
    lines = script(decoder, "--component", "text_decoder", "--target", "bm1684x").splitlines()
    (command,) = [line for line in lines if not line.startswith("#")]
    expected = f"--config {decoder.config} --task caption --component text_decoder"
    assert command == f".venv/bin/python -m export {expected}"
    assert "not exported yet" in lines[-1]


def timeless(bmodel: Path) -> bytes:
    """A BModel without the time that the vendor writes into it."""
    content, times = re.subn(
        rb"\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\n", b"", bmodel.read_bytes()
    )
    assert times == 1
    return content


def built_and_pasted(
    exported: Path, folder: Path, target: str, component: str
) -> tuple[PrivatePipeline, PrivatePipeline]:
    """The same component twice: by compile, and by the script of a dry run."""
    pair = []
    for name in ("built", "pasted"):
        (folder / name).mkdir()
        pair.append(private_pipeline(exported, folder / name, "itm", component))
    built, by_hand = pair
    assert built.run("--target", target, "--component", component).returncode == 0
    pasted(script(by_hand, "--target", target, "--component", component))
    return built, by_hand


def test_the_script_of_a_chip_makes_the_same_bmodel(
    exported_artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TPUC_ROOT", "/another/tool/chain")
    monkeypatch.setenv("LD_PRELOAD", "")
    component = "text_encoder_unimodal"
    built, by_hand = built_and_pasted(exported_artifacts, tmp_path, "bm1684x", component)
    name = f"itm_{component}_bm1684x_f16_1b"
    expected = built.root / "itm" / "BM1684X" / f"{name}.bmodel"
    found = by_hand.root / "work" / f"{name}_deploy" / f"{name}.bmodel"
    assert timeless(found) == timeless(expected)
    assert by_hand.manifests() == {}


def test_the_script_of_an_ir_makes_the_same_weights(
    exported_artifacts: Path, tmp_path: Path
) -> None:
    pair = built_and_pasted(exported_artifacts, tmp_path, "openvino", "vision_projection")
    first, second = ((p.root / "itm/openvino/f16/vision_projection.bin") for p in pair)
    assert first.read_bytes() == second.read_bytes()
    (manifests,) = {frozenset(pipeline.manifests()) for pipeline in pair}
    assert len(manifests) == 1


def test_the_script_calibrates_and_combines(reference_artifacts: Path, tmp_path: Path) -> None:
    pipeline = private_pipeline(reference_artifacts, tmp_path, "itm", *MATCHING)
    (pipeline.root / "itm" / "processor").symlink_to(reference_artifacts / "itm" / "processor")
    pipeline.data["targets"] = {"bm1684x": {"precisions": ["int8"]}}
    pipeline.data["calibration"] = {"samples": 2, "measured_samples": 1}
    pipeline.write()
    others = [name for name in MATCHING if name != "vision_projection"]
    for name in others:
        folder = pipeline.root / "itm" / "BM1684X"
        folder.mkdir(exist_ok=True)
        source = reference_artifacts / "itm" / "BM1684X" / f"itm_{name}_bm1684x_f16_1b.bmodel"
        (folder / f"itm_{name}_bm1684x_int8_1b.bmodel").symlink_to(source)
    pasted(script(pipeline, "--component", "vision_projection"))
    work = pipeline.root / "work"
    deployed = work / "itm_vision_projection_bm1684x_int8_1b_deploy"
    assert (deployed / "main" / "thresholds.txt").read_text().startswith("# op_name")
    parts = [*folder.glob("*.bmodel"), *deployed.glob("*.bmodel")]
    assert len(parts) == len(MATCHING)
    combined = work / "itm_bm1684x_int8_1b_combined" / "itm_bm1684x_int8_1b.bmodel"
    assert combined.stat().st_size > max(part.stat().st_size for part in parts)


def test_the_manifest_records_the_plan_that_ran(reference_artifacts: Path) -> None:  # noqa: ARG001
    selection = select(
        ROOT / "configs" / "reference.yaml",
        component="text_decoder",
        task="caption",
        backend="sophon",
    )
    backend = backends(MemoryBudget(1), VendorTools())["sophon"]
    for job in jobs(selection):
        plan = backend.plan(job, read_source(job.layout, job.task, job.component))
        built = read_manifest(ComponentManifest, job.location.manifest)
        assert built.commands == plan.known.commands
        lines = "\n".join(plan.script(ROOT / "configs" / "reference.yaml"))
        for argv in plan.known.commands:
            assert " ".join(argv[1:3]) in lines
