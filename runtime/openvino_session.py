"""Runs OpenVINO IR components on Intel CPUs, GPUs and NPUs."""

from __future__ import annotations

import queue
import threading
from typing import Any, Dict, List, Tuple

import numpy as np

from runtime.errors import BackendError
from runtime.manifests import Net
from runtime.sessions import Session, SessionOptions

#: Batches at a time; each one holds its own intermediate tensors.
_MOST_REQUESTS = 4
_CORE_LOCK = threading.Lock()
_CORE: List[Any] = []


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


def compile_settings(options: SessionOptions, device: str) -> Dict[str, str]:
    """OpenVINO properties for our options.

    ``exact`` asks for float32 arithmetic; ``fast`` leaves the device its default: bfloat16 on newer
    CPUs, float16 on GPUs.
    """
    settings = {"PERFORMANCE_HINT": options.performance_hint.upper()}
    if options.mode == "exact":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    if options.threads is not None and device == "CPU":
        settings["INFERENCE_NUM_THREADS"] = str(options.threads)
    if options.cache_folder is not None:
        settings["CACHE_DIR"] = str(options.cache_folder)
    return settings


class OpenVinoSession(Session):
    """A component in OpenVINO IR. A pool of infer requests makes it safe between threads."""

    def _load(self) -> None:
        core = shared_core()
        device = (self.options.device or "CPU").upper()
        available = list(core.available_devices)
        family = device.split(":")[0].split(".")[0]
        if family not in ("AUTO", "MULTI", "HETERO", *(name.split(".")[0] for name in available)):
            raise BackendError(f"device {device}: not found; choose from {', '.join(available)}")
        self._compiled: Dict[str, Any] = {}
        self._idle: Dict[str, "queue.LifoQueue[Any]"] = {}
        self._order: Dict[str, Tuple[List[int], List[int]]] = {}
        for net in self.manifest.nets:
            path = self.manifest.folder / net.file
            try:
                compiled = core.compile_model(
                    str(path), device, compile_settings(self.options, device)
                )
            except Exception as error:
                raise self._failed(f"cannot load {path} on {device}", error) from None
            self._compiled[net.name] = compiled
            self._idle[net.name] = queue.LifoQueue()
            self._order[net.name] = (
                [self._port(compiled.inputs, spec.artifact_name, net) for spec in net.inputs],
                [self._port(compiled.outputs, spec.artifact_name, net) for spec in net.outputs],
            )

    def concurrency(self) -> int:
        """The device's own number of infer requests: one for latency, several for throughput."""
        self.load()
        compiled = self._compiled[self.manifest.nets[0].name]
        wanted = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        return max(1, min(wanted, _MOST_REQUESTS))

    def _port(self, ports: List[Any], name: str, net: Net) -> int:
        for index, port in enumerate(ports):
            if name in port.get_names():
                return index
        raise BackendError(
            f"{self.manifest.folder / net.file}: no tensor '{name}' as in its manifest; rebuild it"
        )

    def _execute(self, net: Net, arrays: List[np.ndarray]) -> List[np.ndarray]:
        inputs, outputs = self._order[net.name]
        idle = self._idle[net.name]
        try:
            request = idle.get_nowait()
        except queue.Empty:
            request = self._compiled[net.name].create_infer_request()
        try:
            # Inputs are read in place; outputs are copied before the request serves another call.
            with self.in_backend():
                request.infer(dict(zip(inputs, arrays)), share_inputs=True)
            return [np.array(request.get_output_tensor(index).data) for index in outputs]
        except Exception as error:
            raise self._failed("run failed", error) from None
        finally:
            idle.put(request)

    def _unload(self) -> None:
        self._compiled, self._idle = {}, {}
