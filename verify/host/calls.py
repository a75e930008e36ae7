"""What the runtime feeds its nets, call by call, against what each input means.

The runtime's own task classes run on the exported graphs; every call is recorded and judged by the
definition of its inputs: which token stands at which position, what it may attend, which cache row
belongs to which token. So a wrong mask or position is named even where the answer survives it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.schema import TASK_COMPONENTS, Component
from runtime.decoding.batching import fixed_length
from runtime.files.manifests import ComponentManifest, Net
from runtime.tasks.artifacts import Artifacts
from runtime.tasks.registry import TASKS
from verify.answers.cases import Case
from verify.artifacts import runtime_failures
from verify.checkpoint.checkpoint import MASKED, Checkpoint
from verify.host.finding import Finding
from verify.layers.graph import Array
from verify.parity.inputs import Graphs, Recorder
from verify.parity.padding import padded_nets

#: Tokens of a long answer in nets whose cache has no end: more than are held without growing.
GROWN_TOKENS = 40

Call = tuple[Net, dict[str, Array], dict[str, Array]]


@dataclass(frozen=True)
class _Run:
    """One case, answered; ``calls`` by component in the order they were made."""

    case: Case
    calls: dict[Component, list[Call]]
    tokens: tuple[int, ...]

    def one(self, component: Component) -> Call:
        return self.calls[component][0]


def compare_host(
    graphs: Graphs,
    nets: Mapping[Component, ComponentManifest],
    checkpoint: Checkpoint,
    cases: Sequence[Case],
    new_tokens: int,
) -> list[Finding]:
    """Every call of a few whole answers, in dynamic nets and in nets of fixed lengths."""
    found: list[Finding] = []
    for form, manifests in (("", nets), ("fixed lengths: ", padded_nets(graphs.manifest, nets))):
        for case in cases:
            run = _run(graphs, manifests, case, new_tokens)
            for finding in _judge(run, checkpoint, new_tokens):
                found.append(Finding(finding.part, finding.where, form + finding.what))
            if found:
                return _distinct(found)
        for finding in _full_caches(graphs, manifests, cases[0], checkpoint):
            found.append(Finding(finding.part, finding.where, form + finding.what))
        if found:
            return _distinct(found)
    return found


def _full_caches(
    graphs: Graphs,
    manifests: Mapping[Component, ComponentManifest],
    case: Case,
    checkpoint: Checkpoint,
) -> Iterator[Finding]:
    """An answer that goes on until no cache holds more: the last rows, and those of a larger one.

    Of dynamic nets the cache has no end: past where its memory grows, but not past the positions.
    """
    if case.task == "itm":
        return
    prompt = _prompt(case, checkpoint)
    net = manifests["text_decoder"].nets[-1]
    slots = fixed_length(net, "past.0.key")
    positions = graphs.manifest.text.maximum_positions
    most = min(slots + 2 if slots else GROWN_TOKENS, positions + 1) - len(prompt)
    if most < 1:
        return
    run = _run(graphs, manifests, case, most, min_new_tokens=most)
    mask = run.one("text_encoder")[1]["attention_mask"] if case.task == "vqa" else None
    yield from _decoding(run, prompt, mask, banned=checkpoint.end_token)


def _distinct(found: Sequence[Finding]) -> list[Finding]:
    first: dict[tuple[str, str], Finding] = {}
    for finding in found:
        first.setdefault((finding.part, finding.where), finding)
    return list(first.values())


def _run(
    graphs: Graphs,
    manifests: Mapping[Component, ComponentManifest],
    case: Case,
    new_tokens: int,
    **generation: int,
) -> _Run:
    recorders = {
        name: Recorder(manifest, graphs.sessions[name]) for name, manifest in manifests.items()
    }
    sessions: dict[str, Any] = {str(name): recorder for name, recorder in recorders.items()}
    with runtime_failures():
        task = TASKS[case.task](Artifacts(graphs.manifest, sessions, "onnx", "f32"))
        asked = {"max_new_tokens": new_tokens, **generation} if task.generates else {}
        found = task(case.image(), case.text, **asked).record()
    calls = {name: recorder.calls for name, recorder in recorders.items()}
    return _Run(case, calls, tuple(found.get("token_ids", ())))


def _judge(run: _Run, checkpoint: Checkpoint, new_tokens: int) -> Iterator[Finding]:
    for component in TASK_COMPONENTS[run.case.task]:
        if not run.calls[component]:
            yield Finding("host", component, f"{run.case.name}: never called")
            return
    yield from _image(run, checkpoint)
    image = run.one("vision_encoder")[2]["image_embeds"]
    if run.case.task != "caption":
        yield from _text(run, checkpoint, image, "text_encoder")
    if run.case.task == "itm":
        yield from _text(run, checkpoint, image, "text_encoder_unimodal")
        yield from _equal("vision_projection", "image_embeds", run, image)
        return
    states = image
    mask: Array | None = None
    if run.case.task == "vqa":
        states = run.one("text_encoder")[2]["last_hidden_state"]
        mask = run.one("text_encoder")[1]["attention_mask"]
    yield from _equal("cross_key_values", "encoder_hidden_states", run, states)
    prompt = _prompt(run.case, checkpoint)
    yield from _decoding(run, prompt, mask)
    yield from _ending(run, checkpoint, prompt, new_tokens)


def _prompt(case: Case, checkpoint: Checkpoint) -> list[int]:
    start = int(checkpoint.text_config.bos_token_id)
    if case.task == "vqa" or not case.text:
        return [start]
    return [start, *checkpoint.token_ids(case.text)[1:-1]]


def _image(run: _Run, checkpoint: Checkpoint) -> Iterator[Finding]:
    expected = checkpoint.processor([run.case.image()], return_tensors="np")["pixel_values"]
    found = run.one("vision_encoder")[1]["pixel_values"]
    if not np.array_equal(found, expected):
        yield Finding("preprocessing", "pixel values", f"{run.case.name}: not HuggingFace's")


def _text(
    run: _Run, checkpoint: Checkpoint, image: Array, component: Component
) -> Iterator[Finding]:
    expected = checkpoint.token_ids(run.case.text, encoded=component == "text_encoder")
    feeds = run.one(component)[1]
    ids, mask = feeds["input_ids"][0], feeds["attention_mask"][0]
    count = len(expected)
    pad = int(checkpoint.text_config.pad_token_id)
    if [int(i) for i in ids[:count]] != expected:
        same = [int(i) for i in ids[1:count]] == expected[1:]
        where = f"{component} input_ids" + (" first token" if same else "")
        what = f"{run.case.name}: {[int(i) for i in ids[:count]]} instead of {expected}"
        yield Finding("tokenization", where, what)
    if np.any(ids[count:] != pad):
        what = f"{run.case.name}: padding is {int(ids[count])} instead of {pad}"
        yield Finding("host", f"{component} pad token", what)
    if not (np.all(mask[:count] == 1) and np.all(mask[count:] == 0)):
        what = f"{run.case.name}: {mask.tolist()} for {count} tokens"
        yield Finding("host", f"{component} attention_mask", what)
    if component == "text_encoder":
        yield from _equal(component, "image_embeds", run, image)


def _equal(component: Component, name: str, run: _Run, expected: Array) -> Iterator[Finding]:
    found = run.one(component)[1][name]
    if not np.array_equal(found, expected):
        what = f"{run.case.name}: not what the net before it answered"
        yield Finding("host", f"{component} {name}", what)


def _decoding(
    run: _Run, prompt: Sequence[int], mask: Array | None, banned: int | None = None
) -> Iterator[Finding]:
    """``banned`` is a token that may not come although it is best."""
    cross = run.one("cross_key_values")[2]
    rows: dict[str, Array] = {}
    past, tokens = 0, list(prompt)
    for number, (_, feeds, outputs) in enumerate(run.calls["text_decoder"]):
        label = f"{run.case.name}, {'first pass' if number == 0 else f'step {number}'}"
        count = len(tokens)
        if feeds["input_ids"].shape[1] < count:
            # The other inputs are as wrong as the number of tokens.
            yield from _ids(feeds, tokens, label)
            return
        found = [
            *_ids(feeds, tokens, label),
            *_positions(feeds, count, past, label),
            *_self_mask(feeds, count, past, label),
            *_cache(feeds, rows, past, label),
            *_cross(feeds, cross, mask, label),
        ]
        if found:
            yield from found
            return
        for name, array in outputs.items():
            if name.startswith("new."):
                key = name.replace("new.", "past.")
                kept = [rows[key]] if key in rows else []
                rows[key] = np.concatenate([*kept, array[:, array.shape[1] - count :]], axis=1)
        past += count
        logits = np.array(outputs["logits"][0])
        if banned is not None:
            logits[banned] = -np.inf
        tokens = [int(logits.argmax())]


def _ids(feeds: Mapping[str, Array], tokens: Sequence[int], label: str) -> Iterator[Finding]:
    found = [int(i) for i in feeds["input_ids"][0, -len(tokens) :]]
    if found != list(tokens):
        yield Finding(
            "host", "text_decoder input_ids", f"{label}: {found} instead of {list(tokens)}"
        )


def _positions(feeds: Mapping[str, Array], count: int, past: int, label: str) -> Iterator[Finding]:
    expected = np.arange(past, past + count)
    found = feeds["position_ids"][0, -count:]
    if not np.array_equal(found, expected):
        what = f"{label}: {found.tolist()} instead of {expected.tolist()}"
        yield Finding("host", "text_decoder position_ids", what)


def _self_mask(feeds: Mapping[str, Array], count: int, past: int, label: str) -> Iterator[Finding]:
    mask = feeds["self_attention_mask"][0, 0]
    slots = feeds["past.0.key"].shape[1]
    tokens = feeds["input_ids"].shape[1]
    first = slots + tokens - count
    for row in range(count):
        allowed = np.zeros(slots + tokens, dtype=bool)
        allowed[:past] = True
        allowed[first : first + row + 1] = True
        given = mask[tokens - count + row]
        where = "text_decoder self_attention_mask"
        if np.any(given[allowed] != 0):
            column = int(np.flatnonzero(allowed & (given != 0))[0])
            yield Finding("host", where, f"{label}: column {column} of row {row} is masked")
            return
        if np.any(given[~allowed] != MASKED):
            column = int(np.flatnonzero(~allowed & (given != MASKED))[0])
            kind = "padding" if slots <= column < first else "a later token"
            kind = "an unused cache slot" if column < slots else kind
            what = f"{label}: {given[column]:g} on {kind} (column {column}) instead of {MASKED:g}"
            yield Finding("host", where, what)
            return


def _cache(
    feeds: Mapping[str, Array], rows: Mapping[str, Array], past: int, label: str
) -> Iterator[Finding]:
    for name, expected in rows.items():
        found = feeds[name][:, :past]
        if found.shape != expected[:, :past].shape or not np.array_equal(found, expected[:, :past]):
            wrong = [
                r
                for r in range(past)
                if not np.array_equal(found[:, r : r + 1], expected[:, r : r + 1])
            ]
            what = f"{label}: rows {wrong[:4]} are not those of their tokens"
            yield Finding("host", f"text_decoder cache {name}", what)
            return


def _cross(
    feeds: Mapping[str, Array], cross: Mapping[str, Array], mask: Array | None, label: str
) -> Iterator[Finding]:
    for name, expected in cross.items():
        if not np.array_equal(feeds[name], expected):
            what = f"{label}: not what cross_key_values answered"
            yield Finding("host", f"text_decoder {name}", what)
            return
    given = feeds.get("cross_attention_mask")
    if given is None:
        return
    expected = np.zeros(next(iter(cross.values())).shape[1], dtype=np.float32)
    if mask is not None:
        expected = np.where(mask[0] != 0, np.float32(0), np.float32(MASKED))
    if np.any(given[0, 0, -1] != expected):
        column = int(np.flatnonzero(given[0, 0, -1] != expected)[0])
        what = f"{label}: {given[0, 0, -1, column]:g} at question token {column}"
        yield Finding(
            "host", "text_decoder cross_attention_mask", f"{what} instead of {expected[column]:g}"
        )


def _ending(
    run: _Run, checkpoint: Checkpoint, prompt: Sequence[int], new_tokens: int
) -> Iterator[Finding]:
    end = checkpoint.end_token
    expected = list(prompt)
    for _, _, outputs in run.calls["text_decoder"]:
        expected.append(int(outputs["logits"][0].argmax()))
        if expected[-1] == end:
            break
    full = len(prompt) + new_tokens
    if list(run.tokens) != expected or not (expected[-1] == end or len(expected) >= full):
        where = "end token" if list(run.tokens)[: len(expected)] == expected else "greedy choice"
        what = f"{run.case.name}: {list(run.tokens)} instead of {expected}"
        if list(run.tokens) == expected:
            where, what = "end token", f"{run.case.name}: stops without [SEP] after {len(expected)}"
        yield Finding("generation", where, what)
