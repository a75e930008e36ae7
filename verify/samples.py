"""Calls to compare, and those that reach the further stages of nets with several shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from configs.schema import Component
from runtime.manifests import ComponentManifest, Net
from runtime.sessions import ArrayDict, Session

#: Outputs with one row of axis 1 per text token: padded rows are compared with nothing.
_TOKEN_OUTPUTS = ("last_hidden_state", "new.", "cross.")
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


def stage_samples(
    manifest: ComponentManifest, onnx: Session, samples: Sequence[Sample]
) -> list[Sample]:
    """One sample for each stage of a net that none of ``samples`` reaches by its shapes.

    Args:
        manifest: the artifact with its nets and their variants.
        onnx: the exported graph, which takes any shape.
        samples: samples of this component.
    """
    made = []
    for net in manifest.nets:
        own = [sample for sample in samples if sample.net == net.name]
        reached = {net.taking(_shapes(sample.feeds)).name for sample in own}
        for stage in net.variants:
            if stage.name not in reached and (sample := _sample(stage, net, onnx, own)):
                made.append(sample)
    return made


def _sample(stage: Net, net: Net, onnx: Session, samples: Sequence[Sample]) -> Sample | None:
    batch = stage.axes.get("batch", 1)
    rows = list(_rows(stage, samples))
    if not rows:
        return None
    taken = list(islice(cycle(rows), batch))
    feeds = {name: np.concatenate([row.feeds[name] for row in taken]) for name in taken[0].feeds}
    if net.taking(_shapes(feeds)).name != stage.name:
        return None
    name = " + ".join(dict.fromkeys(row.name for row in taken))
    return Sample(
        taken[0].component, f"{stage.name}: {name}", net.name, feeds, onnx.run(feeds), taken[0].rows
    )


def _rows(stage: Net, samples: Sequence[Sample]) -> Iterator[Sample]:
    """Samples of one row that fit a stage but for its batch, their texts cut to its length."""
    wanted = {spec.name: spec.shape[1:] for spec in stage.inputs}
    for sample in samples:
        feeds = dict(sample.feeds)
        mask = feeds.get("attention_mask")
        if mask is not None:
            length = stage.axes["text_tokens"]
            if mask[:, length:].any():
                continue
            feeds |= {name: feeds[name][:, :length] for name in _TEXTS if name in feeds}
        if all(a.shape[1:] == wanted.get(name, a.shape[1:]) for name, a in feeds.items()):
            yield Sample(sample.component, sample.name, sample.net, feeds, {}, sample.rows)


def _shapes(feeds: ArrayDict) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds.items()}
