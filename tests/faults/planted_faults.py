"""Artifacts with one planted defect each: realistic, re-sealed, wrong in their numbers only.

``python -m tests.faults.planted_faults`` (from the repository root) plants every one of them in
turn into a copy of the reference artifacts, verifies, bisects, and prints the table of findings.
``python -m tests.faults.planted_faults caches search`` does so with these kinds only, ``bmodels``
among them needs the chips' tools. ``quick`` looks at each fault's own component only. Further words
select faults by name, ``2/3`` the second of three shards.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from configs.errors import BlipEdgeError
from configs.schema import Task
from pipeline.command import select
from tests.faults.batches import BATCH_FAULTS
from tests.faults.bmodels import BMODEL_FAULTS
from tests.faults.caches import CACHE_FAULTS
from tests.faults.fault import CHIP_FOLDERS, Fault
from tests.faults.graphs import GRAPH_FAULTS
from tests.faults.images import IMAGE_FAULTS
from tests.faults.integers import INTEGER_FAULTS
from tests.faults.irs import IR_FAULTS
from tests.faults.manifests import SETTING_FAULTS
from tests.faults.search import SEARCH_FAULTS
from tests.faults.texts import TEXT_FAULTS
from verify.artifacts import find_artifacts
from verify.bisect.diagnosis import diagnose
from verify.pipeline import verify
from verify.results import STORE_FILE

ROOT = Path(__file__).resolve().parent.parent.parent
#: Copied with a task: not chips' files, logs or stored results.
_LEFT_OUT = (".*.lock", "verify*", "work", "logs", "bisect", "*.combined.json")


@dataclass(frozen=True)
class Outcome:
    """What verification and bisection said about a fault."""

    fault: Fault
    flagged: bool
    by: str
    verdict: str
    seconds: float

    @property
    def named(self) -> bool:
        """Whether the verdict names the right layer or part."""
        return re.search(self.fault.named, self.verdict) is not None


#: Every fault by what it breaks. The chips' need their tools and artifacts.
FAULTS: dict[str, list[Fault]] = {
    "graphs": GRAPH_FAULTS,
    "irs": IR_FAULTS,
    "integers": INTEGER_FAULTS,
    "manifests": SETTING_FAULTS,
    "images": IMAGE_FAULTS,
    "texts": TEXT_FAULTS,
    "caches": CACHE_FAULTS,
    "search": SEARCH_FAULTS,
    "batches": BATCH_FAULTS,
    "bmodels": BMODEL_FAULTS,
}


def all_faults() -> list[Fault]:
    """Every fault that needs no chip's tools, graphs first."""
    return [fault for kind, faults in FAULTS.items() if kind != "bmodels" for fault in faults]


def verified(reference: Path, fault: Fault) -> Path:
    """A verified copy of one task, made once: its stored results serve what no fault touches."""
    chip = fault.target if fault.on_chip else ""
    key = (reference, fault.task, fault.precision, chip)
    if key not in _VERIFIED:
        folder = TemporaryDirectory(prefix="verified-")
        config = private_copy(reference, Path(folder.name), fault)
        selection = select(config, target=chip or "openvino")
        if chip:
            # The exported graphs only: each fault's component is verified on the chip by itself.
            selection = replace(selection, targets=())
        assert verify(selection, config).passed
        _VERIFIED[key] = folder
    return Path(_VERIFIED[key].name) / "reference"


_VERIFIED: dict[tuple[Path, Task, str, str], TemporaryDirectory[str]] = {}


