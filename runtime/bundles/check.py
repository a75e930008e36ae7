"""``blip-edge verify-bundle``: whether a bundle is whole, consistent, verified and signed."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import Iterator, Optional

from ..errors import InputError
from .archive import unpack
from .contents import checked_digests
from .format import (
    ARCHIVE_SUFFIX,
    SIGNATURE_FILE,
    BundleError,
    Description,
    read_description,
)
from .shipped import read_shipped
from .signature import check_signature
from .statements import check_materials, check_statements, check_verdict


def check_bundle(
    bundle: Path, *, key: Optional[Path] = None, allow_unverified: bool = False
) -> Description:
    """Checks an archive or an unpacked folder; returns what it is.

    Raises:
        BundleError: anything about it is wrong.
        InputError: there is no such file, or a wrong key was given.
        BackendError: a key is given and the library for signatures is missing.
    """
    with _folder(bundle) as folder:
        described = check_folder(folder, key=key)
        if folder != bundle and not (folder.name == described.name == _stem(bundle)):
            raise BundleError(
                f"{bundle.name}: holds {folder.name}, and that says it is {described.name}; "
                "the three must be equal: get the file again under its own name"
            )
    if not described.verified and not allow_unverified:
        raise BundleError(
            "bundle.json: verified: it was made with UNVERIFIED=1, so nothing says that it "
            "computes what the checkpoint does; --allow-unverified accepts that"
        )
    return described


def check_folder(folder: Path, *, key: Optional[Path] = None) -> Description:
    """Checks an unpacked bundle, whatever its folder is called; see ``check_bundle``."""
    digests = checked_digests(folder)
    if key is not None:
        # First of all: nothing that a file says counts before it is known who wrote it.
        check_signature(folder, key)
    described = read_description(folder)
    if described.sample.image not in digests:
        raise BundleError(f"bundle.json: sample.image: no file {described.sample.image!r}")
    found = read_shipped(folder, described, digests)
    verdict = check_statements(folder, digests)
    check_verdict(verdict, described, found)
    check_materials(folder, digests)
    return described


def verify_bundle(options: argparse.Namespace) -> int:
    """Runs ``blip-edge verify-bundle``; returns the exit code."""
    from ..cli.reports import say

    bundle = Path(options.bundle)
    try:
        described = check_bundle(bundle, key=options.key, allow_unverified=options.allow_unverified)
    except BundleError as error:
        raise BundleError(f"{bundle}: refused: {error}") from None
    say(f"{described.name}: {described.task} for {described.target} {described.precision}")
    say("checksums     every file is listed and unchanged, and no other one is there")
    verdict = "every check passed" if described.verified else "NOT VERIFIED (UNVERIFIED=1)"
    say(f"verification  {verdict}, of exactly these files")
    say(f"signature     {_signature(bundle, options.key)}")
    return 0


def _signature(bundle: Path, key: Optional[Path]) -> str:
    if key is not None:
        return f"made with the key of {key}"
    signed = bundle.is_dir() and (bundle / SIGNATURE_FILE).is_file()
    have = "there is one; " if signed else ""
    return f"not checked: {have}give --key to know who made the bundle"


@contextlib.contextmanager
def _folder(bundle: Path) -> Iterator[Path]:
    if bundle.is_dir():
        yield bundle
        return
    if not bundle.exists():
        raise InputError(f"{bundle}: no such file or folder")
    with tempfile.TemporaryDirectory(prefix="blip-edge-bundle-") as temporary:
        yield unpack(bundle, Path(temporary))


def _stem(bundle: Path) -> str:
    name = bundle.name
    return name[: -len(ARCHIVE_SUFFIX)] if name.endswith(ARCHIVE_SUFFIX) else name
