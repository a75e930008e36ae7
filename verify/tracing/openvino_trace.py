"""Every intermediate tensor of an OpenVINO IR, under the exported graph's names."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import ToolError
from runtime.manifests import ComponentManifest
from runtime.openvino_session import compile_settings, shared_core
from runtime.sessions import SessionOptions, narrowed, widened
from verify.tracing.graph import Array, Arrays


class OpenVinoTrace:
    """An IR with an output added at every tensor that the exported graph has too.

    The converter keeps the exported graph's tensor names in the IR. The device fuses less around an
    added output; :meth:`answers` runs the untouched IR, to see whether a fault is still there.
    """

    def __init__(
        self, manifest: ComponentManifest, mode: str, names: Collection[str], net: int = 0
    ) -> None:
        """Reads the IR; outputs are added at ``names`` as far as it has them.

        Raises:
            ToolError: OpenVINO cannot read or compile it.
        """
        self._net = manifest.nets[net]
        path = manifest.folder / self._net.file
        self._options = SessionOptions(mode=mode)
        self._path = path
        core = shared_core()
        try:
            model = core.read_model(str(path))
            contract = {spec.artifact_name for spec in self._net.outputs}
            wanted = set(names) - contract
            ports = {}
            for operation in model.get_ops():
                if operation.get_type_name() in ("Constant", "Result"):
                    continue
                for port in operation.outputs():
                    for name in port.get_names():
                        if name in wanted:
                            ports[name] = port
            model.add_outputs(list({id(p): p for p in ports.values()}.values()))
            self._compiled = core.compile_model(
                model, "CPU", compile_settings(self._options, "CPU")
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ToolError(f"{path}: OpenVINO cannot trace it ({reason}); rebuild it") from None
        self.names = frozenset(ports)
        self._plain: Any = None

    def tensors(self, feeds: Arrays) -> dict[str, Array]:
        """All tensors by the exported graph's names; outputs as the manifest maps them."""
        found = self._run(self._compiled, feeds)
        traced = {name: found[name] for name in self.names if name in found}
        return {**traced, **self._contract(found)}

    def answers(self, feeds: Arrays) -> dict[str, Array]:
        """The contract's outputs of the IR as users run it."""
        if self._plain is None:
            settings = compile_settings(self._options, "CPU")
            self._plain = shared_core().compile_model(str(self._path), "CPU", settings)
        return self._contract(self._run(self._plain, feeds))

    def _contract(self, found: Arrays) -> dict[str, Array]:
        return {spec.name: found[spec.artifact_name] for spec in self._net.outputs}

    def _run(self, compiled: Any, feeds: Arrays) -> dict[str, Array]:
        request = compiled.create_infer_request()
        arrays = {s.artifact_name: narrowed(feeds[s.name], s.dtype) for s in self._net.inputs}
        try:
            request.infer(arrays)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ToolError(f"{self._path}: OpenVINO cannot run it ({reason})") from None
        found = {}
        for index, port in enumerate(compiled.outputs):
            array = widened(np.array(request.get_output_tensor(index).data))
            for name in port.get_names():
                found[name] = array
        return found


def weights_file(path: Path) -> Path:
    """The IR's weights beside its graph."""
    return path.with_suffix(".bin")
