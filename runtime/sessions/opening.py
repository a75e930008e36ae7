"""Opens the session class that serves a target; nothing else knows all of them."""

from __future__ import annotations

from ..files.manifests import ComponentManifest
from .devices import OPENVINO_TARGETS, SIMULATOR
from .session import Session, SessionOptions


def open_session(manifest: ComponentManifest, options: SessionOptions) -> Session:
    """The session class that serves the manifest's target; nothing is loaded yet."""
    if manifest.target == "onnx":
        from .onnxruntime_session import OnnxRuntimeSession

        return OnnxRuntimeSession(manifest, options)
    if manifest.target in OPENVINO_TARGETS:
        from .openvino_session import OpenVinoSession

        return OpenVinoSession(manifest, options)
    if options.device == SIMULATOR:
        from .simulated_session import SimulatedSession

        return SimulatedSession(manifest, options)
    from .board_session import SailSession

    return SailSession(manifest, options)
