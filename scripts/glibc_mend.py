"""Lets the TPU-MLIR wheel run on hosts whose glibc is newer than the one it bundles.

The wheel puts its own folder of system libraries on ``LD_LIBRARY_PATH``. Where the host's glibc is
newer, every program it starts dies with "GLIBC_2.36 not found": the host's loader and programs meet
an older libc. Moving the bundled C and C++ runtime aside makes them use the host's.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.errors import ToolError

#: glibc itself, and the libraries that must come from the same place as it.
BUNDLED_RUNTIME = (
    "libc.so.6",
    "libm.so.6",
    "libpthread.so.0",
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libz.so.1",
    "liblzma.so.5",
)
BUNDLED_FOLDER = Path("lib", "third_party")
#: Not on any search path; a sibling, so that a move is one rename.
ASIDE_FOLDER = Path("lib", "third_party.set_aside")

Version = tuple[int, int]
State = Literal["mended", "not needed", "unmended"]

_BANNER = re.compile(rb"GNU C Library [^\n]*? version (\d+)\.(\d+)")


@dataclass(frozen=True)
class GlibcState:
    """What the wheel bundles, what the host has, and whether the two get along."""

    state: State
    host: Version
    bundled: Version | None
    #: libraries that the last call moved
    moved: tuple[str, ...] = ()

    def __str__(self) -> str:
        bundled = _shown(self.bundled) if self.bundled else "none"
        return f"{self.state} (host glibc {_shown(self.host)}, bundled {bundled})"


def _shown(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def host_glibc() -> Version:
    """The running system's glibc version.

    Raises:
        ToolError: no glibc here, e.g. musl or macOS; TPU-MLIR has no build for those.
    """
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        text = ""
    match = re.fullmatch(r"glibc (\d+)\.(\d+).*", text)
    if not match:
        raise ToolError(
            "TPU-MLIR: this system has no glibc; use a glibc-based x86-64 Linux for SOPHON targets"
        )
    return int(match[1]), int(match[2])


def library_glibc(libc: Path) -> Version | None:
    """The version in a ``libc.so.6``'s own banner, or None when the file is not there.

    Raises:
        ToolError: the file is there and carries no glibc banner.
    """
    if not libc.is_file():
        return None
    match = _BANNER.search(libc.read_bytes())
    if not match:
        raise ToolError(f"{libc}: no glibc version inside; delete .venv-tpu and run make setup")
    return int(match[1]), int(match[2])


def inspect(package: Path, host: Version | None = None) -> GlibcState:
    """Looks at an installed ``tpu_mlir`` package folder without changing it."""
    host = host or host_glibc()
    active = library_glibc(package / BUNDLED_FOLDER / "libc.so.6")
    if active is None:
        aside = library_glibc(package / ASIDE_FOLDER / "libc.so.6")
        leftover = any((package / BUNDLED_FOLDER / name).exists() for name in BUNDLED_RUNTIME)
        return GlibcState("unmended" if leftover else "mended", host, aside)
    return GlibcState("unmended" if host > active else "not needed", host, active)


def mend(package: Path, host: Version | None = None) -> GlibcState:
    """Moves the bundled C and C++ runtime aside where the host's glibc is newer.

    Safe to repeat, and safe to interrupt: each library moves by one rename, libc last.
    ``host`` stands in for the running system's version.
    """
    before = inspect(package, host)
    if before.state != "unmended":
        return before
    aside = package / ASIDE_FOLDER
    aside.mkdir(parents=True, exist_ok=True)
    moved = []
    for name in reversed(BUNDLED_RUNTIME):
        source = package / BUNDLED_FOLDER / name
        if source.exists():
            source.replace(aside / name)
            moved.append(name)
    return GlibcState("mended", before.host, before.bundled, tuple(moved))
