"""Proof that a rewritten ``openvino.Model`` computes what the exported graphs do.

The contract's tensors go in and come out, whatever the model makes of them: laid out anew, scaled,
or kept as states. Both sides compute in float32, the exported graphs under onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from compile.graphs.graph import Array
from compile.graphs.parity import Arrays, difference
from configs.errors import ToolError
from pipeline.manifest import FIRST_LOGIT, Net, TensorSpec

if TYPE_CHECKING:
    import openvino

#: Float32 everywhere, also where the plugin's default is shorter.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "PERFORMANCE_HINT": "LATENCY",
}


class ContractModel:
    """A model that takes and gives the contract's tensors."""

    def __init__(
        self, model: openvino.Model, net: Net, settings: Mapping[str, str] | None = None
    ) -> None:
        """Compiles ``model`` for the CPU.

        Raises:
            ToolError: OpenVINO refuses it.
        """
        import openvino

        self._net = net
        self._states = {state.past: state for state in net.states}
        try:
            compiled = openvino.Core().compile_model(model, "CPU", dict(settings or EXACT))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ToolError(f"{model.get_friendly_name()}: does not compile ({reason})") from None
        self._request = compiled.create_infer_request()

    def __call__(self, inputs: Mapping[str, Array]) -> Arrays:
        """One call; a net with states starts from the past that is fed."""
        import openvino

        net, feeds = self._net, {}
        for spec in net.inputs:
            if spec.name not in self._states:
                feeds[spec.artifact_name] = _laid_out(inputs[spec.name], spec)
        rows, new = inputs[net.inputs[0].name].shape[:2]
        if net.row_index:
            feeds[net.row_index] = np.arange(rows, dtype=np.int32)
        if net.first_logit:
            feeds[net.first_logit] = inputs.get(FIRST_LOGIT, np.array(-1))
        variables = {state.name: state for state in self._request.query_state()}
        self._request.reset_state()
        for state in net.states:
            past = inputs[state.past]
            if past.shape[1]:
                content = np.ascontiguousarray(past.transpose(state.order), dtype=np.float32)
                variables[state.artifact_name].state = openvino.Tensor(content)
        self._request.infer(feeds)
        outputs: Arrays = {}
        added = {state.new: state for state in net.states}
        for spec in net.outputs:
            if spec.name in added:
                state = added[spec.name]
                whole = np.array(variables[state.artifact_name].state.data, dtype=np.float32)
                outputs[spec.name] = whole.transpose(np.argsort(state.order))[:, -new:]
            else:
                outputs[spec.name] = _plain(
                    np.array(self._request.get_tensor(spec.artifact_name).data), spec
                )
        return outputs


def _laid_out(array: Array, spec: TensorSpec) -> Array:
    if spec.layout is None:
        return array
    turned = np.ascontiguousarray(array.transpose(spec.layout.order), dtype=np.float32)
    return turned * np.float32(spec.layout.scale)


def _plain(array: Array, spec: TensorSpec) -> Array:
    if spec.layout is None:
        return array
    turned = np.asarray(array.transpose(np.argsort(spec.layout.order)), dtype=np.float32)
    return turned / np.float32(spec.layout.scale)


def largest_difference(
    model: openvino.Model,
    net: Net,
    cases: Sequence[Arrays],
    expected: Sequence[Arrays],
    what: str,
) -> float:
    """Largest absolute difference of a rewritten model from the exported graphs.

    Raises:
        ParityError: beyond the bound between two float32 libraries, or not finite.
        ToolError: OpenVINO cannot run it.
    """
    changed = ContractModel(model, net)
    largest = 0.0
    for case, outputs in zip(cases, expected, strict=True):
        actual = changed(case)
        for spec in net.outputs:
            error = difference(spec.name, outputs[spec.name], actual[spec.name], what)
            largest = max(largest, error)
    return largest
