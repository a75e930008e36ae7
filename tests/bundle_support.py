"""What the tests of bundles share: a verified caption task, a bundle of it, an attacker's tools."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from pipeline.command import Selection, select
from pipeline.json_file import append_lines
from runtime.bundles.contents import plain_files, sums_text
from runtime.bundles.format import (
    PROVENANCE_FILE,
    SBOM_FILE,
    SIGNATURE_FILE,
    SUMS_FILE,
    VERDICT_FILE,
)
from runtime.bundles.statements import byproduct, statement
from verify.artifacts import find_artifacts
from verify.pipeline import failure, verify
from verify.plan import make_plan
from verify.results import STORE_FILE, Check

ROOT = Path(__file__).resolve().parent.parent
SCENES = 2
FOLDERS = ("onnx", "processor", "BM1684X", "openvino/f16")
#: Figures of checks that other tests are about, within the tolerances that they name.
PASSED = {"relative_error": 1e-6, "cosine": 1.0}
ALLOWED = {
    "max_relative_error": 1e-3,
    "min_cosine": 0.9999,
    "source": "tests: tests/bundle_support",
}


def verified_pipeline(artifacts: Path, root: Path) -> Path:
    """A copy of the caption task, verified as OpenVINO IR and BM1684X; returns its pipeline file.

    Whole answers are compared for real: the sample's answer comes from there. The other checks are
    put into the store as done, because tests/test_verify_* do them.
    """
    folder = root / "reference" / "caption"
    for name in FOLDERS:
        shutil.copytree(artifacts / "caption" / name, folder / name)
    shutil.copy(artifacts / "caption" / "manifest.json", folder)
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    data |= {"artifacts": str(root), "tasks": {"caption": data["tasks"]["caption"]}}
    data["targets"] = {"openvino": {"precisions": ["f16"]}, "bm1684x": {"precisions": ["f16"]}}
    data["verify"]["tokens"] = {
        name: {"scenes": SCENES} for name in ("onnx", "openvino", "bm1684x")
    }
    data["verify"]["gates"] = {"caption": data["verify"]["gates"]["caption"]}
    config = root / "pipeline.yaml"
    config.write_text(yaml.safe_dump(data, sort_keys=False))
    selection = select(config)
    plan = make_plan(selection, find_artifacts(selection), config, full=True)
    done = [
        Check(item.subject, 1, PASSED, ALLOWED, key=item.key).record()
        for item in plan.checks
        if item.subject.kind not in ("tokens", "scores")
    ]
    append_lines(root / "reference" / STORE_FILE, done)
    result = verify(selection, config)
    assert failure(result) is None
    return config


def part(config: Path, target: str) -> Selection:
    """The caption task for one target."""
    return select(config, target=target)


# ---- an attacker's tools


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    names = (name for name in plain_files(folder) if name not in (SUMS_FILE, SIGNATURE_FILE))
    return {name: sha256(folder / name) for name in names}


def reseal_manifests(folder: Path) -> None:
    """Every manifest agrees with its files."""
    for path in folder.glob("caption/**/*.json"):
        data = json.loads(path.read_text())
        if "files" not in data:
            continue  # the processor's own
        for name in data["files"]:
            if (path.parent / name).is_file():
                data["files"][name]["sha256"] = sha256(path.parent / name)
                data["files"][name]["size_bytes"] = (path.parent / name).stat().st_size
        path.write_text(json.dumps(data))


def reseal_sums(folder: Path) -> None:
    (folder / SUMS_FILE).write_text(sums_text(digests(folder)))


def reseal_statements(folder: Path) -> None:
    """Materials, subjects and what they name of each other; then the checksums."""

    def materials(data: dict[str, Any]) -> None:
        found = digests(folder)
        kept = [one for one in data["components"] if one["type"] != "file"]
        names = [n for n in found if not n.startswith("attestations/") and n != SBOM_FILE]
        data["components"] = kept + [
            {"type": "file", "name": n, "hashes": [{"alg": "SHA-256", "content": found[n]}]}
            for n in names
        ]

    edit(folder / SBOM_FILE, materials)
    for name in (VERDICT_FILE, PROVENANCE_FILE):
        subject = statement(digests(folder), "", {})["subject"]
        edit(folder / name, lambda data, subject=subject: data.update(subject=subject))
    named = [byproduct(digests(folder))]
    edit(
        folder / PROVENANCE_FILE,
        lambda data: data["predicate"]["runDetails"].update(byproducts=named),
    )
    reseal_sums(folder)


def reseal_everything(folder: Path) -> None:
    """All that somebody without the key can do: what is left agrees with itself."""
    reseal_manifests(folder)
    found = digests(folder)
    edit(
        folder / VERDICT_FILE,
        lambda data: data["predicate"].update(
            artifacts={name: found[name] for name in data["predicate"]["artifacts"]}
        ),
    )
    reseal_statements(folder)


def members(archive: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(archive) as opened:
        return [(one, opened.extractfile(one).read()) for one in opened]  # type: ignore[union-attr]


def tar(path: Path, entries: Iterable[tuple[tarfile.TarInfo, bytes]], end: bytes = b"") -> Path:
    """Writes an archive as somebody else would, member by member."""
    raw = io.BytesIO()
    for entry, data in entries:
        entry.size = len(data)
        raw.write(entry.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512))
    path.write_bytes(gzip.compress(raw.getvalue() + bytes(1024) + end, 1))
    return path
