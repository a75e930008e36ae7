"""The nets of an artifact as its manifest describes them (docs/manifest.md)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, List, Mapping, Optional, Tuple, Union

from ..errors import ArtifactError


@dataclass(frozen=True)
class TensorLayout:
    """The file's tensor has the contract's axes in another order, its values times ``scale``."""

    order: Tuple[int, ...]
    scale: float = 1.0


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a net: the contract's name, the file's name, shape, numpy dtype."""

    name: str
    artifact_name: str
    shape: Tuple[Union[int, str], ...]
    dtype: str
    layout: Optional[TensorLayout] = None


@dataclass(frozen=True)
class State:
    """What a net keeps between calls: ``past`` before a call, with ``new`` added after it."""

    past: str
    new: str
    artifact_name: str
    order: Tuple[int, ...]


@dataclass(frozen=True)
class HostLookup:
    """Rows of ``table`` ``[rows, hidden]``, looked up by ``indices``, are fed as ``input``."""

    indices: str
    input: str
    table: str


@dataclass(frozen=True)
class Net:
    """One callable of an artifact."""

    name: str
    file: str
    artifact_net: Optional[str]
    inputs: Tuple[TensorSpec, ...]
    outputs: Tuple[TensorSpec, ...]
    host_lookups: Tuple[HostLookup, ...] = ()
    latency_ms: Optional[float] = None
    states: Tuple[State, ...] = ()
    row_index: Optional[str] = None
    #: lengths by axis name: ``batch``, ``text_tokens``, ``past_tokens``; where there are variants
    axes: Mapping[str, int] = field(default_factory=dict)
    #: the same net for other shapes: on a chip, further stages of it
    variants: Tuple["Net", ...] = ()

    @property
    def stages(self) -> Tuple["Net", ...]:
        """The net and its variants."""
        return (self, *self.variants)

    def lengths(self, axis: str) -> Tuple[int, ...]:
        """Lengths of an axis that the net was compiled for, ascending; empty if unknown."""
        return tuple(sorted({net.axes[axis] for net in self.stages if axis in net.axes}))

    def smallest(self, **least: int) -> "Net":
        """The smallest stage with at least these lengths; the net itself where none has them.

        Smallest is the fewest positions computed (batch times text tokens); of equally many, the
        shortest cache, which is read beside them.
        """
        fitting = [
            net
            for net in self.stages
            if all(net.axes.get(axis, 0) >= length for axis, length in least.items())
        ]
        return min(fitting, key=_size, default=self)

    def taking(self, shapes: Mapping[str, Tuple[int, ...]]) -> "Net":
        """The stage whose inputs have these shapes by name; the net itself where none has."""
        for net in self.stages:
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


def safe_name(name: Any, where: str) -> str:
    """A file name from a manifest, if it stays inside the manifest's folder.

    Raises:
        ArtifactError: absolute, drive-qualified, or climbing out with ``..``.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ArtifactError(f"{where}: not a file name; rebuild the artifact")
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    climbs = ".." in posix.parts or ".." in windows.parts
    if climbs or posix.is_absolute() or windows.drive or windows.root:
        raise ArtifactError(
            f"{where}: '{name}' leaves the artifact's folder; do not use this artifact"
        )
    return name


def read_net(data: Mapping[str, Any], where: str) -> Net:
    """One entry of a manifest's ``nets``.

    Raises:
        ArtifactError: a file name that leaves the artifact's folder.
        KeyError, TypeError, ValueError: not what a manifest holds.
    """
    lookups = [
        HostLookup(
            indices=str(item["indices"]),
            input=str(item["input"]),
            table=safe_name(item["table"], f"{where}: host_lookups"),
        )
        for item in data.get("host_lookups") or ()
    ]
    net = Net(
        name=str(data["name"]),
        file=safe_name(data["file"], f"{where}: nets"),
        artifact_net=data.get("artifact_net"),
        inputs=_specs(data["inputs"]),
        outputs=_specs(data["outputs"]),
        host_lookups=tuple(lookups),
        latency_ms=_latency_ms(data),
        states=tuple(
            State(
                past=str(item["past"]),
                new=str(item["new"]),
                artifact_name=str(item["artifact_name"]),
                order=_order(item["order"]),
            )
            for item in data.get("states") or ()
        ),
        row_index=data.get("row_index"),
        axes=_axes(data.get("axes")),
    )
    variants = tuple(
        replace(
            net,
            name=str(item["name"]),
            file=safe_name(item["file"], f"{where}: nets"),
            inputs=_specs(item["inputs"]),
            outputs=_specs(item["outputs"]),
            latency_ms=_latency_ms(item),
            axes=_axes(item["axes"]),
        )
        for item in data.get("variants") or ()
    )
    return replace(net, variants=variants)


def _latency_ms(data: Mapping[str, Any]) -> Optional[float]:
    latency_ms = (data.get("estimate") or {}).get("latency_ms")
    return None if latency_ms is None else float(latency_ms)


def _axes(data: Optional[Mapping[str, Any]]) -> Mapping[str, int]:
    return {str(axis): int(length) for axis, length in (data or {}).items()}


def _order(axes: List[Any]) -> Tuple[int, ...]:
    order = tuple(int(axis) for axis in axes)
    if sorted(order) != list(range(len(order))):
        raise ValueError(f"order {list(order)} is no permutation of axes")
    return order


def _layout(item: Optional[Mapping[str, Any]]) -> Optional[TensorLayout]:
    if item is None:
        return None
    return TensorLayout(order=_order(item["order"]), scale=float(item.get("scale", 1.0)))


def _specs(items: List[Mapping[str, Any]]) -> Tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=str(item["name"]),
            artifact_name=str(item["artifact_name"]),
            shape=tuple(axis if isinstance(axis, int) else str(axis) for axis in item["shape"]),
            dtype=str(item["dtype"]),
            layout=_layout(item.get("layout")),
        )
        for item in items
    )
