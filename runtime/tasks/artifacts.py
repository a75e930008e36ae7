"""Finds the artifacts of a task and opens one session per component."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import threading
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Union

from ..errors import ArtifactError, InputError
from ..files.manifests import (
    TASK_MANIFEST,
    ComponentManifest,
    TaskManifest,
    component_manifests,
    read_task_manifest,
)
from ..sessions.session import FilePool, Session, SessionOptions

ONNX_TARGET = "onnx"
#: What runs where nothing is named and it is there.
_DEFAULT_TARGET = "openvino"
#: IR with dynamic shapes, and with fixed ones.
OPENVINO_TARGETS = ("openvino", "openvino_npu")
#: Targets that are not SOPHON chips.
HOST_TARGETS = (ONNX_TARGET, *OPENVINO_TARGETS)
#: Value of ``device`` that runs a BModel on the vendor's chip simulator.
SIMULATOR = "simulator"


class Artifacts:
    """One task on one target: its manifest and its components' sessions, loaded on first use."""

    def __init__(
        self, manifest: TaskManifest, sessions: Dict[str, Session], target: str, precision: str
    ) -> None:
        self.manifest = manifest
        self.target = target
        self.precision = precision
        self._sessions = sessions
        self._closed = threading.Event()

    @classmethod
    def open(
        cls,
        folder: Union[str, Path],
        task: str,
        *,
        target: str = "openvino",
        precision: Optional[str] = None,
        options: Optional[SessionOptions] = None,
    ) -> "Artifacts":
        """Finds a task's components for a target.

        Args:
            folder: the task folder, or the pipeline folder that holds it.
            task: ``caption``, ``vqa`` or ``itm``.
            target: ``onnx``, ``openvino`` or a chip, e.g. ``bm1684x``.
            precision: e.g. ``f16``, ``w8f16``; None takes what is there, half precision first.
            options: device and mode. Without a device, a chip's artifacts run on the board if its
                driver is installed, else on the vendor's simulator.

        Raises:
            ArtifactError: no such task, target or precision, or a component is missing.
        """
        options = options or SessionOptions()
        manifest = read_task_manifest(task_folder(folder, task) / TASK_MANIFEST)
        if manifest.task != task:
            raise ArtifactError(f"{manifest.path}: holds task {manifest.task}, not {task}")
        found = [m for m in component_manifests(manifest.folder) if m.task == task]
        chosen = _choose(found, manifest, target, precision)
        check_device(target, options.device)
        manifest.check_files(digests=options.verify_digest, remembered=not options.rehash)
        if target not in HOST_TARGETS and options.device is None:
            options = options.with_device("0" if board_available() else SIMULATOR)
        sessions: Dict[str, Session] = {}
        pool = FilePool()
        if target not in HOST_TARGETS:
            from ..files.task_file import in_one_file

            chosen = in_one_file(chosen)
        for item in chosen:
            session = open_session(item, options)
            session.share(pool)
            # One model may compute several components.
            sessions.update(dict.fromkeys((item.component, *item.includes), session))
        return cls(manifest, sessions, target, chosen[0].precision)

    def session(self, component: str) -> Session:
        """The session of a component.

        Raises:
            ArtifactError: the task has no such component.
        """
        if component not in self._sessions:
            known = ", ".join(self._sessions)
            raise ArtifactError(
                f"{self.manifest.path}: no component '{component}' (it has {known})"
            )
        return self._sessions[component]

    def load(self) -> None:
        """Loads every component now rather than on first use."""
        for session in self._sessions.values():
            session.load()

    def load_ahead(self) -> None:
        """Loads every component from now on, in a thread; a call that needs one waits for it.

        What fails to load fails again, and is reported, when it is used.
        """
        threading.Thread(target=self._load_ahead, name="load ahead").start()

    def _load_ahead(self) -> None:
        for session in self._sessions.values():
            if self._closed.is_set():
                return
            with contextlib.suppress(Exception):
                session.load()

    def close(self) -> None:
        """Releases what the sessions hold."""
        self._closed.set()
        for session in self._sessions.values():
            session.close()


