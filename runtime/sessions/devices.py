"""One ``--device`` for every target: what may be named, what there is, and what to do instead."""

from __future__ import annotations

from typing import List, Optional, Sequence

from ..errors import BackendError, InputError

ONNX_TARGET = "onnx"
#: IR with dynamic shapes, and with fixed ones.
OPENVINO_TARGETS = ("openvino", "openvino_npu")
#: Targets that are not SOPHON chips.
HOST_TARGETS = (ONNX_TARGET, *OPENVINO_TARGETS)
#: Value of ``device`` that runs a BModel on the vendor's chip simulator.
SIMULATOR = "simulator"
DEFAULT_DEVICE = "CPU"
#: OpenVINO's own devices that choose among, or divide work between, the real ones.
_VIRTUAL = ("AUTO", "MULTI", "HETERO", "BATCH")
_REAL = ("CPU", "GPU", "NPU")


def check_device(target: str, device: Optional[str]) -> None:
    """Compares a device's name with what a target runs on, before anything is loaded.

    Raises:
        InputError: a device of another kind of target.
    """
    if device is None or fits(target, device):
        return
    raise InputError(f"device {device}: target {target} runs on {expected(target)}")


def fits(target: str, device: str) -> bool:
    """Whether a device's name is one that a target could run on."""
    if target in OPENVINO_TARGETS:
        return not device.isdigit() and device != SIMULATOR
    if target == ONNX_TARGET:
        return device.upper() == DEFAULT_DEVICE
    return device.isdigit() or device == SIMULATOR


def expected(target: str) -> str:
    """What may be named for a target, for messages."""
    if target in OPENVINO_TARGETS:
        return "an OpenVINO device: AUTO, CPU, GPU, GPU.1, NPU ('blip-edge devices' lists them)"
    if target == ONNX_TARGET:
        return "CPU"
    return f"a SOPHON device's number, or '{SIMULATOR}'"


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
