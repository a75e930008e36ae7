"""Writes the folder that a board runs: artifacts, recorded cases, whole answers, one command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import InputError
from configs.layout import REPOSITORY_ROOT, Layout
from pipeline.atomic import staging
from pipeline.command import Selection
from pipeline.console import steps
from pipeline.manifest import file_sha256
from runtime.board_test import BUNDLE_FILE
from runtime.bundles.shipped import shipped
from verify.artifacts import TargetArtifacts, TaskArtifacts, find_artifacts, runtime_failures
from verify.opened import TaskBench
from verify.parity.inputs import Sample

BUNDLE_VERSION = 1
#: Whole answers per task: enough to see a broken loop, few enough for a slow chip.
ANSWERS = 4
_REQUIREMENTS = REPOSITORY_ROOT / "requirements" / "runtime.txt"

_SCRIPT = """#!/bin/sh
# Parity and latency on this board; pass --device N for another device than the first.
cd "$(dirname "$0")" || exit 2
python3 -c "import numpy, PIL, tokenizers" || {
    echo "error: a package is missing; run: python3 -m pip install -r requirements.txt" >&2
    exit 2
}
exec python3 -m runtime.board_test . "$@"
"""
_READ_ME = """{pipeline}: {tasks} on {target}, set {precision}: parity and latency on the device.

1. Copy this whole folder to the machine with the {target}.
2. There: python3 -m pip install -r requirements.txt   (Python 3.8 and up), and sophon-sail of the
   SDK release that the device runs: pip install sophon_arm-*.whl (board) or sophon-*.whl (PCIe
   card), from the SDK; sail 3.9.1 or later. Without a network (SE7: Python 3.8), on any machine
     python3 -m pip download --no-deps -d wheels --platform manylinux2014_aarch64 \\
         --python-version 3.8 --only-binary=:all: {wheels}
   and with the folder wheels copied too, on the board
     python3 -m pip install --no-index --no-deps --find-links wheels -r requirements.txt
3. sh run.sh   (--device N for another device than the first, --loops N timed calls per net)
   It runs every net on recorded inputs and whole answers, times them, and writes results.json.
   bmrt_test of the SDK adds its own times where it is on the PATH.
   Exit code 0: results.json is written. It is not judged here.
4. Copy results.json back to the checkout that made this folder, and judge it there:
   python -m verify --config {config} --from-board results.json
   Exit code 0: every net and answer is within the bounds; 1: some are not, and named; 2: the file
   is not of this folder. The verdict and all times: verify-board-{target}_{precision}.json.