def task_folder(folder: Union[str, Path], task: str) -> Path:
    """The folder with the task's manifest: the folder itself, or its subfolder for the task.

    Raises:
        ArtifactError: neither has a manifest.
    """
    base = Path(folder)
    for candidate in (base / task, base):
        if (candidate / TASK_MANIFEST).is_file():
            return candidate
    raise ArtifactError(
        f"{base}: no {task}/{TASK_MANIFEST}; pass a built pipeline's folder (make export)"
    )


def default_target(folder: Union[str, Path], task: str) -> str:
    """The target where none is named: OpenVINO, or what is there if it is the only one."""
    try:
        base = task_folder(folder, task)
        if (base / _DEFAULT_TARGET).is_dir():
            return _DEFAULT_TARGET
        there = {item.target for item in component_manifests(base)}
    except ArtifactError:
        # Whoever opens the artifacts says what is wrong with them.
        return _DEFAULT_TARGET
    return there.pop() if len(there) == 1 else _DEFAULT_TARGET


def board_available() -> bool:
    """Whether the board's Python driver is installed here."""
    try:
        return importlib.util.find_spec("sophon.sail") is not None
    except (ImportError, ValueError):
        return False


def _preference(precision: str) -> Tuple[bool, int, str]:
    """Greatest for what is taken where none is named: half precision, float32, then integers.

    The first number in a precision's name is the bits of a stored weight (docs/manifest.md).
    """
    number = re.search("[0-9]+", precision)
    bits = int(number.group()) if number else 0
    return bits == 16, bits, precision


def _choose(
    found: List[ComponentManifest], manifest: TaskManifest, target: str, precision: Optional[str]
) -> List[ComponentManifest]:
    of_target = [item for item in found if item.target == target]
    if not of_target:
        targets = ", ".join(sorted({item.target for item in found})) or "none"
        raise ArtifactError(
            f"{manifest.folder}: nothing built for target '{target}' (there is: {targets})"
        )
    offered = {item.precision for item in of_target}
    if precision is None:
        precision = max(offered, key=_preference)
    by_component = {item.component: item for item in of_target if item.precision == precision}
    included = {name for item in by_component.values() for name in item.includes}
    wanted = [name for name in manifest.components if name not in included]
    missing = [name for name in wanted if name not in by_component]
    if missing:
        raise ArtifactError(
            f"{manifest.folder}: target {target} has no {missing[0]} in {precision} "
            f"(precisions there: {', '.join(sorted(offered))}); build it"
        )
    return [by_component[name] for name in wanted]


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
        return device.upper() == "CPU"
    return device.isdigit() or device == SIMULATOR


def expected(target: str) -> str:
    """What may be named for a target, for messages."""
    if target in OPENVINO_TARGETS:
        return "an OpenVINO device: AUTO, CPU, GPU, GPU.1, NPU ('blip-edge devices' lists them)"
    if target == ONNX_TARGET:
        return "CPU"
    return f"a SOPHON device's number, or '{SIMULATOR}'"


def open_session(manifest: ComponentManifest, options: SessionOptions) -> Session:
    """The session that serves the manifest's target; only its backend's module is imported."""
    if manifest.target == ONNX_TARGET:
        from ..sessions.onnxruntime_session import OnnxRuntimeSession

        return OnnxRuntimeSession(manifest, options)
    if manifest.target in OPENVINO_TARGETS:
        from ..sessions.openvino_session import OpenVinoSession

        return OpenVinoSession(manifest, options)
    if options.device == SIMULATOR:
        from ..sessions.simulated_session import SimulatedSession

        return SimulatedSession(manifest, options)
    from ..sessions.board_session import SailSession

    return SailSession(manifest, options)
