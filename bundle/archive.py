"""Writes a folder as an archive of which every byte follows from the files' names and contents."""

from __future__ import annotations

import gzip
import shutil
import tarfile
from pathlib import Path

from configs.errors import InputError
from pipeline.atomic import replacing
from runtime.bundles.contents import plain_files

#: The level is a trade of time for size; it must be the same always.
_LEVEL = 6
_PROGRAMS = (".sh",)


def write_archive(folder: Path, archive: Path) -> None:
    """Packs a folder under its own name: sorted, without times, owners and rights of this machine.

    Raises:
        ToolError: the disk is full or the folder cannot be written.
        InputError: a name is too long for the format.
    """
    with (
        replacing(archive) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=_LEVEL, mtime=0) as out,
    ):
        for name in plain_files(folder):
            out.write(_header(f"{folder.name}/{name}", folder / name))
            with (folder / name).open("rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)
                out.write(bytes(-file.tell() % tarfile.BLOCKSIZE))
        out.write(bytes(2 * tarfile.BLOCKSIZE))


def _header(name: str, path: Path) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = path.stat().st_size
    entry.mode = 0o755 if path.suffix in _PROGRAMS else 0o644
    try:
        return entry.tobuf(tarfile.USTAR_FORMAT)
    except ValueError as error:
        raise InputError(f"{name}: {error}; give the pipeline a shorter name") from None
