"""Searches other than greedy: beams move cache rows, penalties and lengths change the scores.

Token checks are greedy, where row i of a cache always stays row i. Here the runtime's own task
classes search with beams and with changed scores on the exported graphs, with growing and with
fixed caches; HuggingFace's ``generate`` says what must come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from configs.schema import Component
from runtime.answering import QuestionAnswerer
from runtime.artifacts import Artifacts
from runtime.captioning import Captioner
from runtime.manifests import ComponentManifest
from runtime.tasks import TASKS
from verify.artifacts import runtime_failures
from verify.cases import Case
from verify.inputs import Graphs, Recorder
from verify.padding import padded_nets
from verify.stages.finding import Finding
from verify.stages.settings import encoder_token
from verify.tracing.checkpoint_trace import Checkpoint

#: Name of a search and its arguments, the same in HuggingFace and in the runtime. Answers go on
#: past their natural end, where a model is in doubt: a sure one keeps its best beam in one row, and
#: a mild penalty changes nothing.
SEARCHES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("beam search", {"num_beams": 4}),
    ("scores", {"repetition_penalty": 20.0}),
)
SEARCH_NAMES = tuple(name for name, _ in SEARCHES)
#: Cases per search, each with growing and with fixed caches.
CASES = 1


def compare_search(
    graphs: Graphs,
    nets: Mapping[Component, ComponentManifest],
    checkpoint: Checkpoint,
    cases: Sequence[Case],
    new_tokens: int,
) -> list[Finding]:
    """Whole answers of each search; nothing to do for matching."""
    if checkpoint.task == "itm":
        return []
    forms = (("", nets), ("fixed lengths: ", padded_nets(graphs.manifest, nets)))
    found = []
    for name, own in SEARCHES:
        arguments = {**own, "min_new_tokens": new_tokens - 1}
        for case in cases[:CASES]:
            right = _right(checkpoint, case, new_tokens, arguments)
            for form, manifests in forms:
                tokens = _tokens(graphs, manifests, case, new_tokens, arguments)
                if tokens != right:
                    what = f"{form}{case.name}: {list(tokens)} instead of {list(right)}"
                    found.append(Finding("generation", name, what))
    return found[:1]


def _right(
    checkpoint: Checkpoint, case: Case, new_tokens: int, arguments: Mapping[str, Any]
) -> tuple[int, ...]:
    ids = [int(token) for token in checkpoint.tokenizer(case.text)["input_ids"]]
    if checkpoint.start_with_encoder_token and case.task == "vqa":
        ids[0] = encoder_token(checkpoint) or ids[0]
    return checkpoint.generated(case.image(), ids, max_new_tokens=new_tokens, **arguments)


def _tokens(
    graphs: Graphs,
    manifests: Mapping[Component, ComponentManifest],
    case: Case,
    new_tokens: int,
    arguments: Mapping[str, Any],
) -> tuple[int, ...]:
    sessions: dict[str, Any] = {
        str(name): Recorder(manifest, graphs.sessions[name]) for name, manifest in manifests.items()
    }
    with runtime_failures():
        task = TASKS[case.task](Artifacts(graphs.manifest, sessions, "onnx", "f32"))
        if isinstance(task, Captioner):
            images, texts = [case.image()], [case.text]
            captions = task.batch(images, texts, max_new_tokens=new_tokens, **arguments)
            return captions[0].token_ids
        if isinstance(task, QuestionAnswerer):
            images, questions = [case.image()], [[case.text]]
            answers = task.batch(images, questions, max_new_tokens=new_tokens, **arguments)
            return answers[0][0].token_ids
    raise TypeError(f"{case.task}: generates nothing")
