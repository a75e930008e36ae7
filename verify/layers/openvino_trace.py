"""Every intermediate tensor of an OpenVINO IR, under the exported graph's names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from runtime.files.manifests import ComponentManifest
from runtime.files.nets import Net
from runtime.files.number_formats import widened
from runtime.sessions.openvino_models import MappedFile
from runtime.sessions.openvino_session import OpenVinoSession
from runtime.sessions.session import SessionOptions
from verify.artifacts import runtime_failures
from verify.layers.graph import Array, Arrays, ExportedGraph

#: Operators from the MVN of a normalisation to its end: scale and shift.
_STEPS_OF_A_NORM = 2
#: Keeps the CPU plugin from turning quantised products into integer ones.
_NO_INTEGER_KERNELS = {"LP_TRANSFORMS_MODE": "NO"}


class OpenVinoTrace(OpenVinoSession):
    """The session that users get, with an output added at every tensor the exported graph has too.

    The converter keeps the exported graph's tensor names in the IR. The device fuses less around an
    added output; the untouched IR says whether a fault is still there. Integer products are
    computed in float, on the same rounded numbers: a device that turns them into integers moves
    scales from one tensor to the next, and its tensors keep their names but not their meaning.
    """

    def __init__(
        self,
        manifest: ComponentManifest,
        mode: str,
        graph: ExportedGraph,
        names: Collection[str],
        quantisers: Mapping[str, str] | None = None,
    ) -> None:
        """Outputs are added at ``names`` as far as the IR has them with the graph's meaning.

        ``quantisers`` holds further ones: a name for the output of each of these nodes of the IR.
        """
        self._quantisers = dict(quantisers or {})
        super().__init__(manifest, SessionOptions(mode=mode, verify_digest=False))
        contract = {spec.name for net in manifest.nets for spec in net.outputs}
        moved = set(_rewritten(manifest, graph))
        self._wanted = (set(names) | set(self._quantisers.values())) - contract - moved
        self._traced: dict[str, Array] = {}
        #: epsilon of each normalisation, by the exported tensor that it makes
        self.epsilons: dict[str, float] = {}
        self._norms = graph.epsilons

    def tensors(self, feeds: Arrays, net: str | None = None) -> dict[str, Array]:
        """All tensors by the exported graph's names; outputs as the manifest maps them.

        Raises:
            ToolError: OpenVINO cannot load or run the IR.
        """
        self._traced = {}
        with runtime_failures():
            outputs = self.run(feeds, net=net)
        return {**self._traced, **outputs}

    def _compile(self, core: Any, net: Net, border: str, settings: dict[str, str]) -> Any:
        if self.device == "CPU":
            settings = {**settings, **_NO_INTEGER_KERNELS}
        return super()._compile(core, net, border, settings)

    def _model(self, net: Net, border: str) -> tuple[Any, MappedFile]:
        model, weights = super()._model(net, border)
        ports = {}
        for operation in model.get_ops():
            if operation.get_type_name() == "MVN":
                self._note_epsilon(operation)
            if operation.get_type_name() in ("Constant", "Result", "Parameter"):
                continue
            if operation.get_friendly_name() in self._quantisers:
                operation.output(0).add_names({self._quantisers[operation.get_friendly_name()]})
            for port in operation.outputs():
                for name in port.get_names() & self._wanted:
                    ports[name] = port
        model.add_outputs(list({id(port): port for port in ports.values()}.values()))
        return model, weights

    def _note_epsilon(self, operation: Any) -> None:
        """A normalisation becomes MVN, a product and a sum; the sum has the exported name."""
        found = operation
        for _ in range(_STEPS_OF_A_NORM):
            readers = [port.get_node() for port in found.output(0).get_target_inputs()]
            if len(readers) != 1:
                return
            found = readers[0]
            for name in found.output(0).get_names() & self._norms.keys():
                self.epsilons[name] = float(operation.get_attributes()["eps"])
                return

    def _outputs(self, net: Net, request: Any, arrays: list[Array]) -> list[Array]:
        outputs = super()._outputs(net, request, arrays)
        for index, port in enumerate(self._compiled[net.name].outputs):
            for name in port.get_names() & self._wanted:
                self._traced[name] = widened(np.array(request.get_output_tensor(index).data))
        return outputs


def _rewritten(manifest: ComponentManifest, graph: ExportedGraph) -> Iterator[str]:
    """Tensors that the IR keeps under their names with another meaning.

    Where cross keys carry the scores' factor, the products before them and the scores themselves
    carry it too. What is compared instead is the contract's tensor, with the factor taken out.
    """
    for net in manifest.nets:
        for spec in (*net.inputs, *net.outputs):
            if spec.layout is not None and spec.layout.scale != 1.0:
                yield from graph.products_before(spec.name)
                yield from graph.products_after(spec.name)
