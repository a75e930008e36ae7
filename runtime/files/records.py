"""Dataclasses as JSON: read strictly, every value of the type that its field says, and written."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import lru_cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import (
    Any,
    Dict,
    Literal,
    Mapping,
    Tuple,
    Type,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

Record = TypeVar("Record")

#: ``metadata`` of a field that no file holds.
NOT_IN_FILE: Mapping[str, Any] = {"in_file": False}


def from_json(kind: Type[Record], data: Any, *, unknown: bool = True) -> Record:
    """What JSON says, as a dataclass; values that are dataclasses already stay as they are.

    Args:
        kind: a dataclass whose fields are texts, numbers, dataclasses, tuples and mappings.
        data: from ``json.loads``.
        unknown: keys that the dataclass does not have are passed over.

    Raises:
        ValueError: one line that begins with the key: missing, unknown, or of another type.
    """
    return cast(Record, _value(kind, data, "", unknown))


def as_dict(record: Any) -> Dict[str, Any]:
    """What ``from_json`` reads back."""
    inside = {field.name for field in fields(record) if field.metadata.get("in_file", True)}
    return {name: value for name, value in asdict(record).items() if name in inside}


def check_name(name: str) -> str:
    """A file name from a manifest, if it stays inside the manifest's folder.

    Raises:
        ValueError: empty, unprintable, absolute, drive-qualified, or climbing out with ``..``.
    """
    if not name or not name.isprintable():
        raise ValueError(f"{name!r} is not a file name")
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    climbs = ".." in posix.parts or ".." in windows.parts
    if climbs or posix.is_absolute() or windows.drive or windows.root:
        raise ValueError(f"{name!r} leaves the artifact's folder")
    return name


@lru_cache(maxsize=None)
def _fields(kind: Any) -> Dict[str, Tuple[Any, bool]]:
    """Types by field name, and whether the field is needed."""
    hints = get_type_hints(kind)
    return {
        field.name: (
            hints[field.name],
            field.default is MISSING and field.default_factory is MISSING,
        )
        for field in fields(kind)
        if field.metadata.get("in_file", True)
    }


def _value(kind: Any, value: Any, where: str, unknown: bool) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        return _record(kind, value, where, unknown)
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or (origin is Literal and value in inner):
        return value
    if origin is Union:
        return _one_of(inner, value, where, unknown)
    if origin is tuple and isinstance(value, (list, tuple)):
        if inner[-1] is not Ellipsis and len(inner) != len(value):
            raise ValueError(f"{where}: {len(value)} values, must be {len(inner)}")
        return tuple(
            _value(inner[0], item, f"{where}[{index}]", unknown) for index, item in enumerate(value)
        )
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {
            _value(inner[0], key, where, unknown): _value(
                inner[1], item, f"{where}.{_short(key)}", unknown
            )
            for key, item in value.items()
        }
    if (
        isinstance(kind, type)
        and isinstance(value, kind)
        and isinstance(value, bool) == (kind is bool)
    ):
        return value
    if kind is float and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    name = getattr(kind, "__name__", str(kind).replace("typing.", ""))
    raise ValueError(f"{where}: {_short(value)} is not of type {name}")


def _one_of(kinds: Tuple[Any, ...], value: Any, where: str, unknown: bool) -> Any:
    if value is None and type(None) in kinds:
        return None
    reason = None
    for kind in kinds:
        if kind is not type(None):
            try:
                return _value(kind, value, where, unknown)
            except ValueError as error:
                reason = reason or error
    raise reason or ValueError(f"{where}: must be null")


def _record(kind: Any, data: Any, where: str, unknown: bool) -> Any:
    if isinstance(data, kind):
        return data
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: {_short(data)} is not an object")
    known, inside = _fields(kind), f"{where}." if where else ""
    missing = [name for name, (_, needed) in known.items() if needed and name not in data]
    if missing:
        raise ValueError(f"{inside}{missing[0]}: this key is missing")
    more = [name for name in data if name not in known]
    if more and not unknown:
        raise ValueError(f"{inside}{_short(more[0])}: this key is unknown")
    values = {
        name: _value(hint, data[name], inside + name, unknown)
        for name, (hint, _) in known.items()
        if name in data
    }
    try:
        return kind(**values)
    except ValueError as error:
        # From __post_init__, which does not know where the record is.
        raise ValueError(f"{inside}{error}") from None


def _short(value: Any) -> str:
    return ascii(value)[:60]
