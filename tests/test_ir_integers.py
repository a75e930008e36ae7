"""Integer sets of OpenVINO IR: what is built, from which images, and that it is repeatable."""

from __future__ import annotations

from pathlib import Path

import openvino
import pytest

from pipeline.manifest import ComponentManifest, read_manifest
from pipeline.scenes import draw, make_scene
from runtime.errors import InputError
from runtime.sessions.session import resolved_mode
from runtime.tasks.registry import Captioner
from tests.compile_private import PrivatePipeline, private_pipeline

COMPONENTS = ("vision_encoder", "cross_key_values", "text_decoder")


@pytest.fixture
def pipeline(exported_artifacts: Path, tmp_path: Path) -> PrivatePipeline:
    found = private_pipeline(exported_artifacts, tmp_path, "caption", *COMPONENTS)
    found.data["calibration"] = {"samples": 3}
    found.data["targets"] = {"openvino": {"precisions": ["int8", "int4"]}}
    found.write()
    return found


def built(pipeline: PrivatePipeline, component: str, precision: str) -> ComponentManifest:
    result = pipeline.run("--component", component, "--precision", precision)
    assert result.returncode == 0, result.stderr
    job = pipeline.job(component, "openvino", precision)
    return read_manifest(ComponentManifest, job.location.manifest)


def kinds(pipeline: PrivatePipeline, component: str, precision: str) -> set[str]:
    location = pipeline.job(component, "openvino", precision).location
    model = openvino.Core().read_model(location.file(".xml"))
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    return {op.get_output_element_type(0).get_type_name() for op in constants}


def test_decoders_get_weights_of_fewer_bits(pipeline: PrivatePipeline) -> None:
    eight = built(pipeline, "text_decoder", "int8")
    assert (eight.precision, eight.built_as) == ("int8", "w8f16")
    assert "nncf" in eight.tools
    assert eight.key_inputs["settings"]["calibration"] is None
    assert "u8" in kinds(pipeline, "text_decoder", "int8")
    four = built(pipeline, "text_decoder", "int4")
    assert (four.precision, four.built_as) == ("int4", "w4f16")
    assert "u4" in kinds(pipeline, "text_decoder", "int4")


def test_calibration_is_recorded_and_repeatable(pipeline: PrivatePipeline) -> None:
    first = built(pipeline, "vision_encoder", "int8")
    assert (first.precision, first.built_as) == ("int8", None)
    recorded = first.key_inputs["settings"]["calibration"]
    assert recorded["source"] == "scenes"
    assert recorded["samples"] == 3
    assert "i8" in kinds(pipeline, "vision_encoder", "int8")
    for path in (pipeline.root / "caption" / "openvino").rglob("*.manifest.json"):
        path.unlink()
    again = built(pipeline, "vision_encoder", "int8")
    assert again.files == first.files
    pipeline.data["calibration"] = {"samples": 3, "seed": 1}
    pipeline.write()
    other = built(pipeline, "vision_encoder", "int8")
    assert other.key != first.key
    assert other.files != first.files


@pytest.mark.parametrize(
    ("content", "message"),
    [({}, "no images"), ({"a.png": b"not an image"}, "not a readable image")],
)
def test_bad_calibration_folders_are_refused_in_one_line(
    pipeline: PrivatePipeline, tmp_path: Path, content: dict[str, bytes], message: str
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    pipeline.data["calibration"] = {"source": str(folder)}
    pipeline.write()
    result = pipeline.run("--component", "vision_encoder", "--precision", "int8")
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_of_ones_own_calibrates(pipeline: PrivatePipeline, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(2):
        draw(make_scene(index, "train")).save(folder / f"{index}.png")
    pipeline.data["calibration"] = {"source": str(folder)}
    pipeline.write()
    manifest = built(pipeline, "vision_encoder", "int8")
    assert manifest.key_inputs["settings"]["calibration"]["source"] == str(folder)


def test_mode_int8_names_the_set(openvino_artifacts: Path) -> None:
    assert resolved_mode("int8", None) == ("fast", "int8")
    assert resolved_mode("exact", "f16") == ("exact", "f16")
    with pytest.raises(InputError, match="mode int8"):
        resolved_mode("int8", "f16")
    images = [draw(make_scene(index)) for index in range(6)]
    found = []
    for mode in ("exact", "int8"):
        with Captioner.from_artifacts(openvino_artifacts, mode=mode) as captioner:
            found.append([caption.text for caption in captioner.batch(images)])
    assert found[0] == found[1]
