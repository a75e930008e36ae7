"""The tensors of safetensors files: their types, shapes and digests, without loading them."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from configs.errors import InputError
from configs.load import shown
from pipeline.json_file import WRONG, parse_object
from pipeline.manifest import file_sha256

#: the second names of tied weights, and the first ones
ALIASES = {
    "text_decoder.cls.predictions.decoder.weight": (
        "text_decoder.bert.embeddings.word_embeddings.weight"
    ),
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}
#: how the name of a buffer ends that old files store and every model makes by itself
BUFFER = ".position_ids"


@dataclass(frozen=True)
class Tensor:
    """A stored tensor."""

    dtype: str
    shape: tuple[int, ...]
    #: digest over type, shape and content
    sha256: str


def read_tensors(path: Path, expected: str | None = None) -> dict[str, Tensor]:
    """Every tensor of a safetensors file.

    ``expected`` is the file's own digest where one is known, which is checked in the same pass.

    Raises:
        InputError: not a whole safetensors file, or another digest.
    """
    from safetensors import SafetensorError, safe_open

    damaged = f"{shown(path)}: not a whole safetensors file"
    cure = "copy or download the checkpoint again"
    try:
        with (
            safe_open(path, framework="np"),
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ):
            return _read(view, path, expected)
    except (SafetensorError, *WRONG) as error:
        raise InputError(f"{damaged} ({error}); {cure}") from None


def _read(view: mmap.mmap, path: Path, expected: str | None) -> dict[str, Tensor]:
    start = 8 + int.from_bytes(view[:8], "little")
    header = parse_object(view[8:start])
    header.pop("__metadata__", None)

    def tensor(name: str) -> Tensor:
        entry = header[name]
        begin, end = (start + offset for offset in entry["data_offsets"])
        digest = hashlib.sha256(f"{entry['dtype']} {entry['shape']}\n".encode())
        with memoryview(view) as data, data[begin:end] as content:
            digest.update(content)
        return Tensor(entry["dtype"], tuple(entry["shape"]), digest.hexdigest())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        whole = pool.submit(checked_sha256, path, expected) if expected else None
        tensors = dict(zip(header, pool.map(tensor, header), strict=True))
        if whole is not None:
            whole.result()
    return tensors


def checked_sha256(path: Path, expected: str | None = None) -> str:
    """SHA-256 of a file, which is compared with the hub's digest: SHA-256 or a git blob's id.

    Raises:
        InputError: they differ.
    """
    sha256 = found = file_sha256(path)
    if expected is not None and len(expected) == 40:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        digest.update(path.read_bytes())
        found = digest.hexdigest()
    if expected not in (None, found):
        raise InputError(
            f"{shown(path)}: damaged: its digest is {found[:12]}, the hub's is "
            f"{str(expected)[:12]}; delete {path.resolve()} and run again"
        )
    return sha256


def parameter_digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Digest of each parameter, whichever of its names it is stored under, buffers left out."""
    found = {name: t.sha256 for name, t in tensors.items() if not name.endswith(BUFFER)}
    for alias, name in ALIASES.items():
        if alias in found and found.get(name, found[alias]) == found[alias]:
            found[name] = found.pop(alias)
    return found


def combined(digests: Mapping[str, str]) -> str:
    """One digest over named digests."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()
