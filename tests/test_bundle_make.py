"""``make bundle``: what is in it, that its bytes are reproducible, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bundle.pipeline import Options, make_bundles
from bundle.wheels import check_tag
from configs.errors import ConfigError, InputError, ParityError
from pipeline.command import select
from pipeline.manifest import key_of
from runtime import __version__
from runtime.bundles.check import check_bundle
from runtime.bundles.format import BundleError
from tests.bundle_support import ROOT, edit, members, reseal_manifests
from verify.verdict import read_verdict

NAME = f"reference-caption-bm1684x-f16-{__version__}"
#: What `python -m bundle` reads of a checkout.
CHECKOUT = (
    *("bundle", "compile", "configs", "export", "pipeline", "requirements", "runtime", "verify"),
    *("LICENSE", "README.md", "pyproject.toml", "models/checkpoints/reference-caption"),
)


def make(config: Path, folder: Path, target: str = "bm1684x", **more: Any) -> Path:
    (archive,) = make_bundles(select(config, target=target), Options(folder=folder, **more))
    return archive


def file(archive: Path, name: str) -> Any:
    with tarfile.open(archive) as opened:
        data = opened.extractfile(f"{archive.name.removesuffix('.tar.gz')}/{name}")
        assert data is not None
        return data.read()


def test_it_holds_what_runs_and_nothing_else(bundles: dict[str, Path]) -> None:
    names = [one.name.removeprefix(f"{NAME}/") for one, _ in members(bundles["bm1684x"])]
    artifact = [name for name in names if name.startswith("caption/BM1684X/")]
    bmodels = [name for name in artifact if name.endswith(".bmodel")]
    assert bmodels == ["caption/BM1684X/caption_bm1684x_f16_1b.bmodel"], "the combined file alone"
    assert not [name for name in names if "onnx" in name or name.endswith(".npz")]
    rest = {name for name in names if not name.startswith("caption/")}
    assert rest == {
        *("LICENSE", "NOTICES.txt", "README.txt", "SHA256SUMS", "bundle.json", "requirements.txt"),
        *("attestations/provenance.json", "attestations/verdict.json", "run.sh", "sbom.cdx.json"),
        *("sample/scene_0.png", f"wheels/blip_edge-{__version__}-py3-none-any.whl"),
    }
    openvino = {one.name.split("/", 1)[1] for one, _ in members(bundles["openvino"])}
    assert {"caption/openvino/f16/text_decoder.bin", "caption/manifest.json"} <= openvino


def test_the_sample_is_the_verified_answer(
    bundles: dict[str, Path], verified_pipeline: Path
) -> None:
    verdict = read_verdict(verified_pipeline.parent / "reference" / "verify.json")
    answers = {
        example["found"]
        for check in verdict["checks"]
        if check["kind"] == "tokens"
        for example in check["metrics"]["examples"]
        if example["text"] == ""
    }
    for archive in bundles.values():
        sample = json.loads(file(archive, "bundle.json"))["sample"]
        assert answers == {sample["expected"]}


def test_statements_follow_their_formats(bundles: dict[str, Path]) -> None:
    for archive in bundles.values():
        provenance = json.loads(file(archive, "attestations/provenance.json"))
        assert provenance["_type"] == "https://in-toto.io/Statement/v1"
        assert provenance["predicateType"] == "https://slsa.dev/provenance/v1"
        definition = provenance["predicate"]["buildDefinition"]
        assert definition["buildType"]
        dependencies = {one["name"]: one for one in definition["resolvedDependencies"]}
        assert {"checkpoint", "pipeline file", "graph text_decoder"} <= dependencies.keys()
        verdict = json.loads(file(archive, "attestations/verdict.json"))
        assert verdict["subject"] == provenance["subject"]
        assert verdict["predicate"]["passed"] is True


def test_materials_are_cyclonedx(bundles: dict[str, Path]) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = file(bundles["openvino"], "sbom.cdx.json").decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    data = json.loads(text)
    assert "timestamp" not in data["metadata"]
    kinds = {one["type"] for one in data["components"]}
    assert kinds == {"file", "library", "machine-learning-model"}
    assert {tool["name"] for tool in data["metadata"]["tools"]["components"]} >= {
        "openvino",
        "torch",
    }


def test_the_model_card_says_what_is_measured_and_what_estimated(bundles: dict[str, Path]) -> None:
    chip, processor = (
        file(bundles[name], "README.txt").decode() for name in ("bm1684x", "openvino")
    )
    assert "2 / 2" in chip
    assert "the vendor's chip simulator, not on silicon" in chip
    assert "ms, estimated by the vendor's compiler, not measured" in chip
    assert "ms, measured" not in chip
    assert "estimated" not in processor


@pytest.fixture
def checkouts(verified_pipeline: Path, tmp_path: Path) -> list[Path]:
    """The sources and a verified pipeline in two folders, made at two times."""
    made = []
    for place, when in (("a", 10**9), ("b/c d", 2 * 10**9)):
        checkout = tmp_path / place
        for name in CHECKOUT:
            source, target = ROOT / name, checkout / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        artifacts = checkout / "models" / "artifacts" / "reference"
        shutil.copytree(verified_pipeline.parent / "reference", artifacts)
        lines = verified_pipeline.read_text().splitlines(keepends=True)
        text = "".join(line for line in lines if not line.startswith("artifacts:"))
        (checkout / "pipeline.yaml").write_text(text)
        cost = {"seconds": float(when), "peak_memory_bytes": when}
        for path in artifacts.glob("caption/BM1684X/*.json"):
            edit(path, lambda data, cost=cost: "build" in data and data.update(build=cost))
        for path in checkout.rglob("*"):
            os.utime(path, (when, when))
        (checkout / ".venv-tpu").symlink_to(ROOT / ".venv-tpu")
        made.append(checkout)
    return made


def test_the_same_bytes_in_another_folder_at_another_time(checkouts: list[Path]) -> None:
    made = []
    for checkout, umask, zone in zip(checkouts, (0o022, 0o077), ("UTC", "Asia/Tokyo"), strict=True):
        options = ["--config", "pipeline.yaml", "--target", "bm1684x", "--out", "out"]
        result = subprocess.run(
            [sys.executable, "-m", "bundle", *options],
            cwd=checkout,
            env={**os.environ, "TZ": zone, "PYTHONHASHSEED": str(umask)},
            umask=umask,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        made.append((checkout / "out" / f"{NAME}.tar.gz").read_bytes())
    assert made[0] == made[1]


# ---- what is refused


@pytest.fixture
def changed(verified_pipeline: Path, tmp_path: Path) -> Path:
    """A copy of the verified pipeline to change; returns its pipeline file."""
    shutil.copytree(verified_pipeline.parent / "reference", tmp_path / "reference")
    config = tmp_path / "pipeline.yaml"
    text = verified_pipeline.read_text()
    config.write_text(text.replace(str(verified_pipeline.parent), str(tmp_path)))
    return config


def rewrite_verdict(config: Path, change: Any) -> None:
    """verify.json with other checks, sealed again."""
    path = config.parent / "reference" / "verify.json"
    verdict = read_verdict(path)
    verdict["checks"] = change(verdict["checks"])
    path.write_text(json.dumps({**verdict, "sha256": key_of(verdict)}))


def test_nothing_verified(changed: Path, tmp_path: Path) -> None:
    (tmp_path / "reference" / "verify.json").unlink()
    with pytest.raises(InputError, match=r"verify.json: missing.*make verify .*TARGET=bm1684x"):
        make(changed, tmp_path)


def test_a_verdict_changed_by_hand(changed: Path, tmp_path: Path) -> None:
    edit(tmp_path / "reference" / "verify.json", lambda data: data.update(passed=True, more=1))
    with pytest.raises(InputError, match="changed after it was written"):
        make(changed, tmp_path)


def test_a_verdict_of_another_target(changed: Path, tmp_path: Path) -> None:
    rewrite_verdict(changed, lambda checks: [c for c in checks if c["target"] != "bm1684x"])
    with pytest.raises(InputError, match="checks were not done on these files"):
        make(changed, tmp_path)


def test_a_failed_check(changed: Path, tmp_path: Path) -> None:
    def fail(checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**c, "problems": ["planted"], "passed": False} if c["target"] == "bm1684x" else c
            for c in checks
        ]

    rewrite_verdict(changed, fail)
    with pytest.raises(ParityError, match=r"verification failed: .*planted"):
        make(changed, tmp_path)


def test_tolerances_other_than_those_of_the_verdict(
    changed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict by looser tolerances is none by these."""
    monkeypatch.setattr("verify.plan.tolerances_digest", lambda: "other")
    with pytest.raises(InputError, match="by these tolerances"):
        make(changed, tmp_path)


