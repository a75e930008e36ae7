"""Which files a bundle has, and that ``SHA256SUMS`` names each of them with its digest."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Dict, List

from ..errors import InputError
from ..files.integrity import file_sha256
from .format import SIGNATURE_FILE, SUMS_FILE, BundleError

_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def plain_files(folder: Path) -> List[str]:
    """Names of all files below a folder, sorted.

    Raises:
        InputError: no such folder.
        BundleError: a link, a device, anything that is neither file nor folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = []
    for place, folders, files in os.walk(str(folder)):
        for name in (*folders, *files):
            path = Path(place) / name
            relative = path.relative_to(folder).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found.append(relative)
            elif not stat.S_ISDIR(mode):
                raise BundleError(f"{relative}: a link or device, not a plain file")
    return sorted(found)


def sums_text(digests: Dict[str, str]) -> str:
    """What ``SHA256SUMS`` holds, as ``sha256sum --check`` reads it."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def checked_digests(folder: Path) -> Dict[str, str]:
    """Digests of all files that ``SHA256SUMS`` must name, each computed from the file now.

    Raises:
        BundleError: a file is missing, too many, or another one.
    """
    present = [name for name in plain_files(folder) if name not in (SUMS_FILE, SIGNATURE_FILE)]
    try:
        text = (folder / SUMS_FILE).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise BundleError(f"{SUMS_FILE}: missing; this is no whole bundle") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{SUMS_FILE}: cannot be read ({error})") from None
    listed: Dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None or match.group(2) in listed:
            raise BundleError(f"{SUMS_FILE}:{number}: no checksum and name, or a second time")
        listed[match.group(2)] = match.group(1)
    for name in sorted(set(present) ^ set(listed)):
        problem = "not listed" if name in present else "missing, but listed"
        raise BundleError(f"{name}: {problem} in {SUMS_FILE}; get the bundle again")
    # Never what was noted about a file before: its bytes are read.
    for name in present:
        if file_sha256(folder / name) != listed[name]:
            raise BundleError(f"{name}: not the file that {SUMS_FILE} lists; get the bundle again")
    return listed
