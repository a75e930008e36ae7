"""Puts a bundle together, file by file, and checks it as its receiver will."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bundle.archive import write_archive
from bundle.provenance import materials, provenance
from bundle.sample import write_sample
from bundle.texts import model_card, notices, run_script
from bundle.verdict import Verdict, read_verdict_of, refusal
from bundle.wheels import build_runtime_wheel, check_tag, download_wheels, wheel_version
from configs.layout import REPOSITORY_ROOT
from pipeline.atomic import artifact_lock, staging
from pipeline.command import Selection
from pipeline.manifest import file_sha256
from runtime.bundles import format as names
from runtime.bundles.check import check_folder
from runtime.bundles.contents import plain_files, sums_text
from runtime.bundles.signature import sign
from runtime.bundles.statements import PROVENANCE, VERDICT, statement
from verify.artifacts import runtime_failures


@dataclass(frozen=True)
class Options:
    """What a user may ask for."""

    #: Python and processor whose wheels are enclosed
    wheels: str | None = None
    unverified: bool = False
    sign_key: Path | None = None
    #: where archives go
    folder: Path = REPOSITORY_ROOT / "dist"


def make_bundles(selection: Selection, options: Options) -> Iterator[Path]:
    """One archive per task, target and precision of a selection.

    Raises:
        ParityError: a check of the artifact failed.
        InputError: it is missing, damaged, stale or not verified.
        ToolError: wheels cannot be had, or the disk is full.
    """
    # Tools run in folders of their own.
    options = replace(options, folder=options.folder.resolve())
    parts = [
        replace(selection, tasks=(task,), targets=(pair,))
        for task in selection.tasks
        for pair in selection.targets
    ]
    for part in parts:
        if options.wheels is not None:
            check_tag(options.wheels, part.targets[0][0].name)
    verdicts = [read_verdict_of(part) for part in parts]
    for part, verdict in zip(parts, verdicts, strict=True):
        if (error := refusal(verdict, part)) and not options.unverified:
            raise error
    for part, verdict in zip(parts, verdicts, strict=True):
        yield _make(part, verdict, options)


def _make(selection: Selection, verdict: Verdict, options: Options) -> Path:
    target = verdict.target
    parts = (selection.pipeline.name, verdict.task.task, target.name, target.precision)
    stem = names.bundle_name(*parts)
    with artifact_lock(options.folder, stem), staging(options.folder, stem) as work:
        wheel = build_runtime_wheel(work)
        folder = work / names.bundle_name(*parts, wheel_version(wheel))
        (folder / names.WHEELS_FOLDER).mkdir(parents=True)
        wheel.rename(folder / names.WHEELS_FOLDER / wheel.name)
        _fill(folder, wheel_version(wheel), selection, verdict, options)
        with runtime_failures():
            if options.sign_key is not None:
                sign(folder, options.sign_key)
            check_folder(folder)
        archive = options.folder / f"{folder.name}{names.ARCHIVE_SUFFIX}"
        write_archive(folder, archive)
    return archive


def _fill(
    folder: Path, version: str, selection: Selection, verdict: Verdict, options: Options
) -> None:
    _copy_artifacts(folder, verdict)
    wheels = folder / names.WHEELS_FOLDER
    target = verdict.target
    if options.wheels is not None:
        download_wheels(options.wheels, target.name, wheels)
    described = names.Description(
        pipeline=selection.pipeline.name,
        task=verdict.task.task,
        target=target.name,
        precision=target.precision,
        version=version,
        verified=verdict.passed,
        wheels=options.wheels,
        sample=write_sample(folder, verdict, selection.pipeline),
    )
    head = {"schema_version": names.SCHEMA_VERSION, "kind": names.KIND}
    every = sorted(wheels.glob("*.whl"))
    texts = {
        names.DESCRIPTION_FILE: _json({**head, **asdict(described)}),
        "README.txt": model_card(verdict, selection, described),
        "NOTICES.txt": notices(every),
        "requirements.txt": "".join(map(_requirement, every)),
        "run.sh": run_script(described, simulated=target.simulated),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copy(REPOSITORY_ROOT / "LICENSE", folder)
    digests = _digests(folder)
    (folder / names.SBOM_FILE).write_text(materials(verdict, described, digests), encoding="utf-8")
    digests = _digests(folder)
    (folder / names.VERDICT_FILE).parent.mkdir()
    found = statement(digests, VERDICT, verdict.predicate(described.pipeline))
    (folder / names.VERDICT_FILE).write_text(_json(found), encoding="utf-8")
    digests = _digests(folder)
    made = statement(digests, PROVENANCE, provenance(verdict, selection, described, digests))
    (folder / names.PROVENANCE_FILE).write_text(_json(made), encoding="utf-8")
    (folder / names.SUMS_FILE).write_text(sums_text(_digests(folder)), encoding="utf-8")


def _copy_artifacts(folder: Path, verdict: Verdict) -> None:
    files = verdict.shipped
    root = files.task.folder.parent
    manifests = [part.path for part in (files.task, *files.components, files.combined) if part]
    for path in (*files.digests, *manifests):
        (folder / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.relative_to(root))


def _requirement(wheel: Path) -> str:
    name, version = wheel.name.split("-")[:2]
    return f"{name}=={version} --hash=sha256:{file_sha256(wheel)}\n"


def _digests(folder: Path) -> dict[str, str]:
    return {name: file_sha256(folder / name) for name in plain_files(folder)}


def _json(data: object) -> str:
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"
