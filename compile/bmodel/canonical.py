"""Makes a BModel the same bytes whenever and wherever it is compiled.

The vendor's tools write two things that no input decides: the local time, and on chips whose file
has no kernel module (BM1684) an integer that they never set, ``KernelModule.mode``. flatbuffers
leaves a zero out, so that integer moves all that follows. The time becomes a constant. Without a
kernel module the tables in front of the time are laid out anew, the integer left out.

The format is the ``bmodel.fbs`` that TPU-MLIR ships: a header of 64 bytes, a flatbuffer with root
``Model``, and the binary section, which starts at a multiple of 4096 (docs/reproducible.md).
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

from configs.errors import ToolError
from configs.load import shown

TIME = b"Thu Jan  1 00:00:00 1970\n"
_TIME = re.compile(rb"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}\n")
_HEADER = struct.Struct("<4I48s")
_MAGIC, _VERSION = 0xFF55AAEE, b"2.2+"
_ALIGNMENT = 4096
#: Fields of ``Model`` and ``KernelModule`` by their ids in the schema.
_TYPE, _VERSION_FIELD, _TIME_FIELD, _CHIP, _NET = range(5)
_KERNEL_MODULE, _CPUOP_MODULE = 6, 8
_FILE_NAME, _BINARY = 0, 1
#: A module without code: where its fields lie, the table itself and its empty name.
_EMPTY_MODULE = struct.Struct("<4H4x i16xI I4x").pack(8, 24, 20, 4, 12, 4, 0)
_TABLE_AT = 12
#: Room for padding that belongs to the last table.
_MARGIN = 64


class _FormatError(Exception):
    """Why a file is not of the known format."""


def make_canonical(path: Path) -> None:
    """Rewrites the head of a BModel in place.

    Raises:
        ToolError: the file is not of the format that is known here.
    """
    with path.open("rb") as stream:
        header = stream.read(_HEADER.size)
        try:
            magic, header_bytes, model_bytes, binary_bytes, rest = _HEADER.unpack(header)
            size = header_bytes + model_bytes + binary_bytes
            if (magic, header_bytes, size) != (_MAGIC, _HEADER.size, path.stat().st_size):
                raise _FormatError("header")
            model = _canonical(bytearray(stream.read(model_bytes)))
        except (_FormatError, struct.error, IndexError) as error:
            what = error if isinstance(error, _FormatError) else "content"
            raise ToolError(
                f"{shown(path)}: its {what} is not of the BModel format 2.2, so the build could "
                "not be made reproducible; use the TPU-MLIR of requirements/tpu.txt"
            ) from None
        binary = stream.read() if len(model) != model_bytes else b""
    with path.open("r+b") as stream:
        stream.write(_HEADER.pack(magic, header_bytes, len(model), binary_bytes, rest))
        stream.write(model)
        stream.write(binary)
        if binary:
            stream.truncate()


class _Table:
    """A table of a flatbuffer."""

    def __init__(self, data: bytearray, at: int) -> None:
        self.data, self.at = data, at
        self.fields = at - _int32(data, at)
        self.field_bytes = struct.unpack_from("<H", data, self.fields)[0]

    def field(self, index: int) -> int:
        """Where a field lies, or 0 where it is left out."""
        place = 4 + 2 * index
        inside = place < self.field_bytes
        offset = struct.unpack_from("<H", self.data, self.fields + place)[0] if inside else 0
        return self.at + int(offset) if offset else 0

    def target(self, index: int) -> int:
        """Where a field's string, list or table lies."""
        if not (field := self.field(index)):
            raise _FormatError(f"field {index}")
        return field + _int32(self.data, field)

    def text(self, index: int) -> bytes:
        """A field's string."""
        at = self.target(index)
        return bytes(self.data[at + 4 : at + 4 + _int32(self.data, at)])


def _int32(data: bytearray, at: int) -> int:
    return int(struct.unpack_from("<i", data, at)[0])


def _canonical(data: bytearray) -> bytearray:
    model = _Table(data, _int32(data, 0))
    if model.text(_TYPE) != b"B" or not model.text(_VERSION_FIELD).startswith(_VERSION):
        raise _FormatError("version")
    if not _TIME.fullmatch(model.text(_TIME_FIELD)):
        raise _FormatError("time")
    at = model.target(_TIME_FIELD) + 4
    data[at : at + len(TIME)] = TIME
    if not model.field(_KERNEL_MODULE):
        return data
    kernel = _Table(data, model.target(_KERNEL_MODULE))
    has_code = kernel.text(_FILE_NAME) or any(data[kernel.field(_BINARY) :][:16])
    return data if has_code else _without_modules(model)


def _without_modules(model: _Table) -> bytearray:
    """The same model with both of its empty modules written in one way."""
    data, end = model.data, model.at + struct.unpack_from("<H", model.data, model.fields + 2)[0]
    others = (_TYPE, _VERSION_FIELD, _TIME_FIELD, _CHIP, _NET)
    kept_from = min(model.target(index) for index in others)
    modules = (_KERNEL_MODULE, _CPUOP_MODULE)
    places = [model.target(index) for index in modules if model.field(index)]
    if not all(end <= place < kept_from for place in places) or model.fields > model.at:
        raise _FormatError("order of tables")
    head = bytearray(data[:end])
    for index in modules:
        if field := model.field(index):
            head += bytes(-len(head) % 8)
            struct.pack_into("<I", head, field, len(head) + _TABLE_AT - field)
            head += _EMPTY_MODULE
    # Eight-byte values of what follows stay where eight divides their address.
    head += bytes((kept_from - len(head)) % 8)
    for index in others:
        field = model.field(index)
        moved = model.target(index) + len(head) - kept_from
        struct.pack_into("<I", head, field, moved - field)
    made = head + data[kept_from:].rstrip(b"\0") + bytes(_MARGIN)
    return made + bytes(-(len(made) + _HEADER.size) % _ALIGNMENT)
