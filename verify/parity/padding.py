"""The exported graph on padded inputs against itself on bare ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from configs.schema import Component
from runtime.files.manifests import ComponentManifest, Net, StaticShapes, TaskManifest, TensorSpec
from runtime.sessions.session import Session
from verify.parity.inputs import STALE, Sample


def padded_nets(
    manifest: TaskManifest, nets: Mapping[Component, ComponentManifest]
) -> dict[Component, ComponentManifest]:
    """The exported graphs' manifests as if compiled for the fixed lengths that chips get."""
    shapes = manifest.shapes
    vqa = manifest.task == "vqa"
    encoder_tokens = shapes.text_tokens if vqa else manifest.dimensions.image_tokens
    return {name: fixed_lengths(net, shapes, encoder_tokens) for name, net in nets.items()}


def padded_pairs(
    session: Session, bare: Iterable[Sample], padded: Iterable[Sample]
) -> list[tuple[Sample, Sample]]:
    """(bare, padded) samples of the same cases, both answered by ``session``.

    The padded ones include calls with stale rows in unused cache slots, answered here.
    """
    bare_by_name = {sample.name: sample for sample in bare}
    pairs = []
    for sample in padded:
        reference = bare_by_name.get(sample.name.removesuffix(STALE))
        if reference is not None:
            pairs.append((reference, replace(sample, expected=session.run(sample.feeds))))
    return pairs


def fixed_lengths(
    manifest: ComponentManifest, shapes: StaticShapes, encoder_tokens: int
) -> ComponentManifest:
    """The manifest as if compiled for fixed lengths; decoders get ``first_pass`` and ``step``."""
    past = shapes.past_tokens or 0
    lengths = {
        "batch": 1,
        "text_tokens": shapes.text_tokens,
        "past_tokens": past,
        "total_tokens": past + shapes.text_tokens,
        "encoder_tokens": encoder_tokens,
    }
    (net,) = manifest.nets
    if manifest.component != "text_decoder":
        return replace(manifest, nets=(_fixed(net, lengths),))
    step = {**lengths, "text_tokens": 1, "total_tokens": past + 1}
    nets = (
        replace(_fixed(net, lengths), name="first_pass"),
        replace(_fixed(net, step), name="step"),
    )
    return replace(manifest, nets=nets)


def _fixed(net: Net, lengths: Mapping[str, int]) -> Net:
    def fix(spec: TensorSpec) -> TensorSpec:
        return replace(spec, shape=tuple(lengths.get(str(axis), axis) for axis in spec.shape))

    return replace(net, inputs=tuple(map(fix, net.inputs)), outputs=tuple(map(fix, net.outputs)))
