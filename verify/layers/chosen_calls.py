"""Which calls an IR's layers are compared on, and calls made of them that no scene makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from runtime.files.manifests import ComponentManifest
from runtime.files.nets import FIRST_LOGIT
from verify.checkpoint.checkpoint import MASKED
from verify.layers.graph import ExportedGraph
from verify.parity.inputs import Sample


def chosen(samples: Sequence[Sample]) -> Iterator[Sample]:
    """The first, a middle and the last sample, and the first with parts of its masks closed."""
    # The exported graph is traced as it is, with logits of the last token alone.
    samples = [sample for sample in samples if FIRST_LOGIT not in sample.feeds]
    if not samples:
        return
    indices = dict.fromkeys((0, len(samples) // 2, len(samples) - 1))
    yield from (samples[index] for index in indices)
    masked = _masked(samples[len(samples) // 2])
    if masked is not None:
        yield masked
        yield _two_rows(masked, samples[len(samples) // 2])


def _two_rows(sample: Sample, other: Sample) -> Sample:
    """Two different rows in one call: with one, a row that takes another's inputs goes unseen."""
    feeds = {}
    for name, array in sample.feeds.items():
        second = other.feeds[name]
        if "mask" not in name and second.ndim > 1:
            second = np.roll(second, 1, axis=1)
        feeds[name] = np.concatenate([array, second])
    return replace(sample, name=f"{sample.name}, two rows", feeds=feeds)


def _masked(sample: Sample) -> Sample | None:
    """A call in which something is masked: without padding, real ones mask next to nothing."""
    feeds = dict(sample.feeds)
    if "attention_mask" in feeds:
        mask = feeds["attention_mask"].copy()
        mask[:, max(1, 2 * mask.shape[1] // 3) :] = 0
        feeds["attention_mask"] = mask
    elif "self_attention_mask" in feeds:
        mask = feeds["self_attention_mask"].copy()
        mask[..., : mask.shape[-1] // 3] = MASKED
        feeds["self_attention_mask"] = mask
        if "cross_attention_mask" in feeds:
            cross = feeds["cross_attention_mask"].copy()
            cross[..., 2 * cross.shape[-1] // 3 :] = MASKED
            feeds["cross_attention_mask"] = cross
    else:
        return None
    return replace(sample, name=f"{sample.name}, partly masked", feeds=feeds)


def longest(
    samples: Sequence[Sample], graph: ExportedGraph, target: ComponentManifest
) -> Iterator[Sample]:
    """A call with as many tokens as there are positions, for nets that take any number of them."""
    table = graph.initializers.get("embeddings.positions")
    shapes = {spec.name: spec.shape for spec in target.nets[0].inputs}
    if table is None or not samples or isinstance(shapes["input_ids"][1], int):
        return
    positions, feeds = table.dims[0], dict(samples[-1].feeds)
    ids = feeds["input_ids"]
    if "attention_mask" in feeds:
        feeds["input_ids"] = np.resize(ids, (len(ids), positions))
        feeds["attention_mask"] = np.ones_like(feeds["input_ids"])
    elif feeds["past.0.key"].shape[1]:
        past = positions - ids.shape[1]
        causal = np.triu(np.full((ids.shape[1], ids.shape[1]), MASKED, dtype=np.float32), 1)
        mask = np.concatenate([np.zeros((ids.shape[1], past), dtype=np.float32), causal], axis=1)
        feeds["self_attention_mask"] = mask[None, None]
        feeds["position_ids"] = np.arange(past, positions, dtype=np.int64)[None]
        lengths = {"past.": past}
        if "cross_attention_mask" in feeds:
            lengths["cross."] = positions
            feeds["cross_attention_mask"] = np.zeros(
                (1, 1, ids.shape[1], positions), dtype=np.float32
            )
        for name, array in feeds.items():
            length = next((one for start, one in lengths.items() if name.startswith(start)), None)
            if length is not None:
                feeds[name] = array.take(np.arange(length) % array.shape[1], axis=1)
    else:
        return
    yield replace(samples[-1], name=f"{positions} tokens", feeds=feeds)
