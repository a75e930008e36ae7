"""Compiled OpenVINO models on disk, so that a later start imports them rather than compiles them.

An entry is named by everything that the compiled model depends on: the digests of the artifact's
files, OpenVINO's version, the device and the settings. So it never has to be compared with the
artifact, and an artifact's own folder is never written to. Entries appear whole (``new_entry``):
any number of processes may start at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

from ..files.user_cache import free_bytes, mark_used, new_entry, private_folder, prune
from .mapped_files import MappedFile, mapped

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


def load_or_compile(
    core: Any,
    make_model: Callable[[], Tuple[Any, MappedFile]],
    device: str,
    settings: Dict[str, str],
    folder: Path,
    name: str,
) -> Tuple[Any, MappedFile]:
    """A compiled model, imported from its entry if there is one, else compiled and written to it.

    Args:
        core: the ``openvino.Core``.
        make_model: the model to compile, and the file of its weights; called only if there is no
            entry.
        device: a real device.
        settings: what to compile with.
        folder: from ``compiled_models``.
        name: from ``entry_name``.

    Returns:
        the compiled model, and the file that it reads: the entry, or the weights; it must live as
        long as the model does.
    """
    path = folder / name
    if path.exists():
        try:
            found = _imported(core, path, device, settings)
            mark_used(path)
            return found
        except Exception:
            # Whatever is wrong with an entry, compiling makes a new one.
            with contextlib.suppress(OSError):
                path.unlink()
    model, weights = make_model()
    compiled = core.compile_model(model, device, settings)
    _write(compiled, folder, name)
    return compiled, weights


def _imported(
    core: Any, path: Path, device: str, settings: Dict[str, str]
) -> Tuple[Any, MappedFile]:
    import openvino

    entry = mapped(path)
    tensor = openvino.Tensor(entry.array, shared_memory=True)
    return core.import_model(tensor, device, settings), entry


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
