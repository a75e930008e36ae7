"""OpenVINO's devices, settings and compiled models.

Compiled models are kept on disk, so that a later start imports them rather than compiles them. An
entry is named by everything that the compiled model depends on: the digests of the artifact's
files, OpenVINO's version, the device and the settings. So it never has to be compared with the
artifact, and an artifact's own folder is never written to. Entries appear whole (``new_entry``):
any number of processes may start at once.

Weights and entries are mapped: the backend reads from disk what it asks for. It repacks most
weights for its processor, once. The pages of the file are not read again after that, but count as
the process's memory until somebody lets go of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import mmap
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..errors import BackendError
from ..files.user_cache import free_bytes, mark_used, new_entry, private_folder, prune
from .session import SessionOptions

#: Divides the rows of weights of BLIP-base (768) and large (1024).
_ACTIVATIONS_PER_SCALE = "256"
_CORE_LOCK = threading.Lock()
_CORE: List[Any] = []
DEFAULT_DEVICE = "CPU"
#: OpenVINO's own devices that choose among, or divide work between, the real ones.
_VIRTUAL = ("AUTO", "MULTI", "HETERO", "BATCH")
_REAL = ("CPU", "GPU", "NPU")
#: Compiled models beyond this are removed, the longest unused first.
MOST_BYTES = 8 << 30
_FOLDER = "openvino"


def shared_core() -> Any:
    """One ``openvino.Core`` per process: plugins load once.

    Raises:
        BackendError: OpenVINO is not installed.
    """
    with _CORE_LOCK:
        if not _CORE:
            try:
                import openvino
            except ImportError:
                raise BackendError("openvino is not installed; pip install openvino") from None
            _CORE.append(openvino.Core())
    return _CORE[0]


def computes_in(options: SessionOptions, device: str) -> str:
    """What a device computes in at a mode: ``f32``, ``f16`` or ``bf16``.

    Where the device has not been chosen yet (AUTO) or does not say, float32.
    """
    if options.mode == "exact":
        return "f32"
    core = shared_core()
    try:
        name = str(core.get_property(device, "INFERENCE_PRECISION_HINT").get_type_name())
    except (RuntimeError, AttributeError):
        return "f32"
    return name if name in ("f16", "bf16") else "f32"


def compile_settings(options: SessionOptions, device: str) -> Dict[str, str]:
    """OpenVINO properties for our options.

    ``exact`` asks for float32 arithmetic, states included; ``fast`` leaves the device its default:
    bfloat16 on newer CPUs, float16 on GPUs.
    """
    settings = {"PERFORMANCE_HINT": options.performance_hint.upper()}
    if options.mode == "exact":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    if device == "CPU":
        # By default past keys and values would be 8-bit integers, and become NaN when a request
        # that held few rows serves more (docs/openvino.md). There is nothing to gain here.
        settings["KV_CACHE_PRECISION"] = computes_in(options, device)
        # How many activations share a scale where they meet weights of 8 bits as 8-bit integers:
        # none in ``exact``. The default of 32 spends a tenth of a decoder step on scales
        # (docs/openvino.md).
        group = "0" if options.mode == "exact" else _ACTIVATIONS_PER_SCALE
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = group
    if options.threads is not None and device == "CPU":
        settings["INFERENCE_NUM_THREADS"] = str(options.threads)
    return settings


def check_arithmetic(core: Any, device: str, options: SessionOptions) -> None:
    """Compares a mode with what a device computes in.

    Raises:
        BackendError: ``exact`` on a device without float32.
    """
    if options.mode != "exact":
        return
    for name in real_devices(device, list(core.available_devices)):
        known = [str(item) for item in core.get_property(name, "OPTIMIZATION_CAPABILITIES")]
        if "FP32" in known:
            return
    raise BackendError(f"device {device}: does not compute in float32; use --mode fast")


def openvino_device(device: Optional[str], available: Sequence[str]) -> str:
    """The name of an OpenVINO device that exists, in OpenVINO's spelling.

    Args:
        device: ``CPU``, ``GPU``, ``GPU.1``, ``NPU``, ``AUTO``, ``AUTO:GPU,CPU``, in any case; None
            for the CPU. Of a list after ``AUTO:`` the devices that exist are kept.
        available: the devices that OpenVINO found.

    Raises:
        BackendError: the device is not here; the message names those that are.
    """
    text = (device or DEFAULT_DEVICE).strip().upper()
    kind, _, listed = text.partition(":")
    if kind not in _VIRTUAL:
        if not _exists(text, available):
            raise _not_here(text, available)
        return text
    if not listed:
        return kind
    names = [name.strip() for name in listed.split(",") if name.strip()]
    # "-GPU" leaves a device out; "GPU(4)" says how many requests it gets.
    here = [n for n in names if n.startswith("-") or _exists(n.split("(")[0], available)]
    if kind == "AUTO" and here:
        return f"{kind}:{','.join(here)}"
    missing = [name for name in names if name not in here]
    if missing:
        raise _not_here(missing[0], available)
    return text


def real_devices(device: str, available: Sequence[str]) -> List[str]:
    """The devices that a name as ``openvino_device`` returns it may end up on."""
    kind, _, listed = device.partition(":")
    if kind not in _VIRTUAL:
        return [device]
    names = [name.split("(")[0] for name in listed.split(",") if name]
    left_out = [name[1:] for name in names if name.startswith("-")]
    wanted = [name for name in names if not name.startswith("-")] or list(available)
    return [name for name in wanted if name not in left_out]


def _exists(name: str, available: Sequence[str]) -> bool:
    # OpenVINO lists "GPU.0" and "GPU.1" where there are two; "GPU" is then the first.
    return name in available or any(known.split(".")[0] == name for known in available)


def _not_here(name: str, available: Sequence[str]) -> BackendError:
    there = ", ".join(available) or "none"
    hint = "AUTO takes the best of them"
    family = name.split(".")[0]
    if family in _REAL and family != DEFAULT_DEVICE:
        hint = f"install its driver, or use AUTO, which takes the best of them ({family} too)"
    return BackendError(f"device {name}: not found; there is: {there}; {hint}")


class MappedFile:
    """A file's bytes, as a backend may borrow them."""

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


_MAPPED: Dict[Tuple[str, int, int, int], MappedFile] = {}
_LOCK = threading.Lock()


def mapped(path: Path) -> MappedFile:
    """A file's mapping, for the rest of the process: a request may outlive its session.

    A file that another has replaced is mapped anew.
    """
    found = path.stat()
    key = (str(path), found.st_ino, found.st_size, found.st_mtime_ns)
    with _LOCK:
        if key not in _MAPPED:
            _MAPPED[key] = MappedFile(path)
        return _MAPPED[key]


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
