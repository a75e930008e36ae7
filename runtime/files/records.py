"""JSON as frozen dataclasses, read strictly: every value has the type that its field names."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache, partial
from pathlib import PurePosixPath, PureWindowsPath
from typing import (
    Any,
    Callable,
    Literal,
    Mapping,
    Optional,
    Sequence,
    Type,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

Record = TypeVar("Record")
#: Turns JSON into a value of one type. Its errors begin with the place inside the value.
_Reader = Callable[[Any], Any]


def from_json(kind: Type[Record], data: Any, *, unknown: bool = True) -> Record:
    """A dataclass from JSON; ``dataclasses.asdict`` is the way back.

    Args:
        kind: its fields are scalars, dataclasses, tuples and mappings.
        data: from ``json.loads``; values that are dataclasses already stay.
        unknown: passes over keys that the dataclass does not have.

    Raises:
        ValueError: a key is missing, unknown, or of another type; one line that begins with it.
    """
    try:
        record: Record = _reader(cast(Any, kind), unknown)(data)
    except ValueError as error:
        raise ValueError(str(error).lstrip(".: ")) from None
    return record


def check_names(key: str, *names: str) -> None:
    """Checks that file names stay inside the folder that they are relative to.

    Raises:
        ValueError: a name is no file name, is absolute, has a drive, or climbs with ``..``.
    """
    for name in names:
        if not 0 < len(name) < 256 or not name.isprintable():
            raise ValueError(f"{key}: {_short(name)} is not a file name")
        posix, windows = PurePosixPath(name), PureWindowsPath(name)
        climbs = ".." in posix.parts or ".." in windows.parts
        if climbs or posix.is_absolute() or windows.drive or windows.root:
            raise ValueError(f"{key}: {_short(name)} leaves the artifact's folder")


@lru_cache(maxsize=None)
def _reader(kind: Any, unknown: bool) -> _Reader:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if is_dataclass(kind):
        return _record_reader(kind, unknown)
    if origin is Literal:
        return partial(_literal, inner)
    if origin is None:
        return partial(_scalar, kind)
    readers = [_reader(one, unknown) for one in inner if one not in (Ellipsis, type(None))]
    if origin is Union:
        return partial(_union, readers, type(None) in inner)
    if origin is tuple:
        return partial(_tuple, readers[0], None if Ellipsis in inner else len(inner))
    return partial(_mapping, readers[1])


def _record_reader(kind: Any, unknown: bool) -> _Reader:
    hints = get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name], unknown) for field in fields(kind)}
    optional = {
        field.name
        for field in fields(kind)
        if not field.default is field.default_factory is MISSING
    }

    def read(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        _check(isinstance(value, Mapping), value, "an object")
        for name in readers:
            if name not in value and name not in optional:
                raise ValueError(f".{name}: this key is missing")
        for name in () if unknown else value:
            if name not in readers:
                raise ValueError(f".{_short(name)}: this key is unknown")
        given = {
            name: _within(f".{name}", reader, value[name])
            for name, reader in readers.items()
            if name in value
        }
        try:
            return kind(**given)
        except ValueError as error:
            raise ValueError(f".{error}") from None

    return read


def _scalar(kind: Any, value: Any) -> Any:
    if kind is float and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    is_one = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _check(is_one, value, f"of type {kind.__name__}")
    return value


def _literal(choices: Sequence[str], value: Any) -> Any:
    _check(value in choices, value, f"one of {', '.join(choices)}")
    return value


def _union(readers: Sequence[_Reader], optional: bool, value: Any) -> Any:
    if value is None and optional:
        return None
    for reader in readers[:-1]:
        try:
            return reader(value)
        except ValueError:
            continue
    return readers[-1](value)


def _tuple(reader: _Reader, length: Optional[int], value: Any) -> Any:
    _check(isinstance(value, (list, tuple)), value, "a list")
    _check(length in (None, len(value)), value, f"{length} values")
    return tuple([_within(f"[{index}]", reader, item) for index, item in enumerate(value)])


def _mapping(reader: _Reader, value: Any) -> Any:
    _check(isinstance(value, Mapping), value, "an object")
    return {key: _within(f".{_short(key)}", reader, item) for key, item in value.items()}


def _within(place: str, reader: _Reader, value: Any) -> Any:
    try:
        return reader(value)
    except ValueError as error:
        raise ValueError(f"{place}{error}") from None


def _check(fits: bool, value: Any, wanted: str) -> None:
    if not fits:
        raise ValueError(f": {_short(value)} is not {wanted}")


def _short(value: Any) -> str:
    return ascii(value)[:60]
