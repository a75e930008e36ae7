"""The whole of `verify` on real artifacts: a clean build passes, every planted fault is found."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from configs.errors import InputError
from pipeline.command import select
from pipeline.manifest import file_record
from verify.pipeline import Verification, failure, verify

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("caption", "vqa", "itm")
CHIP = "bm1688"


def small_pipeline(root: Path) -> Path:
    """The reference pipeline with few cases, its artifacts below ``root``."""
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    data["artifacts"] = str(root)
    data["verify"]["component_scenes"] = 2
    for gate in data["verify"]["tokens"].values():
        gate.update(scenes=6)
    path = root / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def run(
    config: Path,
    *,
    task: str | None = None,
    component: str | None = None,
    target: str | None = None,
) -> Verification:
    """Verifies a part; without ``target`` the exported graphs only."""
    selection = select(config, task=task, component=component, target=target)
    if target is None:
        selection = replace(selection, targets=())
    return verify(selection, config)


@pytest.fixture(scope="session")
def clean(reference_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified copy of the reference artifacts; returns its pipeline file."""
    root = tmp_path_factory.mktemp("verify")
    ignored = shutil.ignore_patterns("work", "logs", "verify*", "reference-answers.json")
    shutil.copytree(reference_artifacts, root / "reference", ignore=ignored)
    config = small_pipeline(root)
    result = run(config, target="openvino")
    assert failure(result) is None
    shutil.copy(result.verdict, root / "verdict.json")
    return config


@pytest.fixture
def copy(clean: Path, tmp_path: Path) -> Path:
    """A copy to damage: with the stored answers, without stored results."""
    ignored = shutil.ignore_patterns("verify*")
    shutil.copytree(clean.parent / "reference", tmp_path / "reference", ignore=ignored)
    return small_pipeline(tmp_path)


def folder(config: Path, task: str) -> Path:
    return config.parent / "reference" / task


