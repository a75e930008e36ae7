"""Runs ONNX components with onnxruntime on the CPU."""

from __future__ import annotations

from typing import Any, Dict, List

import numpy as np

from ..errors import BackendError
from ..files.manifests import Net
from .session import Session


class OnnxRuntimeSession(Session):
    """A component in ONNX. onnxruntime's own sessions are safe to share between threads."""

    def _load(self) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise BackendError("onnxruntime is not installed; pip install onnxruntime") from None
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        if self.options.threads is not None:
            settings.intra_op_num_threads = self.options.threads
        self._sessions: Dict[str, Any] = {}
        for net in self.manifest.nets:
            path = self.manifest.folder / net.file
            try:
                self._sessions[net.name] = onnxruntime.InferenceSession(
                    str(path), settings, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise self._failed(f"cannot load {path}", error) from None

    def _execute(self, net: Net, arrays: List[np.ndarray]) -> List[np.ndarray]:
        feeds = {spec.artifact_name: array for spec, array in zip(net.fed, arrays)}
        names = [spec.artifact_name for spec in net.outputs]
        try:
            with self.in_backend():
                outputs: List[np.ndarray] = self._sessions[net.name].run(names, feeds)
        except Exception as error:
            raise self._failed("run failed", error) from None
        return outputs

    def _unload(self) -> None:
        self._sessions = {}
