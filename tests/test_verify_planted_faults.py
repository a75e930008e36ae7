"""Planted faults are flagged by verification and named by bisection; clean builds are neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.bmodels import BMODEL_FAULTS
from tests.faults.clean_builds import examine
from tests.faults.fault import Fault
from tests.faults.planted_faults import FAULTS, Outcome, all_faults, run

#: One of each kind, for every run of the tests; ``make test-slow`` runs them all.
REPRESENTATIVE = (
    "one layer's weights off by 0.01 %",
    "exact GELU became tanh GELU",
    "LayerNorm epsilon 1e-5",
    "mask constant -100",
    "tied embedding changed in one row",
    "cross keys and values swapped",
    "IR: one layer scaled by 1.01",
    "IR: keys and values swapped",
    "IR: threshold saturated",
    "IR: f16 overflow",
    "IR: mask not added",
    "int8 IR: threshold of one layer over 8",
    "int8 IR: one layer's weights off by 1 %",
    "wrong end token",
    "tokenizer keeps capitals",
    "BGR instead of RGB",
    "stale cache row",
    "question's padding attended",
    "beams do not move their cache rows",
)
#: Share of faults whose layer or part bisection must name.
NAMED = 0.9


def chosen() -> list[Fault]:
    return [fault for fault in all_faults() if fault.name in REPRESENTATIVE]


@pytest.mark.parametrize("fault", chosen(), ids=lambda fault: fault.name)
def test_representative_fault_is_flagged_and_named(openvino_artifacts: Path, fault: Fault) -> None:
    outcome = run(openvino_artifacts, fault, hinted=True)
    assert outcome.flagged, outcome.verdict
    assert outcome.named, outcome.verdict


def test_the_suite_is_whole_and_its_names_are_unique() -> None:
    assert {fault.name for fault in chosen()} == set(REPRESENTATIVE)
    assert (len(all_faults()), len(BMODEL_FAULTS)) == (152, 20)
    every = [fault.name for faults in FAULTS.values() for fault in faults]
    assert len(set(every)) == len(every)


#: What verification cannot see: it moves outputs no further than the chip's own arithmetic does
#: (docs/bisect.md). A fault that leaves this list, or joins it, fails the slow test below.
KNOWN_BLIND_SPOTS = ["BM1684: LayerNorm epsilon 1e-3"]


def test_untouched_copy_raises_no_alarm(openvino_artifacts: Path) -> None:
    outcome = run(openvino_artifacts, Fault("none", "itm", "openvino", "nothing found"))
    assert not outcome.flagged, outcome.by
    assert outcome.named, outcome.verdict


def test_clean_build_of_another_checkpoint_raises_no_alarm() -> None:
    assert examine("caption", 101) == []


@pytest.mark.slow
def test_every_fault_is_flagged_and_most_are_named(openvino_artifacts: Path) -> None:
    outcomes: list[Outcome] = [run(openvino_artifacts, fault) for fault in all_faults()]
    assert [outcome.fault.name for outcome in outcomes if not outcome.flagged] == []
    named = [outcome for outcome in outcomes if outcome.named]
    unnamed = [(o.fault.name, o.verdict) for o in outcomes if not o.named]
    assert len(named) >= NAMED * len(outcomes), unnamed


@pytest.mark.slow
def test_every_bmodel_fault_but_the_blind_spots_is_flagged_and_most_are_named(
    reference_artifacts: Path,
) -> None:
    outcomes: list[Outcome] = [run(reference_artifacts, fault) for fault in BMODEL_FAULTS]
    assert [outcome.fault.name for outcome in outcomes if not outcome.flagged] == KNOWN_BLIND_SPOTS
    unnamed = [(o.fault.name, o.verdict) for o in outcomes if not o.named]
    assert len(unnamed) <= (1 - NAMED) * len(outcomes), unnamed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_clean_builds_raise_no_alarm(seed: int) -> None:
    tasks = ("caption", "vqa", "itm")
    assert examine(tasks[seed % 3], seed) == []  # type: ignore[arg-type]
