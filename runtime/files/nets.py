"""The nets of an artifact as its manifest describes them (docs/manifest.md)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Iterator, Mapping, Optional, Tuple, Union

from .records import check_names

#: Scalar of a decoder: from which of a call's tokens on there are logits, counted from the end.
FIRST_LOGIT = "first_logit"


@dataclass(frozen=True)
class TensorLayout:
    """How a file holds a tensor of the contract, where that is not as the contract has it."""

    #: the file's tensor has the contract's axes in this order
    order: Tuple[int, ...]
    #: and its values times this
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_order(self.order)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a net."""

    #: the contract's name
    name: str
    #: what the file itself calls it
    artifact_name: str
    #: the contract's shape: integers, or axis names where dynamic
    shape: Tuple[Union[int, str], ...]
    #: numpy's dtype name
    dtype: str
    layout: Optional[TensorLayout] = None


@dataclass(frozen=True)
class State:
    """A past key or value that a net keeps between calls (openvino)."""

    #: the contract's input that is the state's content before a call
    past: str
    #: the contract's output that a call adds to it
    new: str
    #: what the file calls it
    artifact_name: str
    #: the file's state has the contract's axes in this order
    order: Tuple[int, ...]

    def __post_init__(self) -> None:
        _check_order(self.order)


@dataclass(frozen=True)
class HostLookup:
    """Rows of ``table`` ``[rows, hidden]``, looked up by ``indices``, are fed as ``input``."""

    indices: str
    input: str
    table: str

    def __post_init__(self) -> None:
        check_names("table", self.table)


@dataclass(frozen=True)
class Estimate:
    """The vendor compiler's own latency estimate; never a measurement."""

    latency_ms: float
    source: str


@dataclass(frozen=True)
class Work:
    """What a net has to do, as counted from what the vendor's compiler leaves; no measurement."""

    #: additions and multiplications, by arithmetic (``f32``, ``int8``), or ``all`` together
    operations: Mapping[str, int]
    #: bytes between the chip's own memory and DDR
    moved_bytes: int
    #: share of the estimated time in which the compute engine, the DMA engine is busy
    compute_share: Optional[float] = None
    memory_share: Optional[float] = None
    #: share of the DDR's bandwidth that is used on average
    bandwidth_share: Optional[float] = None

    @property
    def bound(self) -> Optional[str]:
        """``compute`` or ``memory``: the engine that is busy for longer, where that is known."""
        if self.compute_share is None or self.memory_share is None:
            return None
        return "compute" if self.compute_share > self.memory_share else "memory"


@dataclass(frozen=True)
class KeptConstant:
    """A constant of a half-precision IR that OpenVINO keeps in float32 (openvino)."""

    name: str
    #: how many numbers it has
    values: int
    #: share of them that f16 would lose: too small, too large, or rounded by more than 1
    lost: float
    #: the largest magnitude, which tells why
    largest: float


@dataclass(frozen=True)
class NetVariant:
    """A net compiled for one shape."""

    #: the net's name; of a variant with its lengths, e.g. ``step_16p_3b``
    name: str
    file: str
    inputs: Tuple[TensorSpec, ...]
    outputs: Tuple[TensorSpec, ...]
    #: lengths by axis name (``batch``, ``text_tokens``, ``past_tokens``), where there are variants
    axes: Mapping[str, int] = field(default_factory=dict)
    estimate: Optional[Estimate] = None
    #: attention fusions that the vendor's compiler made, by pattern name (sophon)
    fusions: Mapping[str, int] = field(default_factory=dict)
    #: operations and bytes of one call (sophon)
    work: Optional[Work] = None

    def __post_init__(self) -> None:
        check_names("file", self.file)

    @property
    def latency_ms(self) -> Optional[float]:
        """The vendor compiler's estimate of one call."""
        return self.estimate.latency_ms if self.estimate else None