def test_weights_swapped_since_with_a_sealed_manifest(changed: Path, tmp_path: Path) -> None:
    path = next((tmp_path / "reference").glob("caption/BM1684X/*vision_encoder*.bmodel"))
    data = bytearray(path.read_bytes())
    data[-5000] ^= 1
    path.write_bytes(data)
    reseal_manifests(tmp_path / "reference")
    with pytest.raises(InputError, match="checks were not done on these files"):
        make(changed, tmp_path)


def test_unverified_only_when_asked_and_it_says_so(changed: Path, tmp_path: Path) -> None:
    (tmp_path / "reference" / "verify.json").unlink()
    archive = make(changed, tmp_path, unverified=True)
    assert file(archive, "README.txt").decode().split("\n\n")[1].startswith("NOT VERIFIED")
    description = json.loads(file(archive, "bundle.json"))
    assert description["verified"] is False
    assert description["sample"]["expected"] is None
    with pytest.raises(BundleError, match="UNVERIFIED=1"):
        check_bundle(archive)
    assert check_bundle(archive, allow_unverified=True).target == "bm1684x"


@pytest.mark.parametrize("tag", ["cp38", "py3-any", "cp38-riscv64", "cp38-aarch64; rm"])
def test_wheels_must_name_a_python_and_a_processor(tag: str) -> None:
    with pytest.raises(ConfigError, match="cp38-aarch64"):
        check_tag(tag, "bm1684x")
