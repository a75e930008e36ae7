"""Calls to compare, and those that reach the further shapes of nets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from configs.schema import Component
from runtime.decoding.decoder_run import CROSS_MASK, additive
from runtime.files.manifests import ComponentManifest, Net
from runtime.files.nets import FIRST_LOGIT
from runtime.sessions.session import ArrayDict, Session

#: Outputs with one row of axis 1 per text token: padded rows are compared with nothing.
_TOKEN_OUTPUTS = ("last_hidden_state", "new.", "cross.")
SELF_MASK = "self_attention_mask"
#: Inputs whose second axis counts the tokens of a text that is padded on the right.
_TEXTS = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class Sample:
    """One call of one component with what the exported graph answers.

    ``rows`` is the part of axis 1 of token outputs that holds real tokens; None means all of it.
    """

    component: Component
    name: str
    net: str | None
    feeds: ArrayDict
    expected: ArrayDict
    rows: slice | None = None

    def rows_of(self, output: str) -> slice | None:
        """Rows of axis 1 to compare for one output."""
        return self.rows if output.startswith(_TOKEN_OUTPUTS) else None

    def compared(self, output: str, array: np.ndarray) -> np.ndarray:
        """An output without what stands for padding, where that is along axis 0."""
        every = output == "logits" and FIRST_LOGIT in self.feeds and self.rows is not None
        return array[self.rows] if every else array


def variant_samples(
    manifest: ComponentManifest, onnx: Session, samples: Sequence[Sample]
) -> list[Sample]:
    """One sample for each shape of a net that none of ``samples`` reaches by its shapes.

    The net's own shape counts as one: a short prompt takes a shorter one, where there is one.

    Args:
        manifest: the artifact with its nets and their variants.
        onnx: the exported graph, which takes any shape.
        samples: samples of this component.
    """
    made = []
    for net in manifest.nets:
        own = [sample for sample in samples if sample.net == net.name]
        reached = {net.taking(_shapes(sample.feeds)).name for sample in own}
        for variant in net.shapes:
            if variant.name not in reached and (sample := _sample(variant, net, onnx, own)):
                made.append(sample)
    return made


def _sample(variant: Net, net: Net, onnx: Session, samples: Sequence[Sample]) -> Sample | None:
    batch = variant.axes.get("batch", 1)
    rows = list(_rows(variant, samples))
    if not rows:
        return None
    taken = list(islice(cycle(rows), batch))
    feeds = {
        name: np.concatenate([row.feeds[name] for row in taken]) if array.ndim else array
        for name, array in taken[0].feeds.items()
    }
    if net.taking(_shapes(feeds)).name != variant.name:
        return None
    name = " + ".join(dict.fromkeys(row.name for row in taken))
    return Sample(
        taken[0].component,
        f"{variant.name}: {name}",
        net.name,
        feeds,
        onnx.run(feeds),
        taken[0].rows,
    )


def _rows(variant: Net, samples: Sequence[Sample]) -> Iterator[Sample]:
    """Samples of one row that fit a variant but for its batch; texts are cut, prompts padded."""
    wanted = {spec.name: spec.shape[1:] for spec in variant.inputs}
    for sample in samples:
        feeds, rows = dict(sample.feeds), sample.rows
        mask = feeds.get("attention_mask")
        if mask is not None:
            length = variant.axes["text_tokens"]
            if mask[:, length:].any():
                continue
            feeds |= {name: feeds[name][:, :length] for name in _TEXTS if name in feeds}
        elif SELF_MASK in feeds:
            pads = variant.axes.get("text_tokens", 1) - feeds["input_ids"].shape[1]
            if pads > 0:
                feeds, rows = _padded_left(feeds, pads), _later(rows, pads)
                if FIRST_LOGIT in feeds:
                    feeds[FIRST_LOGIT] = feeds[FIRST_LOGIT] - pads
        if all(a.shape[1:] == wanted.get(name, a.shape[1:]) for name, a in feeds.items()):
            yield Sample(sample.component, sample.name, sample.net, feeds, {}, rows)


def _padded_left(feeds: ArrayDict, pads: int) -> ArrayDict:
    """A decoder's call with ``pads`` more tokens on the left, which no other token sees.

    As the runtime pads a prompt: ids and positions 0, each pad seeing itself and those before it.
    """
    tokens = feeds["input_ids"].shape[1]
    mask = feeds[SELF_MASK]
    past = mask.shape[3] - tokens
    allowed = np.zeros((len(mask), 1, tokens + pads, past + tokens + pads), dtype=bool)
    allowed[:, :, :pads, past : past + pads] = np.tril(np.ones((pads, pads), dtype=bool))
    wide = additive(allowed)
    wide[:, :, pads:, :past] = mask[..., :past]
    wide[:, :, pads:, past + pads :] = mask[..., past:]
    left = ((0, 0), (pads, 0))
    padded = feeds | {name: np.pad(feeds[name], left) for name in ("input_ids", "position_ids")}
    padded[SELF_MASK] = wide
    if CROSS_MASK in feeds:
        first = feeds[CROSS_MASK][:, :, :1]
        padded[CROSS_MASK] = np.concatenate([np.repeat(first, pads, axis=2), feeds[CROSS_MASK]], 2)
    return padded


def _later(rows: slice | None, pads: int) -> slice:
    """The rows of real tokens behind so many pads more; all were real where ``rows`` is None."""
    if rows is None:
        return slice(pads, None)
    return slice((rows.start or 0) + pads, None if rows.stop is None else rows.stop + pads)


def _shapes(feeds: ArrayDict) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds.items()}