@dataclass(frozen=True)
class Net(NetVariant):
    """One callable of an artifact."""

    #: the net's own name inside the file (sophon)
    artifact_net: Optional[str] = None
    host_lookups: Tuple[HostLookup, ...] = ()
    #: inputs and outputs of the contract that are states of the net instead
    states: Tuple[State, ...] = ()
    #: the file's input ``[rows]`` int32 that says which row of its states each row continues
    row_index: Optional[str] = None
    #: the file's scalar int64 input ``FIRST_LOGIT``; where there is none, the last token alone has
    #: logits, or every token (``answers_everywhere``)
    first_logit: Optional[str] = None
    #: what stays in float32, because half precision would lose most of it (openvino)
    kept_in_float32: Tuple[KeptConstant, ...] = ()
    #: the same net for further shapes, which share its weights (sophon)
    variants: Tuple[NetVariant, ...] = ()

    @cached_property
    def shapes(self) -> Tuple["Net", ...]:
        """The net in every shape that it was compiled for: itself, then its variants."""
        own = [field.name for field in fields(NetVariant)]
        variants = ({name: getattr(one, name) for name in own} for one in self.variants)
        return (self, *(replace(self, variants=(), **variant) for variant in variants))

    @cached_property
    def fed(self) -> Tuple[TensorSpec, ...]:
        """What a call feeds: the inputs of the contract, and ``FIRST_LOGIT`` where there is one."""
        if self.first_logit is None:
            return self.inputs
        return (*self.inputs, TensorSpec(FIRST_LOGIT, self.first_logit, (), "int64"))

    @cached_property
    def answers_everywhere(self) -> bool:
        """Whether a decoder's net of one row has logits of every token, not of the last alone."""
        logits, ids = self.output("logits"), self.input("self_attention_mask")
        return logits is not None and ids is not None and logits.shape[0] == ids.shape[2] != 1

    def lengths(self, axis: str) -> Tuple[int, ...]:
        """Lengths of an axis that the net was compiled for, ascending; empty if unknown."""
        return tuple(sorted({net.axes[axis] for net in self.shapes if axis in net.axes}))

    def fastest(self, **least: int) -> "Net":
        """The fastest stage with at least these lengths; the net itself where none has them.

        Fastest by the compiler's estimate where all have one: a smaller stage may take longer. Else
        it is the one of fewest positions (batch times text tokens); of equally many, the shortest
        cache, which is read beside them.
        """
        fitting = [
            net
            for net in self.shapes
            if all(net.axes.get(axis, 0) >= length for axis, length in least.items())
        ]
        if all(net.estimate for net in fitting):
            return min(fitting, key=lambda net: (net.latency_ms, _size(net)), default=self)
        return min(fitting, key=_size, default=self)

    def overtaken(self) -> Iterator[Tuple["Net", "Net"]]:
        """Stages that are not faster than one that takes all that they take, and that one."""
        for net in self.shapes:
            other = self.fastest(**net.axes)
            if other is not net and net.axes and other.axes != net.axes:
                yield net, other

    def taking(self, shapes: Mapping[str, Tuple[int, ...]]) -> "Net":
        """The net in the shape whose inputs are these by name; the net itself where none has."""
        for net in self.shapes:
            if all(spec.shape == shapes.get(spec.name, spec.shape) for spec in net.inputs):
                return net
        return self

    def input(self, name: str) -> Optional[TensorSpec]:
        """The input called ``name`` in the contract, or None."""
        return next((spec for spec in self.inputs if spec.name == name), None)

    def output(self, name: str) -> Optional[TensorSpec]:
        """The output called ``name`` in the contract, or None."""
        return next((spec for spec in self.outputs if spec.name == name), None)


def _size(net: Net) -> Tuple[int, int]:
    """Positions that a stage computes, and cache rows that it reads for each batch row."""
    positions = net.axes.get("batch", 1) * net.axes.get("text_tokens", 1)
    return positions, net.axes.get("past_tokens", 0)


def _check_order(order: Tuple[int, ...]) -> None:
    if sorted(order) != list(range(len(order))):
        raise ValueError(f"order: {list(order)} is no permutation of axes")
