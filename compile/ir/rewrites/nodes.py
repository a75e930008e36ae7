"""Finding one's way in an ``openvino.Model``: tensors by name, the attention around a softmax."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.errors import ToolError

if TYPE_CHECKING:
    import openvino

#: An ``openvino.Node`` or an ``openvino.Output``: the binding has no types of its own.
Node = Any
Output = Any


def parameter(model: openvino.Model, name: str) -> Node:
    """The graph input called ``name``.

    Raises:
        ToolError: there is none.
    """
    for port in model.inputs:
        if name in port.get_names():
            return port.get_node()
    raise ToolError(f"{model.get_friendly_name()}: no input {name}; export it again")


def result(model: openvino.Model, name: str) -> Node:
    """The graph's result node of the output called ``name``.

    Raises:
        ToolError: there is none.
    """
    for port in model.outputs:
        if name in port.get_names():
            return port.get_node()
    raise ToolError(f"{model.get_friendly_name()}: no output {name}; export it again")


def consumers(output: Output) -> list[Node]:
    """Nodes that read an output."""
    return [port.get_node() for port in output.get_target_inputs()]


def only_consumer(output: Output, kind: str) -> Node:
    """The one node that reads an output's values, of the type expected.

    Raises:
        ToolError: another graph than the one that export writes.
    """
    found = [node for node in consumers(output) if node.get_type_name() != "ShapeOf"]
    if len(found) != 1 or found[0].get_type_name() != kind:
        kinds = [node.get_type_name() for node in found]
        name = output.get_node().get_friendly_name()
        raise ToolError(f"{name}: read by {kinds}, expected one {kind}; export the component again")
    return found[0]


def constant(output: Output) -> np.ndarray[Any, Any]:
    """The value of a constant that feeds an input.

    Raises:
        ToolError: not a constant.
    """
    node = output.get_node()
    if node.get_type_name() != "Constant":
        raise ToolError(f"{node.get_friendly_name()}: not a constant; export the component again")
    value: np.ndarray[Any, Any] = node.data
    return value


def layers(ports: Iterable[Output], prefix: str) -> int:
    """How many layers have a tensor called ``<prefix>.<layer>.key`` among inputs or outputs."""
    names = {name for port in ports for name in port.get_names()}
    count = 0
    while f"{prefix}.{count}.key" in names:
        count += 1
    return count


@dataclass(frozen=True)
class Attention:
    """The nodes of one attention as export writes them, from the keys' side."""

    #: ``[batch, heads, queries, head_size]``
    query: Output
    scores: Node
    #: the factor of the scores
    scale: float
    scaled: Node
    #: additive mask, or None
    mask: Output | None
    softmax: Node
    context: Node
    #: Transpose of the values, ``[batch, heads, keys, head_size]``
    values: Node

    @classmethod
    def of_keys(cls, keys: Output) -> Attention:
        """The attention that reads ``keys`` ``[batch, keys, heads, head_size]``."""
        transposed = only_consumer(keys, "Transpose")
        scores = only_consumer(transposed.output(0), "MatMul")
        scaled = only_consumer(scores.output(0), "Multiply")
        following = consumers(scaled.output(0))[0]
        mask = None
        if following.get_type_name() == "Add":
            mask = following.input_value(1)
            softmax = only_consumer(following.output(0), "Softmax")
        else:
            softmax = only_consumer(scaled.output(0), "Softmax")
        context = only_consumer(softmax.output(0), "MatMul")
        return cls(
            query=scores.input_value(0),
            scores=scores,
            scale=float(constant(scaled.input_value(1))),
            scaled=scaled,
            mask=mask,
            softmax=softmax,
            context=context,
            values=context.input_value(1).get_node(),
        )


def redirect(old: Output, new: Output) -> None:
    """Everything that reads ``old`` reads ``new``."""
    for port in list(old.get_target_inputs()):
        port.replace_source_output(new)


def rename(output: Output, name: str) -> None:
    """Gives a tensor exactly one name."""
    output.get_tensor().set_names({name})
    output.get_node().set_friendly_name(name)
