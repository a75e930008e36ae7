"""Which tensor and weight of an exported graph belongs to which module of the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from configs.schema import Component, Task
from verify.layers.graph import Array, ExportedGraph

Side = Literal["input", "output"]
Tensors = dict[tuple[str, Side], Array]

#: Stands for the additive mask among a case's outputs: the graph has its own name for it.
SELF_MASK = "@self_attention_mask"


@dataclass(frozen=True)
class Pair:
    """A point where both models can be looked at.

    ``scope`` is the exported module (``layers.0.attention.query``), ``side`` whether its input or
    its output is meant; ``module`` is HuggingFace's. ``part`` selects a third of a joint
    query-key-value output. ``last`` takes the last token only.
    """

    scope: str
    side: Side
    module: str
    part: int | None = None
    last: bool = False


@dataclass(frozen=True)
class Weight:
    """A parameter of the checkpoint and the exported constant that must hold it.

    ``transposed`` and ``part`` say how it lies there: the latter, as this third of a joint weight.
    ``tied_to`` is the constant that holds it where the graph has none of its own.
    """

    constant: str
    parameter: str
    transposed: bool = False
    part: int | None = None
    tied_to: str = ""


def pairs(component: Component, task: Task, layers: int) -> list[Pair]:
    """All points of one component, in the order of execution."""
    if component == "vision_encoder":
        return list(_vision(layers))
    if component == "vision_projection":
        return [Pair("projection", side, "vision_proj") for side in ("input", "output")]
    if component == "cross_key_values":
        return [
            Pair(f"layers.{i}.{part}", "output", f"{_decoder(i)}.crossattention.self.{part}")
            for i in range(layers)
            for part in ("key", "value")
        ]
    if component == "text_decoder":
        return [*_embeddings("text_decoder.bert"), *_decoder_layers(layers), *_language_head()]
    found = [*_embeddings("text_encoder")]
    crossed = component == "text_encoder"
    for i in range(layers):
        found += _text_layer(i, f"text_encoder.encoder.layer.{i}", crossed=crossed, keys=crossed)
    if component == "text_encoder_unimodal":
        found += [Pair("features.projection", side, "text_proj") for side in ("input", "output")]
    elif task == "itm":
        found += [Pair("head", side, "itm_head") for side in ("input", "output")]
    return found


def _decoder(index: int) -> str:
    return f"text_decoder.bert.encoder.layer.{index}"


def _vision(layers: int) -> Iterator[Pair]:
    yield Pair("layers.0.attention_norm", "input", "vision_model.encoder.layers.0.layer_norm1")
    for i in range(layers):
        here, there = f"layers.{i}", f"vision_model.encoder.layers.{i}"
        if i:
            yield Pair(f"{here}.attention_norm", "input", f"{there}.layer_norm1")
        yield Pair(f"{here}.attention_norm", "output", f"{there}.layer_norm1")
        for part, name in enumerate(("query", "key", "value")):
            yield Pair(f"{here}.attention.{name}", "output", f"{there}.self_attn.qkv", part)
        yield Pair(f"{here}.attention.output", "input", f"{there}.self_attn.projection")
        yield Pair(f"{here}.attention.output", "output", f"{there}.self_attn.projection")
        yield Pair(f"{here}.feed_forward_norm", "input", f"{there}.layer_norm2")
        yield Pair(f"{here}.feed_forward_norm", "output", f"{there}.layer_norm2")
        yield Pair(f"{here}.feed_forward.inner", "output", f"{there}.mlp.fc1")
        yield Pair(f"{here}.feed_forward.outer", "input", f"{there}.mlp.fc2")
        yield Pair(f"{here}.feed_forward.outer", "output", f"{there}.mlp.fc2")
    yield Pair("norm", "input", "vision_model.post_layernorm")
    yield Pair("norm", "output", "vision_model.post_layernorm")


def _embeddings(model: str) -> Iterator[Pair]:
    yield Pair("embeddings.norm", "input", f"{model}.embeddings.LayerNorm")
    yield Pair("embeddings.norm", "output", f"{model}.embeddings.LayerNorm")


def _attention(here: str, there: str) -> Iterator[Pair]:
    yield Pair(f"{here}.query", "output", f"{there}.self.query")
    yield Pair(f"{here}.output", "input", f"{there}.output.dense")
    yield Pair(f"{here}.output", "output", f"{there}.output.dense")
    yield Pair(f"{here}.norm", "input", f"{there}.output.LayerNorm")
    yield Pair(f"{here}.norm", "output", f"{there}.output.LayerNorm")


def _text_layer(index: int, there: str, *, crossed: bool, keys: bool) -> Iterator[Pair]:
    here = f"layers.{index}"
    yield Pair(f"{here}.key", "output", f"{there}.attention.self.key")
    yield Pair(f"{here}.value", "output", f"{there}.attention.self.value")
    yield from _attention(f"{here}.attention", f"{there}.attention")
    if keys:
        yield Pair(f"{here}.cross_key_value.key", "output", f"{there}.crossattention.self.key")
        yield Pair(f"{here}.cross_key_value.value", "output", f"{there}.crossattention.self.value")
    if crossed:
        yield from _attention(f"{here}.cross_attention", f"{there}.crossattention")
    inner = f"{here}.feed_forward.feed_forward"
    yield Pair(f"{inner}.inner", "output", f"{there}.intermediate.dense")
    yield Pair(f"{inner}.outer", "input", f"{there}.output.dense")
    yield Pair(f"{inner}.outer", "output", f"{there}.output.dense")
    yield Pair(f"{here}.feed_forward.norm", "input", f"{there}.output.LayerNorm")
    yield Pair(f"{here}.feed_forward.norm", "output", f"{there}.output.LayerNorm")


def _decoder_layers(layers: int) -> Iterator[Pair]:
    for i in range(layers):
        yield from _text_layer(i, _decoder(i), crossed=True, keys=False)


def _language_head() -> Iterator[Pair]:
    head = "text_decoder.cls.predictions"
    yield Pair("head.transform", "input", f"{head}.transform.dense", last=True)
    yield Pair("head.transform", "output", f"{head}.transform.dense", last=True)
    yield Pair("head.norm", "input", f"{head}.transform.LayerNorm", last=True)
    yield Pair("head.norm", "output", f"{head}.transform.LayerNorm", last=True)
    yield Pair("head", "output", f"{head}.decoder", last=True)


def weights(component: Component, task: Task, layers: int) -> list[Weight]:
    """Every parameter that one component's graph holds, whatever its graph looks like."""
    found: list[Weight] = []
    for pair in pairs(component, task, layers):
        if pair.side == "output":
            found += _of(pair, component)
    if component == "vision_encoder":
        root = "vision_model.embeddings"
        found += [
            Weight("patches.weight", f"{root}.patch_embedding.weight"),
            Weight("patches.bias", f"{root}.patch_embedding.bias"),
            Weight("class_token", f"{root}.class_embedding"),
            Weight("positions", f"{root}.position_embedding"),
        ]
    if component.startswith("text"):
        root = "text_decoder.bert" if component == "text_decoder" else "text_encoder"
        found += [
            Weight("embeddings.tokens", f"{root}.embeddings.word_embeddings.weight"),
            Weight("embeddings.positions", f"{root}.embeddings.position_embeddings.weight"),
        ]
    return found


