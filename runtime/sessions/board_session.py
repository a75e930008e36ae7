"""Runs BModel components on SOPHON boards and cards through sophon-sail.

sail's own numpy calls know float32 only: half-precision outputs come back reinterpreted, and int64
or float16 inputs are turned into float32 without a word. So everything goes through ``sail.Tensor``
in device memory, in exactly the dtypes that the net declares: half precision as ``uint16`` bits.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Dict, List, Mapping, Tuple

import numpy as np

from ..errors import BackendError
from ..files.manifests import Net, TensorSpec
from ..files.number_formats import narrowed
from .session import Arrays, Session, check_shape

#: numpy dtype name of the manifest -> name in ``sail.Dtype``.
_DTYPES = {
    "float32": "BM_FLOAT32",
    "float16": "BM_FLOAT16",
    "bfloat16": "BM_BFLOAT16",
    "int32": "BM_INT32",
    "uint32": "BM_UINT32",
    "int16": "BM_INT16",
    "uint16": "BM_UINT16",
    "int8": "BM_INT8",
    "uint8": "BM_UINT8",
}


class SailSession(Session):
    """A component on a board. Calls of one session run one after the other."""

    def _load(self) -> None:
        try:
            import sophon.sail as sail
        except ImportError:
            raise BackendError(
                "sophon-sail is not installed; install the board's SDK, or use --device simulator"
            ) from None
        self._sail: Any = sail
        device = self._device_index()
        self._engines: Dict[str, Any] = {}
        for net in self.manifest.compiled_nets:
            path = self.manifest.folder / net.file
            if net.file not in self._engines:
                mode = sail.IOMode.DEVIO
                try:
                    engine = self._pool.take(path, partial(sail.Engine, str(path), device, mode))
                except Exception as error:
                    raise self._failed(f"cannot load {path} on device {device}", error) from None
                self._engines[net.file] = engine
            self._check(net, self._engines[net.file])
        # Input and output tensors of calls through numpy, made once per net.
        self._buffers: Dict[str, Tuple[List[Any], List[Any]]] = {}

    def _device_index(self) -> int:
        text = self.options.device or "0"
        count = int(self._sail.get_available_tpu_num())
        if not text.isdigit() or int(text) >= count:
            raise BackendError(f"device {text}: pass a number below {count}, or 'simulator'")
        return int(text)

    def _check(self, net: Net, engine: Any) -> None:
        """Compares the file with its manifest: sail never notices a wrong dtype later."""
        graph = net.artifact_net or net.name
        where = self.manifest.folder / net.file
        if graph not in engine.get_graph_names():
            raise BackendError(f"{where}: no net '{graph}' as in its manifest; rebuild it")
        for specs, names, dtype_of in (
            (net.inputs, engine.get_input_names(graph), engine.get_input_dtype),
            (net.outputs, engine.get_output_names(graph), engine.get_output_dtype),
        ):
            for spec in specs:
                if spec.artifact_name not in names:
                    raise BackendError(
                        f"{where}: no tensor '{spec.artifact_name}' as in its manifest; rebuild it"
                    )
                seen = dtype_of(graph, spec.artifact_name)
                if seen != self._dtype(spec):
                    raise BackendError(
                        f"{where}: tensor '{spec.artifact_name}' is {seen}, its manifest says "
                        f"{spec.dtype}; rebuild it"
                    )

    def _dtype(self, spec: TensorSpec) -> Any:
        name = _DTYPES.get(spec.dtype)
        if name is None:
            raise BackendError(f"{self.manifest.path}: dtype {spec.dtype} is unknown to sail")
        return getattr(self._sail.Dtype, name)

    def new_tensor(self, net: Net, spec: TensorSpec, *, zeroed: bool = False) -> Any:
        """A ``sail.Tensor`` in device memory for an input or output."""
        handle = self._engines[net.file].get_handle()
        shape = [int(axis) for axis in spec.shape]
        try:
            # Without system memory, update_data and asnumpy copy from and to the device themselves.
            tensor = self._sail.Tensor(handle, shape, self._dtype(spec), False, True)
            if zeroed:
                self.write(tensor, np.zeros(shape, dtype=np.float32), spec)
        except Exception as error:
            raise self._failed(f"no device memory for '{spec.name}' {shape}", error) from None
        return tensor

    def write(self, tensor: Any, array: np.ndarray, spec: TensorSpec) -> None:
        """Copies an array to a device tensor, in the spec's dtype."""
        tensor.update_data(bits(narrowed(array, spec.dtype)))

    def read(self, tensor: Any, spec: TensorSpec) -> np.ndarray:
        """Copies a device tensor to an array; bfloat16 as ``uint16`` bits."""
        array: np.ndarray = np.asarray(tensor.asnumpy())
        return array.view(np.float16) if spec.dtype == "float16" else array

    def process(self, net: Net, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Runs a net on device tensors, by contract name; all inputs and outputs must be given."""
        graph = net.artifact_net or net.name
        feeds = {spec.artifact_name: inputs[spec.name] for spec in net.inputs}
        results = {spec.artifact_name: outputs[spec.name] for spec in net.outputs}
        try:
            with self.in_backend():
                self._engines[net.file].process(graph, feeds, results)
        except Exception as error:
            raise self._failed("run failed", error) from None

    def run_resident(self, feeds: Arrays, net: Net) -> Dict[str, Any]:
        """Runs a net on arrays and leaves its outputs in device memory: contract name to tensor."""
        self.load()
        arrays = self._convert(net, feeds)
        outputs = {spec.name: self.new_tensor(net, spec) for spec in net.outputs}
        with self._lock:
            inputs, _ = self._io(net)
            for tensor, array in zip(inputs, arrays):
                tensor.update_data(bits(array))
            named = {spec.name: tensor for spec, tensor in zip(net.inputs, inputs)}
            self.process(net, named, outputs)
        return outputs

    def small_inputs(self, net: Net, feeds: Arrays, resident: Mapping[str, Any]) -> Dict[str, Any]:
        """All inputs of a call: the resident tensors, and the rest copied from arrays."""
        inputs, _ = self._io(net)
        lookups = {lookup.input: lookup for lookup in net.host_lookups}
        named: Dict[str, Any] = dict(resident)
        for spec, tensor in zip(net.inputs, inputs):
            if spec.name in named:
                continue
            array = (
                self._look_up(lookups[spec.name], feeds)
                if spec.name in lookups
                else np.asarray(feeds[spec.name])
            )
            check_shape(array, spec, self._label(net))
            self.write(tensor, array, spec)
            named[spec.name] = tensor
        return named

    def outputs_of(self, net: Net) -> Dict[str, Any]:
        """The net's output tensors, which the next call overwrites."""
        _, outputs = self._io(net)
        return {spec.name: tensor for spec, tensor in zip(net.outputs, outputs)}

    def _execute(self, net: Net, arrays: List[np.ndarray]) -> List[np.ndarray]:
        with self._lock:
            inputs, outputs = self._io(net)
            for tensor, array in zip(inputs, arrays):
                tensor.update_data(bits(array))
            self.process(
                net,
                {spec.name: tensor for spec, tensor in zip(net.inputs, inputs)},
                {spec.name: tensor for spec, tensor in zip(net.outputs, outputs)},
            )
            return [self.read(tensor, spec) for tensor, spec in zip(outputs, net.outputs)]

    def _io(self, net: Net) -> Tuple[List[Any], List[Any]]:
        with self._lock:
            if net.name not in self._buffers:
                self._buffers[net.name] = (
                    [self.new_tensor(net, spec) for spec in net.inputs],
                    [self.new_tensor(net, spec) for spec in net.outputs],
                )
            return self._buffers[net.name]

    def _unload(self) -> None:
        for file in self._engines:
            # sail frees an engine when nothing refers to it any more.
            self._pool.give_back(self.manifest.folder / file, _forget)
        self._buffers, self._engines = {}, {}


def _forget(_engine: Any) -> None:
    pass


def bits(array: np.ndarray) -> np.ndarray:
    """An array as sail takes it: float16 as ``uint16``, everything else as it is."""
    return array.view(np.uint16) if array.dtype == np.float16 else array
