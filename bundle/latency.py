"""How fast a bundle's artifact is, and whether that was measured, on what, or is an estimate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bundle.verdict import Verdict
from configs.layout import Layout
from pipeline.json_file import WRONG, read_object
from pipeline.manifest import file_sha256
from runtime.board_test import BUNDLE_FILE
from runtime.tasks.artifacts import SIMULATOR
from verify.board.bundle import bundle_folder
from verify.board.judge import VERDICT


def latency(verdict: Verdict, layout: Layout) -> Iterator[str]:
    """Lines for people; nothing is measured here: that would differ from run to run."""
    measured = _measured(verdict, layout)
    nets = [
        (f"{manifest.component} {net.name}", net.latency_ms)
        for manifest in verdict.shipped.components
        for net in manifest.nets
    ]
    for name, estimate in nets:
        place = name.replace(" ", "/")
        if place in measured:
            yield f"{name}: {measured[place]:.3f} ms, measured on the device"
        elif estimate is not None:
            yield f"{name}: {estimate:.3f} ms, estimated by the vendor's compiler, not measured"
    if all(estimate is None for _, estimate in nets) and not measured:
        yield "not measured: it depends on the machine; sh run.sh COMMAND ... --timing measures it"


def _measured(verdict: Verdict, layout: Layout) -> Mapping[str, float]:
    """Milliseconds per net that a board took for exactly these artifacts; none otherwise."""
    target, precision = verdict.target.name, verdict.target.precision
    folder = bundle_folder(layout, target, precision)
    try:
        results = read_object(layout.root / VERDICT.format(target=target, precision=precision))
        board = read_object(folder / BUNDLE_FILE)
        same = results["bundle"] == file_sha256(folder / BUNDLE_FILE) and _same(verdict, board)
        if not same or results["passed"] is not True or results["device"] == SIMULATOR:
            return {}
        return {
            str(net["net"]): float(net["measured_ms"])
            for net in results["times"][verdict.task.task]["nets"]
        }
    except WRONG:
        return {}


def _same(verdict: Verdict, board: dict[str, Any]) -> bool:
    components = board["tasks"][verdict.task.task]["components"]
    keys = {name: item.key for name, item in verdict.target.components.items()}
    return {name: described["key"] for name, described in components.items()} == keys