def private_copy(reference: Path, root: Path, fault: Fault) -> Path:
    """One task's artifacts below ``root`` and a pipeline file with few cases; returns the file."""
    task, precision = fault.task, fault.precision
    targets = [fault.target] if fault.on_chip else ["openvino"]
    others = [CHIP_FOLDERS[chip] for chip in CHIP_FOLDERS if chip not in targets]
    if fault.on_chip:
        others.append("openvino")
    ignored = shutil.ignore_patterns(*_LEFT_OUT, *others)
    shutil.copytree(reference / task, root / "reference" / task, ignore=ignored)
    if fault.on_chip:
        # Prepared graphs: a bisection compiles them again.
        (root / "reference" / "work").mkdir()
        for prepared in (reference / "work").glob(f"{task}_*"):
            (root / "reference" / "work" / prepared.name).symlink_to(prepared.resolve())
    if reference.parent in {Path(folder.name) for folder in _VERIFIED.values()}:
        shutil.copy(reference / STORE_FILE, root / "reference")
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    data["artifacts"] = str(root)
    data["tasks"] = {task: data["tasks"][task]}
    data["targets"] = {target: {"precisions": [precision]} for target in targets}
    data["verify"] = {
        "seed": 0,
        "component_scenes": 2,
        "tokens": {name: {"scenes": 6} for name in ("onnx", *targets)},
    }
    path = root / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def examine(config: Path, fault: Fault, *, hinted: bool) -> tuple[bool, str, str]:
    """(flagged, by which checks, bisection's verdict) of the artifacts that ``config`` names.

    ``hinted`` looks at the fault's component only, which is quicker and what chips always get.
    """
    component = fault.component if hinted or fault.on_chip else None
    target = fault.target if fault.on_chip else "openvino"
    selection = select(config, component=component, target=target)
    if fault.target == "onnx":
        selection = replace(selection, targets=())
    with fault.active():
        try:
            result = verify(selection, config)
            failed = [check for check in result.checks if not check.passed]
            flagged = bool(failed)
            by = ", ".join(
                dict.fromkeys(
                    " ".join(p for p in (c.subject.gap, c.subject.variant) if p) for c in failed
                )
            )
        except BlipEdgeError as error:
            flagged, by = True, type(error).__name__
        try:
            (task,) = find_artifacts(selection)
            artifacts = task.onnx if fault.target == "onnx" else task.targets[0]
            verdict = str(diagnose(selection, task, artifacts, "exact").verdict or "nothing found")
        except BlipEdgeError as error:
            verdict = f"error: {error}"
    return flagged, by, verdict


def run(reference: Path, fault: Fault, *, hinted: bool = False) -> Outcome:
    """Plants one fault into a private copy and examines it."""
    started = time.perf_counter()
    with TemporaryDirectory(prefix="planted-") as folder:
        config = private_copy(verified(reference, fault), Path(folder), fault)
        fault.plant(Path(folder) / "reference" / fault.task)
        if fault.active is not nullcontext:
            # A patched runtime leaves its sources as they are, and with them the results' keys.
            (Path(folder) / "reference" / STORE_FILE).unlink()
        flagged, by, verdict = examine(config, fault, hinted=hinted)
    return Outcome(fault, flagged, by, verdict, time.perf_counter() - started)


@contextmanager
def _quiet() -> Iterator[None]:
    from pipeline.console import messages

    before = messages.quiet
    messages.quiet = True
    try:
        yield
    finally:
        messages.quiet = before


def main() -> int:
    """Runs the whole suite; exit code 1 if a fault is not flagged, or fewer than 90 % are named."""
    arguments = [word for word in sys.argv[1:] if "/" not in word]
    part, parts = next((map(int, w.split("/")) for w in sys.argv[1:] if "/" in w), (1, 1))
    quick = "quick" in arguments
    arguments = [word for word in arguments if word != "quick"]
    kinds = [word for word in arguments if word in FAULTS]
    chosen = [fault for kind in kinds for fault in FAULTS[kind]] if kinds else all_faults()
    arguments = [word for word in arguments if word not in FAULTS]
    every = chosen[part - 1 :: parts]
    faults = [f for f in every if not arguments or any(w in f.name for w in arguments)]
    outcomes = []
    reference = ROOT / "models" / "artifacts" / "reference"
    for fault in faults:
        with _quiet():
            outcome = run(reference, fault, hinted=quick)
        outcomes.append(outcome)
        marks = (
            "flagged" if outcome.flagged else "MISSED",
            "named" if outcome.named else "UNNAMED",
        )
        print(
            f"{fault.name:44} {fault.task:8} {marks[0]:8} {marks[1]:8} {outcome.seconds:5.1f} s  "
            f"{outcome.verdict[:150]}  [{outcome.by[:120]}]",
            flush=True,
        )
    flagged = sum(outcome.flagged for outcome in outcomes)
    named = sum(outcome.named for outcome in outcomes)
    print(json.dumps({"faults": len(outcomes), "flagged": flagged, "named": named}))
    return 0 if flagged == len(outcomes) and named >= 0.9 * len(outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
