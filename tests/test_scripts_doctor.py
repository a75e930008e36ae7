"""The doctor: what it reports, its exit code, and its advice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts import checks, doctor
from tests.export_checkpoints import write_pipeline
from tests.model_hub import serving

REPOSITORY = Path(__file__).resolve().parent.parent


def run_doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.doctor", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_a_complete_machine_is_ready() -> None:
    done = run_doctor()
    assert done.returncode == 0, done.stdout
    assert "ready for the pipeline reference" in done.stdout
    for name in ("openvino", "tpu_mlir", "glibc mend", "free disk", "bm1684x", "simulator"):
        assert name in done.stdout


def test_json_names_every_target() -> None:
    done = run_doctor("--json")
    report = json.loads(done.stdout)
    assert report["ready"] is True
    targets = {target["name"]: target for target in report["targets"]}
    assert set(targets) >= {"openvino", "bm1684", "bm1684x", "bm1688"}
    assert all(target["build"] and target["verify"] for target in targets.values())
    assert {check["name"] for check in report["checks"]} >= {"torch", "memory", "sophon-sail"}


def test_without_tpu_mlir_sophon_targets_need_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "TPU_ENVIRONMENT", tmp_path / "none")
    diagnosis = doctor.diagnose()
    assert not diagnosis.ready
    targets = {target.name: target for target in diagnosis.targets}
    assert targets["openvino"].build
    assert not targets["bm1688"].build
    assert targets["bm1688"].cure == "make setup-tpu"
    assert doctor.main([]) == 1
    printed = capsys.readouterr().out
    assert "make setup-tpu" in printed
    assert "not ready" in printed


def test_without_compilers_chips_cannot_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "make").write_text("")
    (tmp_path / "make").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    diagnosis = doctor.diagnose()
    found = {check.name: check for check in diagnosis.checks}["compilers"]
    assert (found.status, found.found) == ("missing", "no gcc, g++, cmake")
    assert "build-essential cmake" in found.cure
    assert not diagnosis.ready
    targets = {target.name: target for target in diagnosis.targets}
    assert targets["openvino"].build
    assert not targets["bm1684x"].build
    assert targets["bm1684x"].verify == ("simulator",)
    assert targets["bm1684x"].cure == found.cure


def test_checkpoints_of_a_pipeline_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the hub: how much is to be downloaded, or why it cannot be; no weights are."""
    checkpoint = REPOSITORY / "models" / "checkpoints" / "reference-caption"
    config = write_pipeline(
        tmp_path, {"caption": "owner/blip", "vqa": "owner/nothing", "itm": tmp_path / "none"}
    )
    with serving(monkeypatch, tmp_path / "cache") as hub:
        hub.add("owner/blip", checkpoint)
        diagnosis = doctor.diagnose(config)
    found = {check.name: check for check in diagnosis.checks}
    assert found["checkpoint (caption)"].status == "ok"
    assert "owner/blip, 0.0 GiB to download" in found["checkpoint (caption)"].found
    assert "check the name" in found["checkpoint (vqa)"].cure
    assert "no such checkpoint folder" in found["checkpoint (itm)"].cure
    assert not diagnosis.ready
    assert not hub.asked_for(".safetensors", ".bin")


def test_a_missing_package_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = checks.metadata.version

    def version(name: str) -> str:
        if name == "openvino":
            raise checks.metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "onnx" else real(name)

    monkeypatch.setattr(checks.metadata, "version", version)
    found = {check.name: check for check in checks.check_packages()}
    assert (found["openvino"].status, found["openvino"].cure) == ("missing", "make setup")
    assert found["onnx"].found.startswith("0.0.1, pinned is ")
    assert found["torch"].status == "ok"


def test_a_pipeline_without_chips_needs_no_tpu_mlir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "TPU_ENVIRONMENT", tmp_path / "none")
    data = yaml.safe_load((REPOSITORY / "configs" / "reference.yaml").read_text())
    data["targets"] = {"openvino": data["targets"]["openvino"]}
    config = tmp_path / "intel.yaml"
    config.write_text(yaml.safe_dump(data))
    diagnosis = doctor.diagnose(config)
    found = {check.name: check for check in diagnosis.checks}
    assert found["tpu_mlir"].status == "absent"
    assert diagnosis.ready


def test_the_disk_that_artifacts_go_to_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Path] = []
    real = checks.shutil.disk_usage

    def usage(folder: Path) -> object:
        measured.append(folder)
        return real(folder)._replace(free=1)

    monkeypatch.setattr(checks.shutil, "disk_usage", usage)
    artifacts = tmp_path / "other disk" / "artifacts"
    (free,) = [c for c in checks.check_machine(artifacts) if c.name == "free disk"]
    assert measured == [tmp_path]
    assert free.status == "missing"
