"""Messages between a session and its simulator process: a length, a JSON header, raw array bytes.

Shared by both ends, so it needs nothing but numpy. Layout, little endian::

    uint32 header length | header (JSON, UTF-8) | bytes of array 0 | bytes of array 1 | ...

``header["arrays"]`` lists ``{"dtype", "shape"}`` of the arrays that follow, in C order. Bfloat16
travels as the ``uint16`` of its bits.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO, Callable, Dict, List, Sequence, Tuple

import numpy as np

Header = Dict[str, Any]
#: Returns exactly the number of bytes asked for, or raises EOFError.
ReadExactly = Callable[[int], bytes]

_LENGTH = struct.Struct("<I")
#: Guards against reading something else than a header, e.g. text that a library printed.
_MAXIMUM_HEADER_BYTES = 1 << 20


def write_message(stream: BinaryIO, header: Header, arrays: Sequence[np.ndarray] = ()) -> None:
    """Writes one message and flushes.

    Raises:
        OSError: the other end is gone.
    """
    contiguous = [np.ascontiguousarray(array) for array in arrays]
    described = [{"dtype": array.dtype.name, "shape": list(array.shape)} for array in arrays]
    text = json.dumps(dict(header, arrays=described)).encode()
    stream.write(_LENGTH.pack(len(text)) + text)
    for array in contiguous:
        stream.write(array.tobytes())
    stream.flush()


def read_message(read: ReadExactly) -> Tuple[Header, List[np.ndarray]]:
    """Reads one message.

    Raises:
        EOFError: the other end is gone.
        ValueError: what came is not a message.
    """
    (length,) = _LENGTH.unpack(read(_LENGTH.size))
    if length > _MAXIMUM_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    header: Header = json.loads(read(length).decode())
    arrays = []
    for described in header.pop("arrays"):
        dtype, shape = np.dtype(described["dtype"]), tuple(described["shape"])
        count = 1
        for size in shape:
            count *= size
        data = read(count * dtype.itemsize)
        arrays.append(np.frombuffer(data, dtype=dtype).reshape(shape))
    return header, arrays