Without a device: sh run.sh --device simulator, with BLIP_EDGE_TPU_PYTHON naming the Python
of a TPU-MLIR environment (make setup-tpu makes .venv-tpu/bin/python). Its times mean nothing.
"""


def _pins() -> list[str]:
    """What Python 3.8 needs, without markers: pip evaluates those for the machine it runs on."""
    lines = [line.partition(";") for line in _REQUIREMENTS.read_text().splitlines()]
    return [pin for pin, _, marker in lines if marker.strip() == 'python_version < "3.9"']


def bundle_folder(layout: Layout, target: str, precision: str) -> Path:
    """Where the folder of one target and set lies; it is needed again to judge its results."""
    return layout.root / "board-test" / f"{target}_{precision}"


def write_bundles(selection: Selection, config: Path) -> list[Path]:
    """One folder per chip and set of the selection.

    Raises:
        InputError: an artifact is missing or damaged.
    """
    layout = Layout(selection.pipeline)
    tasks = find_artifacts(selection)
    written = []
    with steps("board-test", len(selection.targets)) as progress:
        for target, precision in selection.targets:
            folder = bundle_folder(layout, target.name, precision)
            progress.start(folder.name)
            with staging(folder.parent, folder.name) as made:
                content: dict[str, Any] = {
                    **{"schema_version": BUNDLE_VERSION, "kind": "board_bundle"},
                    **{"pipeline": selection.pipeline.name},
                    **{"target": target.name, "precision": precision},
                    "tasks": {},
                }
                for task in tasks:
                    artifacts = next(
                        a for a in task.targets if (a.target, a.precision) == (target, precision)
                    )
                    content["tasks"][task.task] = _task(selection, layout, task, artifacts, made)
                (made / BUNDLE_FILE).write_text(json.dumps(content, indent=1))
                (made / "run.sh").write_text(_SCRIPT)
                (made / "README.txt").write_text(
                    _READ_ME.format(
                        **{"config": config, "pipeline": selection.pipeline.name},
                        **{"target": target.name, "precision": precision},
                        tasks=", ".join(selection.tasks),
                        wheels=" ".join(_pins()),
                    )
                )
                shutil.copy(_REQUIREMENTS, made / "requirements.txt")
                _copy_runtime(made)
                old = folder.with_name(f".{folder.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                if folder.exists():
                    folder.rename(old)
                made.rename(folder)
                shutil.rmtree(old, ignore_errors=True)
            written.append(folder)
            progress.done(None)
    return written


def _task(
    selection: Selection,
    layout: Layout,
    task: TaskArtifacts,
    artifacts: TargetArtifacts,
    made: Path,
) -> dict[str, Any]:
    with runtime_failures():
        files = shipped(task.manifest, list(artifacts.components.values()))
    for path in (*files.manifests, *files.digests):
        copied = made / path.relative_to(layout.root)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copied)
    cases = made / "cases"
    cases.mkdir(exist_ok=True)
    bench = TaskBench(task, selection.pipeline)
    try:
        components = {}
        for name, manifest in artifacts.components.items():
            path = cases / f"{task.task}.{name}.npz"
            described = _record(bench.samples(artifacts, name), path)
            components[str(name)] = {
                **{"key": manifest.key, "file": f"cases/{path.name}"},
                **{"sha256": file_sha256(path), "cases": described},
            }
        answers = _answers(bench, made)
    finally:
        bench.close()
    return {"components": components, "answers": answers}


def _record(samples: Iterable[Sample], path: Path) -> list[dict[str, Any]]:
    arrays: dict[str, Any] = {}
    described = []
    for index, sample in enumerate(samples):
        for group, values in (("inputs", sample.feeds), ("outputs", sample.expected)):
            arrays.update({f"{index}/{group}/{name}": array for name, array in values.items()})
        rows = {}
        for name, array in sample.expected.items():
            part = sample.rows_of(name)
            rows[name] = None if part is None else list(part.indices(array.shape[1])[:2])
        described.append(
            {
                **{"name": sample.name, "net": sample.net},
                **{"inputs": list(sample.feeds), "outputs": rows},
            }
        )
    if not described:
        raise InputError(f"{path.name}: no cases to record; set verify.component_scenes")
    np.savez_compressed(path, **arrays)
    return described


def _answers(bench: TaskBench, made: Path) -> list[dict[str, Any]]:
    largest = max((gate.scenes for gate in bench.pipeline.verify.tokens.values()), default=ANSWERS)
    count = min(ANSWERS, largest)
    images = made / "images"
    images.mkdir(exist_ok=True)
    found = []
    for case, answer in zip(bench.cases(count), bench.expected(count), strict=True):
        path = images / f"scene_{case.scene}.png"
        if not path.exists():
            case.image().save(path)
        found.append(
            {
                **{"name": case.name, "image": f"images/{path.name}", "text": case.text},
                "new_tokens": bench.new_tokens() if bench.task != "itm" else 0,
                "token_ids": [int(token) for token in answer.tokens],
                "probability": answer.probability,
                "cosine": answer.similarity,
            }
        )
    return found


def _copy_runtime(made: Path) -> None:
    shutil.copytree(
        REPOSITORY_ROOT / "runtime",
        made / "runtime",
        ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
    )
