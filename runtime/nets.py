"""The nets of an artifact as its manifest describes them (docs/manifest.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, List, Mapping, Optional, Tuple, Union

from runtime.errors import ArtifactError


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

    def input(self, name: str) -> Optional[TensorSpec]:
        """The input called ``name`` in the contract, or None."""
        return next((spec for spec in self.inputs if spec.name == name), None)

    def output(self, name: str) -> Optional[TensorSpec]:
        """The output called ``name`` in the contract, or None."""
        return next((spec for spec in self.outputs if spec.name == name), None)


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
    estimate = data.get("estimate") or {}
    latency_ms = estimate.get("latency_ms")
    lookups = [
        HostLookup(
            indices=str(item["indices"]),
            input=str(item["input"]),
            table=safe_name(item["table"], f"{where}: host_lookups"),
        )
        for item in data.get("host_lookups") or ()
    ]
    return Net(
        name=str(data["name"]),
        file=safe_name(data["file"], f"{where}: nets"),
        artifact_net=data.get("artifact_net"),
        inputs=_specs(data["inputs"]),
        outputs=_specs(data["outputs"]),
        host_lookups=tuple(lookups),
        latency_ms=None if latency_ms is None else float(latency_ms),
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
    )


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
