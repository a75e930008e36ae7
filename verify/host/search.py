"""Searches other than greedy: beams move cache rows, penalties and lengths change the scores.

Token checks are greedy, where row i of a cache always stays row i. Here the runtime's own task
classes search with beams and with changed scores on the exported graphs, with growing and with
fixed caches; HuggingFace's ``generate`` says what must come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class SearchCase:
    """A search, by the arguments that HuggingFace and the runtime share."""

    name: str
    arguments: Mapping[str, Any]
    #: the answer must at least come so close to the most new tokens; None: it may end where it
    #: ends. A sure model keeps its best beam in one row, and a mild penalty changes nothing: past
    #: their natural end, answers are in doubt
    least_below_most: int | None = None
    #: also on caches of fixed lengths
    fixed: bool = False
    #: neither side is told how long answers may be
    own_length: bool = False


SEARCHES = (
    SearchCase("beam search", {"num_beams": 4}, 1, fixed=True),
    SearchCase("scores", {"repetition_penalty": 20.0}, 1, fixed=True),
    SearchCase("repeated n-grams", {"no_repeat_ngram_size": 2}, 1),
    SearchCase("minimum length", {}, 3),
    SearchCase("length penalty", {"num_beams": 4, "num_return_sequences": 4, "length_penalty": -4}),
    # Where longer answers are worth more, a search that does not stop early goes on to find some.
    SearchCase(
        "early stopping",
        {
            "num_beams": 4,
            "num_return_sequences": 4,
            "early_stopping": True,
            "length_penalty": 4.0,
        },
    ),
    SearchCase("default length", {"min_length": 10_000}, own_length=True),
)
SEARCH_NAMES = tuple(search.name for search in SEARCHES)
#: Cases per search.
CASES = 1

Sequences = list[tuple[int, ...]]


def compare_search(
    graphs: Graphs,
    nets: Mapping[Component, ComponentManifest],
    checkpoint: Checkpoint,
    cases: Sequence[Case],
    new_tokens: int,
) -> list[Finding]:
    """Whole answers of each search, all sequences that it returns; nothing to do for matching."""
    if checkpoint.task == "itm":
        return []
    fixed = padded_nets(graphs.manifest, nets)
    for search in SEARCHES:
        arguments = dict(search.arguments)
        if not search.own_length:
            arguments["max_new_tokens"] = new_tokens
        if search.least_below_most is not None:
            arguments["min_new_tokens"] = max(1, new_tokens - search.least_below_most)
        forms = (("", nets), ("fixed lengths: ", fixed))[: 1 + search.fixed]
        for case in cases[:CASES]:
            right = _right(checkpoint, case, arguments)
            for form, manifests in forms:
                found = _sequences(graphs, manifests, case, arguments)
                if found != right:
                    first = next(
                        (pair for pair in zip(found, right, strict=False) if pair[0] != pair[1]),
                        (found, right),
                    )
                    what = f"{form}{case.name}: {list(first[0])} instead of {list(first[1])}"
                    return [Finding("generation", search.name, what)]
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
