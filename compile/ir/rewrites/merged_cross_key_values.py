"""Vision encoder and cross-attention projections in one model: image states never leave it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from compile.ir.rewrites import Rewritten, nodes
from pipeline.manifest import Net

if TYPE_CHECKING:
    import openvino

REASON = "one call per image; its states are read for the projections while still in the cache"


def rewrite(vision: openvino.Model, net: Net, cross: openvino.Model, projections: Net) -> Rewritten:
    """Gives the vision encoder the outputs of both; ``cross`` reads its image states."""
    states = nodes.result(vision, "image_embeds").input_value(0)
    taken = nodes.parameter(cross, "encoder_hidden_states")
    nodes.redirect(taken.output(0), states)
    added = cross.get_results()
    vision.add_results(added)
    vision.validate_nodes_and_infer_types()
    # Encoder tokens are image tokens here, and their number is fixed.
    tokens = net.outputs[0].shape[1]
    outputs = tuple(
        replace(spec, shape=(spec.shape[0], tokens, *spec.shape[2:]))
        for spec in projections.outputs
    )
    return Rewritten(len(added), replace(net, outputs=(*net.outputs, *outputs)))