def reseal(path: Path) -> None:
    """Makes the manifest agree with a changed file: comparing answers must find the fault."""
    (manifest,) = [m for m in path.parent.glob("*.manifest.json") if path.stem == m.name[:-14]]
    data = json.loads(manifest.read_text())
    data["files"][path.name] = asdict(file_record(path))
    manifest.write_text(json.dumps(data))


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_graph(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    reseal(path)


def failed(result: Verification) -> set[tuple[str, str | None, str]]:
    """(gap, component, variant) of every failed check."""
    return {
        (c.subject.gap, c.subject.component, c.subject.variant)
        for c in result.checks
        if not c.passed
    }


def rewire(model: onnx.ModelProto, name: str, node: onnx.NodeProto) -> None:
    """Every reader of ``name`` reads ``node``'s output instead."""
    for reader in model.graph.node:
        for index, value in enumerate(reader.input):
            if value == name:
                reader.input[index] = node.output[0]
    model.graph.node.insert(0, node)


def test_clean_build_passes_on_every_task_and_gap(clean: Path) -> None:
    verdict = json.loads((clean.parent / "verdict.json").read_text())
    assert verdict["passed"] is True
    seen = {(c["task"], c["gap"]) for c in verdict["checks"]}
    gaps = (
        *("hf_vs_wrapper", "wrapper_vs_onnxruntime", "onnxruntime_vs_target", "tokens"),
        *("checkpoint_vs_host", "checkpoint_layers", "target_layers"),
    )
    once = {("caption", "search_rules")}
    assert seen == {(task, gap) for task in TASKS for gap in gaps} | once
    kinds = {c["kind"] for c in verdict["checks"]}
    assert kinds == {"component", "tokens", "scores", "host", "layers"}
    for check in verdict["checks"]:
        assert check["samples"] > 0
        assert check["passed"]
        assert "source" in check["tolerance"]
        if check["kind"] == "component":
            assert check["metrics"].keys() >= {"max_abs", "relative_error", "cosine", "finite"}
            assert check["tolerance"]["would_have_passed"]["max_relative_error"] is not None


def test_openvino_is_checked_in_both_modes_beyond_the_second_step(clean: Path) -> None:
    verdict = json.loads((clean.parent / "verdict.json").read_text())
    modes = {}
    for check in verdict["checks"]:
        about = check["gap"], check["target"], check["component"]
        if about == ("onnxruntime_vs_target", "openvino", "text_decoder"):
            modes[check["task"], check["variant"]] = check["metrics"]["cases"]
    assert set(modes) == {(task, mode) for task in ("caption", "vqa") for mode in ("exact", "fast")}
    for (task, _), cases in modes.items():
        lengths = {int(name.partition(" past ")[2].partition(",")[0]) for name in cases}
        last = 31 if task == "caption" else 15
        assert {0, last} <= lengths
        assert len(lengths) >= 5


def test_second_run_does_nothing(clean: Path) -> None:
    verdict = run(clean, target="openvino").verdict
    before = verdict.stat().st_mtime_ns
    result = run(clean, target="openvino")
    assert result.done_now == 0
    assert result.passed
    assert verdict.stat().st_mtime_ns == before


def test_a_narrower_run_keeps_what_is_known_and_drops_what_changed(
    clean: Path, tmp_path: Path
) -> None:
    root = tmp_path / "reference"
    shutil.copytree(clean.parent / "reference", root)
    shutil.copy(clean.parent / "verdict.json", root / "verify.json")
    config = small_pipeline(tmp_path)
    # Manifests are named by their paths, which are others in a copy.
    whole = run(config, target="openvino")
    assert whole.done_now == 0
    narrow = run(config, task="itm", target="openvino")
    assert narrow.joined.items() >= whole.joined.items()
    assert {check.subject.task for check in narrow.checks} == {"itm"}
    proved = int(narrow.extent.split()[0])
    assert narrow.extent == f"{proved} of {narrow.built} artifacts verified"
    with (folder(config, "vqa") / "openvino" / "int8" / "vision_encoder.bin").open("ab") as stream:
        stream.write(b"more")
    narrow = run(config, task="itm", target="openvino")
    sets = {
        (check["task"], check["target"], check["precision"]) for check in narrow.joined["checks"]
    }
    assert ("vqa", "openvino", "int8") not in sets
    assert {("vqa", "openvino", "f16"), ("caption", "openvino", "int8")} <= sets
    assert int(narrow.extent.split()[0]) < proved
    assert len(narrow.joined["runs"]) == 2


def test_changed_tolerance_or_gate_is_checked_again(clean: Path, tmp_path: Path) -> None:
    changed = tmp_path / "pipeline.yaml"
    changed.write_text(clean.read_text().replace("scenes: 6", "scenes: 5"))
    result = run(changed, task="vqa", target="openvino")
    kinds = {c.subject.kind for c in result.checks}
    assert kinds == {"component", "tokens", "host", "layers"}
    assert result.done_now == sum(c.subject.kind == "tokens" for c in result.checks)


def test_interrupted_run_goes_on_where_it_stopped(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import verify.pipeline as pipeline

    original, calls = pipeline.hf_vs_wrapper, []

    def stop_at_third(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(pipeline, "hf_vs_wrapper", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        run(copy, task="caption", component="vision_encoder,cross_key_values,text_decoder")
    verdict = json.loads((copy.parent / "reference" / "verify.json").read_text())
    assert verdict["passed"] is False
    monkeypatch.setattr(pipeline, "hf_vs_wrapper", original)
    result = run(copy, task="caption", component="vision_encoder,cross_key_values,text_decoder")
    assert result.passed
    # The first two components were done: three checks each.
    assert result.done_now == len(result.checks) - 6


def test_large_models_are_not_simulated_unasked_and_not_called_passed(copy: Path) -> None:
    data = yaml.safe_load(copy.read_text())
    data["verify"]["simulate"] = False
    copy.write_text(yaml.safe_dump(data))
    result = run(copy, task="itm", component="vision_projection", target=CHIP)
    assert result.not_simulated == (f"itm {CHIP} f16",)
    chip = [check.subject.gap for check in result.checks if check.subject.target == CHIP]
    # Weights are read from the file, which takes no simulator.
    assert chip == ["target_constants"]
    assert result.passed


def test_chip_is_compared_on_its_simulator_and_swapped_keys_and_values_are_found(
    copy: Path,
) -> None:
    arguments = {"task": "caption", "component": "text_decoder", "target": CHIP}
    result = run(copy, **arguments)
    assert failure(result) is None
    constants, chip = [c for c in result.checks if c.subject.target == CHIP]
    assert constants.subject.gap == "target_constants"
    assert constants.metrics["constants"] > 50
    assert any("stale slots" in name for name in chip.metrics["cases"])
    assert any(name.endswith("past 31") for name in chip.metrics["cases"])
    (manifest,) = folder(copy, "caption").glob("BM1688/*text_decoder*.manifest.json")

    def swap(data: dict[str, Any]) -> None:
        for net in data["nets"]:
            by_name = {spec["name"]: spec for spec in net["inputs"]}
            key, value = by_name["past.0.key"], by_name["past.0.value"]
            names = key["artifact_name"], value["artifact_name"]
            value["artifact_name"], key["artifact_name"] = names

    edit_json(manifest, swap)
    assert ("onnxruntime_vs_target", "text_decoder", "") in failed(run(copy, **arguments))


def test_perturbed_weight_in_the_graph_is_found(copy: Path) -> None:
    def perturb(model: onnx.ModelProto) -> None:
        tensor = max(model.graph.initializer, key=lambda t: int(np.prod(t.dims)))
        array = numpy_helper.to_array(tensor).copy()
        array.reshape(-1)[::7] *= 1.1
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    edit_graph(folder(copy, "caption") / "onnx" / "vision_encoder.onnx", perturb)
    result = run(copy, task="caption", component="vision_encoder")
    gaps = ("wrapper_vs_onnxruntime", "checkpoint_layers")
    assert failed(result) == {(gap, "vision_encoder", "") for gap in gaps}
    error = failure(result)
    assert error is not None
    assert "caption vision_encoder onnx" in str(error)


def test_perturbed_weight_in_the_ir_is_found(copy: Path) -> None:
    path = folder(copy, "caption") / "openvino" / "f16" / "vision_encoder.bin"
    weights = np.frombuffer(path.read_bytes(), dtype=np.float16).copy()
    middle = len(weights) // 2
    weights[middle : middle + 20_000] *= np.float16(-1)
    path.write_bytes(weights.tobytes())
    reseal(path)
    result = run(copy, task="caption", component="vision_encoder", target="openvino")
    compared = {("onnxruntime_vs_target", "vision_encoder", mode) for mode in ("exact", "fast")}
    assert failed(result) == {*compared, ("target_layers", "vision_encoder", "exact")}


def test_not_a_number_in_the_ir_is_found_and_reported_not_raised(copy: Path) -> None:
    path = folder(copy, "caption") / "openvino" / "f16" / "vision_encoder.bin"
    weights = np.frombuffer(path.read_bytes(), dtype=np.float16).copy()
    middle = len(weights) // 2
    weights[middle : middle + 100] = np.float16("nan")
    path.write_bytes(weights.tobytes())
    reseal(path)
    result = run(copy, task="caption", target="openvino")
    found = failed(result)
    assert ("onnxruntime_vs_target", "vision_encoder", "exact") in found
    assert ("tokens", None, "exact") in found
    assert json.loads(result.verdict.read_text())["passed"] is False


def test_cross_values_of_another_layer_are_found(copy: Path) -> None:
    manifest = folder(copy, "vqa") / "openvino" / "f16" / "cross_key_values.manifest.json"

    def swap(data: dict[str, Any]) -> None:
        values = [one for one in data["nets"][0]["outputs"] if one["name"].endswith(".value")]
        first, second = values[:2]
        first["artifact_name"], second["artifact_name"] = (
            second["artifact_name"],
            first["artifact_name"],
        )

    edit_json(manifest, swap)
    result = run(copy, task="vqa", component="cross_key_values", target="openvino")
    assert ("onnxruntime_vs_target", "cross_key_values", "exact") in failed(result)


def test_ignored_decoder_mask_is_found(copy: Path) -> None:
    def ignore(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "zero"))
        node = helper.make_node("Mul", ["self_attention_mask", "zero"], ["no_mask"])
        rewire(model, "self_attention_mask", node)

    edit_graph(folder(copy, "caption") / "onnx" / "text_decoder.onnx", ignore)
    found = failed(run(copy, task="caption", component="text_decoder"))
    assert ("wrapper_vs_onnxruntime", "text_decoder", "padded") in found
    assert ("wrapper_vs_onnxruntime", "text_decoder", "") in found


@pytest.mark.parametrize(("task", "component"), [("vqa", "text_encoder"), ("itm", "text_encoder")])
def test_attended_padding_is_found(copy: Path, task: str, component: str) -> None:
    def attend(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(
            helper.make_tensor("one", TensorProto.INT64, [], np.ones(1, np.int64))
        )
        rewire(model, "attention_mask", helper.make_node("Max", ["attention_mask", "one"], ["all"]))

    edit_graph(folder(copy, task) / "onnx" / f"{component}.onnx", attend)
    found = failed(run(copy, task=task, component=component))
    assert ("wrapper_vs_onnxruntime", component, "padded") in found


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text", "end_token_id", 7),
        ("image", "mean", [0.0, 0.0, 0.0]),
        ("text", "start_token_id", 2),
    ],
)
def test_wrong_settings_beside_right_graphs_are_found(
    copy: Path, section: str, key: str, value: object
) -> None:
    manifest = folder(copy, "caption") / "manifest.json"
    edit_json(manifest, lambda data: data[section].update({key: value}))
    found = failed(run(copy, task="caption"))
    assert ("tokens", None, "") in found


def test_vacuous_reference_is_not_accepted(copy: Path) -> None:
    path = folder(copy, "itm") / "onnx" / "vision_projection.reference.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name] * (0 if "outputs" in name else 1) for name in stored.files}
    np.savez(path, **arrays)
    (manifest,) = path.parent.glob("vision_projection.manifest.json")
    edit_json(manifest, lambda data: data["files"].update({path.name: asdict(file_record(path))}))
    result = run(copy, task="itm", component="vision_projection")
    assert ("hf_vs_wrapper", "vision_projection", "") in failed(result)
    assert any("proves nothing" in p for c in result.checks for p in c.problems)


def test_truncated_artifact_is_a_clear_input_error(copy: Path) -> None:
    path = folder(copy, "caption") / "openvino" / "f16" / "text_decoder.bin"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"text_decoder\.bin.*make ir TASK=caption"):
        run(copy, task="caption", target="openvino")


def test_missing_artifact_names_the_command_that_builds_it(copy: Path) -> None:
    shutil.rmtree(folder(copy, "vqa") / "BM1684")
    with pytest.raises(InputError, match="make bmodel TARGET=bm1684 TASK=vqa"):
        run(copy, task="vqa", target="bm1684")


def test_artifact_of_other_weights_is_refused(copy: Path) -> None:
    manifest = folder(copy, "caption") / "openvino" / "f16" / "vision_encoder.manifest.json"
    edit_json(manifest, lambda data: data["checkpoint"].update(weights_sha256="0" * 64))
    with pytest.raises(InputError, match="other weights"):
        run(copy, task="caption", target="openvino")


def command(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """``python -m verify``; prints which heavy libraries it imported as its last line."""
    program = (
        "import sys\n"
        "from verify.__main__ import application\n"
        "try:\n    application(sys.argv[1:])\n"
        "finally:\n    heavy = {'torch', 'transformers', 'openvino', 'onnxruntime', 'onnx'}\n"
        "    print('imported', sorted(heavy & set(sys.modules)))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program, "--config", str(config), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_command_says_unchanged_without_loading_any_backend(clean: Path) -> None:
    command(clean, "--target", "openvino")
    result = command(clean, "--target", "openvino")
    assert result.returncode == 0, result.stderr
    assert "unchanged" in result.stderr
    assert result.stdout.splitlines()[-1] == "imported []"


def test_command_fails_with_a_table_and_one_line_of_advice(copy: Path) -> None:
    manifest = folder(copy, "itm") / "openvino" / "f16" / "text_encoder.manifest.json"
    edit_json(manifest, lambda data: data["nets"][0]["outputs"][0].update(name="other_logits"))
    selected = ("--task", "itm", "--component", "text_encoder", "--target", "openvino")
    result = command(copy, *selected)
    assert result.returncode == 1
    assert "failed" in result.stdout
    assert "Traceback" not in result.stderr
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("error:")]
    assert "itm text_encoder openvino" in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--task", "poetry"), "--task poetry"),
        (("--target", "bm9000"), "--target bm9000"),
        (("--target", "bm1684", "--precision", "f16"), "bm1684 cannot be built in f16"),
        (("--target", "openvino", "--precision", "f32"), "make ir TASK=caption PRECISION=f32"),
    ],
)
def test_bad_input_is_exit_code_2(copy: Path, options: tuple[str, ...], expected: str) -> None:
    result = command(copy, *options)
    assert result.returncode == 2, result.stderr
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
