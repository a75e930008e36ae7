"""Keeps every answer of a chip simulator, so that a killed verification goes on where it stopped.

A simulated call takes seconds on small nets and many minutes on full-size ones, and always gives
the same answer: inputs, artifact and simulator decide it.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.atomic import replacing
from pipeline.manifest import key_of
from runtime.files.manifests import ComponentManifest, Net
from runtime.sessions.session import ArrayDict, Session
from verify.artifacts import identity

Array = NDArray[Any]


class RememberedSession(Session):
    """A session whose answers are looked up before they are computed."""

    def __init__(self, inner: Session, folder: Path, version: str) -> None:
        """``version`` names what else decides an answer: our driver, the simulator's release."""
        super().__init__(inner.manifest, inner.options)
        self._inner = inner
        self._folder = folder / artifact_key(inner.manifest, version)

    def run(self, feeds: Mapping[str, Array], net: str | None = None) -> ArrayDict:
        """Runs one net, or reads what the same call answered before."""
        chosen = self.net(net)
        path = self._folder / f"{call_key(chosen, feeds)}.npz"
        outputs = _read(path, chosen)
        if outputs is None:
            outputs = self._inner.run(feeds, net)
            _write(path, outputs)
        return outputs

    def close(self) -> None:
        """Closes the simulator."""
        self._inner.close()

    def _load(self) -> None:
        """The simulator starts with the first call that has no stored answer."""

    def _unload(self) -> None:
        """Nothing of its own to release."""

    def _execute(self, net: Net, arrays: list[Array]) -> list[Array]:  # noqa: ARG002
        raise AssertionError(f"{net.name}: answered by the simulator")


def artifact_key(manifest: ComponentManifest, version: str) -> str:
    """Folder name: what decides an answer besides the inputs."""
    return key_of({**identity(manifest), "version": version})[:20]


def call_key(net: Net, feeds: Mapping[str, Array]) -> str:
    """File stem: digest of the net's name and of every array fed."""
    result = hashlib.sha256(net.name.encode())
    for name in sorted(feeds):
        array = np.ascontiguousarray(feeds[name])
        result.update(f"|{name} {array.dtype} {array.shape}|".encode())
        result.update(array.data)
    return result.hexdigest()[:32]


def forget_others(folder: Path, kept: Collection[str]) -> None:
    """Deletes the answers of artifacts that no longer exist."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _read(path: Path, net: Net) -> ArrayDict | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {spec.name: stored[spec.name] for spec in net.outputs}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # not there yet, or cut off: computed again


def _write(path: Path, outputs: ArrayDict) -> None:
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **outputs)  # type: ignore[arg-type]  # its stub mistakes names for options
