"""Beam search on the exported graphs: beams move cache rows.

Token checks are greedy, where row i of a cache always stays row i. Here the runtime's own task
classes search with beams, with growing and with fixed caches; HuggingFace's ``generate`` says what
must come out. Rules of scores and lengths need no net: ``search_rules`` has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from configs.schema import Component
from runtime.files.manifests import ComponentManifest
from runtime.tasks.artifacts import Artifacts
from runtime.tasks.registry import TASKS
from verify.answers.cases import Case
from verify.artifacts import runtime_failures
from verify.checkpoint.checkpoint import Checkpoint
from verify.host.finding import Finding
from verify.parity.inputs import Graphs, Recorder
from verify.parity.padding import padded_nets

#: How it is called in findings.
SEARCH = "beam search"
_BEAMS = 4

Sequences = list[tuple[int, ...]]


def compare_search(
    graphs: Graphs,
    nets: Mapping[Component, ComponentManifest],
    checkpoint: Checkpoint,
    case: Case,
    new_tokens: int,
) -> list[Finding]:
    """One whole search, all sequences that it returns; nothing to do for matching.

    Answers go on past their end: a sure model keeps its best beam in one row until there.
    """
    if checkpoint.task == "itm":
        return []
    arguments = {
        "num_beams": _BEAMS,
        "num_return_sequences": _BEAMS,
        "max_new_tokens": new_tokens,
        "min_new_tokens": max(1, new_tokens - 1),
    }
    right = _right(checkpoint, case, arguments)
    for form, manifests in (("", nets), ("fixed lengths: ", padded_nets(graphs.manifest, nets))):
        found = _sequences(graphs, manifests, case, arguments)
        wrong = next((pair for pair in zip(found, right, strict=False) if pair[0] != pair[1]), None)
        if wrong is not None or len(found) != len(right):
            first, wanted = wrong or (found, right)
            what = f"{form}{case.name}: {list(first)} instead of {list(wanted)}"
            return [Finding("generation", SEARCH, what)]
    return []


def _right(checkpoint: Checkpoint, case: Case, arguments: Mapping[str, Any]) -> Sequences:
    return checkpoint.generate([case.image()], [case.text], **arguments)[0]


def _sequences(
    graphs: Graphs,
    manifests: Mapping[Component, ComponentManifest],
    case: Case,
    arguments: Mapping[str, Any],
) -> Sequences:
    sessions: dict[str, Any] = {
        str(name): Recorder(manifest, graphs.sessions[name]) for name, manifest in manifests.items()
    }
    with runtime_failures():
        task = TASKS[case.task](Artifacts(graphs.manifest, sessions, "onnx", "f32"))
        best = task(case.image(), case.text, **arguments)
        return [one.token_ids for one in (best, *best.alternatives)]
