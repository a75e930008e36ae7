"""Compiled OpenVINO models on disk, so that a later start imports them rather than compiles them.

An entry is named by everything that the compiled model depends on: the digests of the artifact's
files, OpenVINO's version, the device and the settings. So it never has to be compared with the
artifact, and an artifact's own folder is never written to. Entries appear whole (``new_entry``):
any number of processes may start at once.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

import numpy as np

from runtime.user_cache import free_bytes, mark_used, new_entry, private_folder, prune

#: Entries beyond this are removed, the longest unused first.
MOST_BYTES = 8 << 30
_FOLDER = "openvino"


def compiled_models(root: Optional[Path] = None) -> Optional[Path]:
    """The folder of compiled models, below ``root`` or the user's cache; None if there is none."""
    return private_folder(_FOLDER, root=root)


def entry_name(core: Any, device: str, settings: Mapping[str, str], *identity: str) -> str:
    """Name of an entry.

    Args:
        core: the ``openvino.Core``.
        device: a real device.
        settings: what the model is compiled with.
        identity: digests of the model's files, and whatever was changed in the model.
    """
    import openvino

    known = {
        "openvino": openvino.__version__,
        "device": device,
        "full_name": str(core.get_property(device, "FULL_DEVICE_NAME")),
        "settings": dict(settings),
        "identity": list(identity),
    }
    text = json.dumps(known, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40] + ".blob"


class Blob:
    """A compiled model's entry in memory, mapped: what OpenVINO reads of it is read from disk."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as stream:
            # OpenVINO asks for memory that it could write; the file itself never changes.
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        self.array = np.frombuffer(self._map, dtype=np.uint8)

    def forget(self) -> None:
        """Lets go of the pages read so far; the system keeps them, and they come back when needed.

        Weights that were repacked for the processor would otherwise be counted twice.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


_MAPPED: Dict[Tuple[str, int, int], Blob] = {}
_MAPPED_LOCK = threading.Lock()


def load_or_compile(
    core: Any,
    make_model: Callable[[], Any],
    device: str,
    settings: Dict[str, str],
    folder: Path,
    name: str,
) -> Tuple[Any, Optional[Blob]]:
    """A compiled model, imported from its entry if there is one, else compiled and written to it.

    Args:
        core: the ``openvino.Core``.
        make_model: path or model to compile; called only if there is no entry.
        device: a real device.
        settings: what to compile with.
        folder: from ``cache_folder``.
        name: from ``entry_name``.

    Returns:
        the compiled model, and the mapped entry, which must live as long as the model does.
    """
    path = folder / name
    if path.exists():
        try:
            found = _imported(core, path, device, settings)
            mark_used(path)
            return found
        except Exception:
            # Whatever is wrong with an entry, compiling makes a new one.
            path.unlink()
    compiled = core.compile_model(make_model(), device, settings)
    _write(compiled, folder, name)
    return compiled, None


def _imported(core: Any, path: Path, device: str, settings: Dict[str, str]) -> Tuple[Any, Blob]:
    import openvino

    blob = _mapped(path)
    tensor = openvino.Tensor(blob.array, shared_memory=True)
    return core.import_model(tensor, device, settings), blob


def _mapped(path: Path) -> Blob:
    """The entry's mapping, for the rest of the process: a request may outlive its session."""
    found = path.stat()
    key = (str(path), found.st_ino, found.st_size)
    with _MAPPED_LOCK:
        if key not in _MAPPED:
            _MAPPED[key] = Blob(path)
        return _MAPPED[key]


def _write(compiled: Any, folder: Path, name: str) -> None:
    stream = io.BytesIO()
    try:
        compiled.export_model(stream)
    except RuntimeError:
        # A device that cannot export is compiled for every time.
        return
    content = stream.getbuffer()
    if free_bytes(folder) < 2 * len(content):
        return
    with new_entry(folder, name) as part:
        part.write_bytes(content)
    prune(folder, most_bytes=MOST_BYTES)
