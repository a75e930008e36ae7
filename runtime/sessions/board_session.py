"""Runs BModel components on SOPHON boards and cards through sophon-sail.

sail's own numpy calls know float32 only: half-precision outputs come back reinterpreted, and int64
or float16 inputs are turned into float32 without a word. So everything goes through ``sail.Tensor``
in device memory, in exactly the dtypes that the net declares: half precision as ``uint16`` bits.
"""

from __future__ import annotations

import weakref
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..errors import BackendError
from ..files.manifests import Dimensions, Net, TensorSpec
from ..files.number_formats import narrowed
from .board_memory import DeviceMemory, Input, sail_dtype
from .session import ArrayDict, Arrays, Session, check_shape

if TYPE_CHECKING:
    from ..decoding.board_run import DeviceCrossStates, DeviceRun


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
                engine = self._pool.take(path, partial(self._opened, path, device))
                self._engines[net.file] = engine
            self._check(net, self._engines[net.file])
        first = self._engines[self.manifest.nets[0].file]
        self.memory = DeviceMemory(sail, first)
        # Made when a call first needs them: tensors that stay on the device take their place.
        self._inputs: Dict[Tuple[str, str], Input] = {}
        self._outputs: Dict[Tuple[str, str], Any] = {}
        # Outputs of ``cross_states`` that nobody holds any more.
        self._free: List[Dict[str, Any]] = []

    def _opened(self, path: Path, device: int) -> Any:
        # An engine made from a path would allocate all inputs and outputs of all nets too.
        try:
            engine = self._sail.Engine(device)
            loaded = engine.load(str(path))
        except Exception as error:
            raise self._failed(f"cannot load {path} on device {device}", error) from None
        if not loaded:
            raise BackendError(
                f"{path}: device {device} cannot load it; sophon-sail's own lines on stderr say why"
            )
        return engine

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
        dtype = sail_dtype(self._sail, spec.dtype)
        if dtype is None:
            raise BackendError(f"{self.manifest.path}: dtype {spec.dtype} is unknown to sail")
        return dtype

    def new_tensor(self, spec: TensorSpec) -> Any:
        """A tensor of zeros in device memory for an input or output."""
        try:
            return self.memory.tensor([int(axis) for axis in spec.shape], spec.dtype)
        except BackendError as error:
            raise self._failed(f"'{spec.name}'", error) from None

    def process(
        self,
        net: Net,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        read: Sequence[str] = (),
    ) -> ArrayDict:
        """Runs a net on device tensors, by contract name; all inputs and outputs must be given.

        Args:
            net: one of the session's nets.
            inputs: its inputs.
            outputs: where its outputs go.
            read: outputs that are copied to arrays and returned; the others stay on the device.

        Raises:
            BackendError: it failed, or the outputs are not written.
        """
        # One launch writes all outputs or none: those that are read anyway prove it for free.
        marked = [
            (spec, outputs[spec.name]) for spec in net.outputs if not read or spec.name in read
        ]
        try:
            with self.in_backend():
                for spec, tensor in marked:
                    self.memory.mark(tensor, spec)
                self.launch(net, inputs, outputs)
                arrays = {
                    spec.name: self.memory.read(tensor, spec)
                    for spec, tensor in marked
                    if spec.name in read
                }
                unwritten = self.memory.unwritten(marked, arrays)
        except Exception as error:
            raise self._failed("run failed", error) from None
        if unwritten is not None:
            raise BackendError(
                f"{self._label(net)}: the launch failed: output '{unwritten}' is not written; "
                "sophon-sail's own lines on stderr say why"
            )
        return arrays

    def launch(self, net: Net, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Starts a net and waits for it, as ``process`` does; a failure goes unnoticed."""
        self.launches[net.name] += 1
        self._engines[net.file].process(
            net.artifact_net or net.name,
            {spec.artifact_name: inputs[spec.name] for spec in net.inputs},
            {spec.artifact_name: outputs[spec.name] for spec in net.outputs},
        )

    def on_processors(self) -> bool:
        """See ``Session``."""
        return False

    def cross_states(self, feeds: Arrays, mask: Optional[np.ndarray] = None) -> "DeviceCrossStates":
        """See ``Session``; they stay in device memory."""
        from ..decoding.board_run import DeviceCrossStates

        net, contexts = self.net(None), len(next(iter(feeds.values())))
        tensors = [
            self.run_resident({name: array[row : row + 1] for name, array in feeds.items()}, net)
            for row in range(contexts)
        ]
        states = DeviceCrossStates(self, tensors, mask)
        weakref.finalize(states, self._free.extend, list(tensors))
        return states

    def start_run(self, dimensions: Dimensions, cross: "DeviceCrossStates") -> "DeviceRun":
        """See ``Session``."""
        from ..decoding.board_run import DeviceRun

        return DeviceRun(self, dimensions, cross)

    def run_resident(self, feeds: Arrays, net: Net) -> Dict[str, Any]:
        """Runs a net on arrays and leaves its outputs in device memory: contract name to tensor."""
        self.load()
        arrays = self._convert(net, feeds)
        with self._lock:
            outputs = (
                self._free.pop()
                if self._free
                else {spec.name: self.new_tensor(spec) for spec in net.outputs}
            )
            self.process(net, self._written(net, arrays), outputs)
        return outputs

    def small_inputs(self, net: Net, feeds: Arrays, resident: Mapping[str, Any]) -> Dict[str, Any]:
        """All inputs of a call: the resident tensors, and the rest copied from arrays."""
        lookups = {lookup.input: lookup for lookup in net.host_lookups}
        named: Dict[str, Any] = dict(resident)
        for spec in net.inputs:
            if spec.name in named:
                continue
            array = (
                self._look_up(lookups[spec.name], feeds)
                if spec.name in lookups
                else np.asarray(feeds[spec.name])
            )
            check_shape(array, spec, self._label(net))
            named[spec.name] = self._write(net, spec, narrowed(array, spec.dtype))
        return named

    def outputs_of(self, net: Net, given: Mapping[str, Any]) -> Dict[str, Any]:
        """All outputs of a call: those given, and the net's own, which its next call overwrites."""
        named = dict(given)
        for spec in net.outputs:
            if spec.name not in named:
                key = net.name, spec.name
                if key not in self._outputs:
                    self._outputs[key] = self.new_tensor(spec)
                named[spec.name] = self._outputs[key]
        return named

    def _execute(self, net: Net, arrays: List[np.ndarray]) -> List[np.ndarray]:
        names = [spec.name for spec in net.outputs]
        with self._lock:
            inputs = self._written(net, arrays)
            read = self.process(net, inputs, self.outputs_of(net, {}), names)
        return [read[name] for name in names]

    def _written(self, net: Net, arrays: List[np.ndarray]) -> Dict[str, Any]:
        return {spec.name: self._write(net, spec, array) for spec, array in zip(net.inputs, arrays)}

    def _write(self, net: Net, spec: TensorSpec, array: np.ndarray) -> Any:
        """The net's own input tensor, holding an array of the input's dtype."""
        key = net.name, spec.name
        try:
            if key not in self._inputs:
                self._inputs[key] = Input(self.memory, spec)
            self._inputs[key].write(array)
        except BackendError as error:
            raise self._failed(f"input of {net.name}", error) from None
        return self._inputs[key].tensor

    def _unload(self) -> None:
        for file in self._engines:
            # sail frees an engine when nothing refers to it any more.
            self._pool.give_back(self.manifest.folder / file, _forget)
        self._inputs, self._outputs, self._free, self._engines = {}, {}, [], {}


def _forget(_engine: Any) -> None:
    pass