def _of(pair: Pair, component: Component) -> Iterator[Weight]:
    name = pair.scope
    parts = name.split(".")
    if component != "cross_key_values" and len(parts) == 3 and parts[2] in ("key", "value"):
        # Traced by the attention's owner, so the node's scope is shorter than the weight's.
        name = f"{parts[0]}.{parts[1]}.attention.{parts[2]}"
    norm = "norm" in parts[-1]
    if pair.module.endswith("predictions.decoder"):
        yield Weight("head.bias", f"{pair.module}.bias")
        yield Weight("head.weight", f"{pair.module}.weight", tied_to="embeddings.tokens")
        return
    yield Weight(f"{name}.weight", f"{pair.module}.weight", transposed=not norm, part=pair.part)
    yield Weight(f"{name}.bias", f"{pair.module}.bias", part=pair.part)


@dataclass(frozen=True)
class Traced:
    """One call: the contract's inputs, and the tensors of HuggingFace's modules by name."""

    name: str
    feeds: dict[str, Array]
    modules: Tensors
    #: the contract's outputs that no module has
    outputs: dict[str, Array]


def on_graph(
    traced: Traced, pairs: Sequence[Pair], graph: ExportedGraph
) -> tuple[dict[str, Array], dict[str, str]]:
    """The modules' tensors under the exported graph's names, and modules that are not as they are.

    The second part says, by exported module, what the graph lacks.
    """
    tensors: dict[str, Array] = {}
    owners: dict[str, Pair] = {}
    missing: dict[str, str] = {}
    for pair in pairs:
        value = traced.modules.get((pair.module, pair.side))
        if value is None:
            continue
        name = tensor_of(graph, pair)
        if name is None:
            missing[pair.scope] = "the graph has no such node"
            continue
        if pair.part is not None:
            value = np.split(value, 3, axis=-1)[pair.part]
        if pair.last and value.ndim == 3:
            value = value[:, -1]
        if name in tensors and not np.array_equal(tensors[name], value):
            # Two different tensors of the checkpoint are one here: what lies between is missing.
            other = owners[name]
            what = f"its {pair.side} is the {other.side} of {other.scope}"
            missing[pair.scope] = f"{what}: what lies between is missing"
            continue
        if name in graph.sites:
            tensors[name], owners[name] = np.ascontiguousarray(value), pair
    for output, value in traced.outputs.items():
        name = output if output != SELF_MASK else _self_mask(graph)
        if name in graph.sites:
            tensors[name] = np.ascontiguousarray(value)
    return tensors, missing


def _self_mask(graph: ExportedGraph) -> str:
    """The tensor that a text encoder adds to its scores: their sum's other operand."""
    node = graph.nodes.get("/layers.0/attention/Add")
    return str(node.input[1]) if node is not None else ""


def tensor_of(graph: ExportedGraph, pair: Pair) -> str | None:
    """The exported tensor at a pair's point: found by the names of nodes, not by their number."""
    scope = "/" + pair.scope.replace("layers.", "layers\0").replace(".", "/").replace("\0", ".")
    operators = ("MatMul", "Gemm", "LayerNormalization")
    anchor = next((n for o in operators if (n := graph.nodes.get(f"{scope}/{o}"))), None)
    if anchor is None:
        return None
    if pair.side == "input":
        return str(anchor.input[0])
    biased = graph.nodes.get(f"{scope}/Add")
    if anchor.op_type == "MatMul" and biased is not None and anchor.output[0] in biased.input:
        return str(biased.output[0])
    return str(anchor.output[0])
