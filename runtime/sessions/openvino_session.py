"""Runs OpenVINO IR components on Intel CPUs, GPUs and NPUs."""

from __future__ import annotations

import queue
import weakref
from contextlib import contextmanager
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import numpy as np

from ..errors import BackendError
from ..files.manifests import Dimensions, Net, TensorSpec
from ..files.number_formats import narrowed, widened
from .openvino_models import (
    MappedFile,
    check_arithmetic,
    compile_settings,
    compiled_models,
    computes_in,
    entry_name,
    load_or_compile,
    mapped,
    openvino_device,
)
from .openvino_models import shared_core as shared_core
from .session import Arrays, DecoderRun, Session

if TYPE_CHECKING:
    from ..decoding.openvino_run import ReadyCrossStates

#: Batches at a time; each one holds its own intermediate tensors.
_MOST_REQUESTS = 4
#: Images per call on CPUs, in float32 and in smaller types. The intermediate tensors of more do not
#: fit the caches: sixteen images of 384 pixels at once take a quarter to a third longer each
#: (docs/openvino.md).
_IMAGES_PER_CALL = {"exact": 2, "fast": 4}
#: Tensors that pass from one model to the next, in the type that the device computes in.
_PASSED_ON = "cross."


class OpenVinoSession(Session):
    """A component in OpenVINO IR. A pool of infer requests makes it safe between threads."""

    def _load(self) -> None:
        core = shared_core()
        self.device = openvino_device(self.options.device, list(core.available_devices))
        check_arithmetic(core, self.device, self.options)
        self._compiled: Dict[str, Any] = {}
        self._files: List[MappedFile] = []
        self._idle: Dict[str, "queue.LifoQueue[Any]"] = {}
        settings = compile_settings(self.options, self.device)
        border = computes_in(self.options, self.device)
        for net in self.manifest.nets:
            path = self.manifest.folder / net.file
            try:
                compiled = self._compile(core, net, border, settings)
            except BackendError:
                raise
            except Exception as error:
                raise self._failed(f"cannot load {path} on {self.device}", error) from None
            self._check(compiled, net)
            self._compiled[net.name] = compiled
            self._idle[net.name] = queue.LifoQueue()

    def _model(self, net: Net, border: str) -> Tuple[Any, MappedFile]:
        """The net's model, with the types that it passes on, and the file of its weights."""
        import openvino

        path = self.manifest.folder / net.file
        weights = mapped(path.with_suffix(".bin"))
        model = shared_core().read_model(
            path.read_text(encoding="utf-8"), openvino.Tensor(weights.array, shared_memory=True)
        )
        specs = [spec for spec in (*net.inputs, *net.outputs) if spec.name.startswith(_PASSED_ON)]
        if border == "f32" or not specs or all(spec.layout is None for spec in specs):
            return model, weights
        change = openvino.preprocess.PrePostProcessor(model)
        wanted = element_type(border)
        for spec in net.inputs:
            if spec in specs:
                change.input(spec.artifact_name).tensor().set_element_type(wanted)
        for spec in net.outputs:
            if spec in specs:
                change.output(spec.artifact_name).tensor().set_element_type(wanted)
        return change.build(), weights

    def _compile(self, core: Any, net: Net, border: str, settings: Dict[str, str]) -> Any:
        root = self.options.cache_folder
        keep = root is not None and not self._loses_half_weights(net)
        folder = compiled_models(root) if keep else None
        if folder is None or self.device not in core.available_devices:
            if folder is not None:
                # AUTO and its kin compile for several devices, and keep each one's models
                # themselves.
                settings = {**settings, "CACHE_DIR": str(folder)}
            model, weights = self._model(net, border)
            self._files.append(weights)
            return core.compile_model(model, self.device, settings)
        digests = [record.sha256 for _, record in sorted(self.manifest.runtime_files.items())]
        name = entry_name(core, self.device, settings, *digests, net.file, border)
        compiled, file = load_or_compile(
            core, lambda: self._model(net, border), self.device, settings, folder, name
        )
        self._files.append(file)
        return compiled

    def _loses_half_weights(self, net: Net) -> bool:
        """Whether a compiled model, written and imported again, would read twice as much per token.

        In float32 the CPU plugin keeps a decoder's weights in half precision, and widens them in
        its kernels. It marks them when it reads IR, and the mark is lost with an exported model.
        """
        return self.device == "CPU" and self.options.mode == "exact" and bool(net.states)

    def concurrency(self) -> int:
        """The device's own number of infer requests: one for latency, several for throughput."""
        self.load()
        compiled = self._compiled[self.manifest.nets[0].name]
        wanted = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        return max(1, min(wanted, _MOST_REQUESTS))

    def on_processors(self) -> bool:
        """See ``Session``."""
        self.load()
        return bool(self.device == "CPU")

    def rows_per_call(self, net: Net) -> Optional[int]:
        """See ``Session``; only images are large enough for it to matter."""
        self.load()
        if self.device != "CPU" or not net.input("pixel_values"):
            return None
        return _IMAGES_PER_CALL[self.options.mode]

    def _check(self, compiled: Any, net: Net) -> None:
        states = {name for state in net.states for name in (state.past, state.new)}
        for specs, ports in ((net.fed, compiled.inputs), (net.outputs, compiled.outputs)):
            known = {name for port in ports for name in port.get_names()}
            for spec in specs:
                if spec.name not in states and spec.artifact_name not in known:
                    raise BackendError(
                        f"{self.manifest.folder / net.file}: no tensor '{spec.artifact_name}' as "
                        "in its manifest; rebuild it"
                    )

    def borrow(self, net: Net) -> Any:
        """An infer request for one user at a time; ``give_back`` it."""
        self.load()
        try:
            return self._idle[net.name].get_nowait()
        except queue.Empty:
            return self._compiled[net.name].create_infer_request()

    def give_back(self, net: Net, request: Any, *, again: bool = True) -> None:
        """Returns a request for others to use; not ``again``: what it holds is let go of."""
        if self._loaded:
            if again:
                self._idle[net.name].put(request)
            # Once per generation: little is read again, but the system maps it 2 MiB at a time.
            for file in self._files:
                file.forget()

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turns the backend's own errors into ours.

        Raises:
            BackendError: whatever the backend raised.
        """
        try:
            yield
        except BackendError:
            raise
        except Exception as error:
            raise self._failed("run failed", error) from None

    def infer(self, request: Any, tensors: Mapping[str, Any]) -> None:
        """Runs a request on tensors by the artifact's names; inputs left out stay as they were."""
        with self.failures():
            for name, tensor in tensors.items():
                request.set_tensor(name, tensor)
            with self.in_backend():
                request.infer()

    def cross_states(self, feeds: Arrays, mask: Optional[np.ndarray] = None) -> Any:
        """See ``Session``; where the decoder takes them as they are, they stay in place.

        A single call leaves them in its request's tensors. Several calls write one after the other
        into the same tensors.
        """
        net = self.net(None)
        spec = net.output(_PASSED_ON + "0.key")
        if spec is None or spec.layout is None:
            return super().cross_states(feeds, mask)
        from ..decoding.openvino_run import ReadyCrossStates

        most, rows = self.rows_per_call(net), len(next(iter(feeds.values())))
        if most is not None and rows > most:
            return self._all_finite(ReadyCrossStates(self._gathered(net, feeds, rows, most), mask))
        self.load()
        tensors = self._tensors(net, self._convert(net, feeds))
        request = self.borrow(net)
        try:
            self.infer(request, tensors)
        except BaseException:
            self.give_back(net, request)
            raise
        made = {name: request.get_tensor(port) for name, port in _passed_on(net).items()}
        states = ReadyCrossStates(made, mask)
        weakref.finalize(states, self.give_back, net, request)
        return self._all_finite(states)

    def _all_finite(self, states: "ReadyCrossStates") -> "ReadyCrossStates":
        for name, tensor in states.tensors.items():
            self.finite(name, raw(tensor))
        return states

    def start_run(self, dimensions: Dimensions, cross: Any) -> DecoderRun:
        """See ``Session``."""
        if not self.manifest.nets[0].states:
            return super().start_run(dimensions, cross)
        from ..decoding.openvino_run import StatefulRun

        return StatefulRun(self, cross)

    def _gathered(self, net: Net, feeds: Arrays, count: int, most: int) -> Dict[str, Any]:
        """The tensors passed on; calls of ``most`` rows each write their rows of them in place."""
        compiled = self._compiled[net.name]
        whole = {}
        for name, port in _passed_on(net).items():
            output = compiled.output(port)
            fixed = [axis.get_length() for axis in list(output.get_partial_shape())[1:]]
            whole[name] = empty(output.get_element_type(), [count, *fixed])
        # Not from the pool: a request keeps the tensors that it was given.
        request = compiled.create_infer_request()
        for start in range(0, count, most):
            part = {name: array[start : start + most] for name, array in feeds.items()}
            tensors = self._tensors(net, self._convert(net, part))
            for name, port in _passed_on(net).items():
                tensors[port] = tensor_rows(whole[name], slice(start, start + most))
            self.infer(request, tensors)
        for file in self._files:
            file.forget()
        return whole

    def _tensors(self, net: Net, arrays: List[np.ndarray]) -> Dict[str, Any]:
        compiled = self._compiled[net.name]
        states = {state.past for state in net.states}
        return {
            spec.artifact_name: as_tensor(
                array, spec, compiled.input(spec.artifact_name).get_element_type()
            )
            for spec, array in zip(net.fed, arrays)
            if spec.name not in states
        }

    def _execute(self, net: Net, arrays: List[np.ndarray]) -> List[np.ndarray]:
        request = self.borrow(net)
        try:
            tensors = self._tensors(net, arrays)
            if net.states:
                tensors.update(self._prepare_states(net, request, arrays))
            self.infer(request, tensors)
            return self._outputs(net, request, arrays)
        finally:
            self.give_back(net, request)

    def _prepare_states(self, net: Net, request: Any, arrays: List[np.ndarray]) -> Dict[str, Any]:
        """Makes a call's past the content of the states; row i continues row i."""
        import openvino

        fed = dict(zip((spec.name for spec in net.inputs), arrays))
        with self.failures():
            request.reset_state()
            variables = {state.name: state for state in request.query_state()}
            for state in net.states:
                past = fed[state.past]
                if past.shape[1]:
                    content = np.ascontiguousarray(past.transpose(state.order))
                    variables[state.artifact_name].state = openvino.Tensor(content)
        if net.row_index is None:
            return {}
        rows = np.arange(len(arrays[0]), dtype=np.int32)
        return {net.row_index: openvino.Tensor(rows)}

    def _outputs(self, net: Net, request: Any, arrays: List[np.ndarray]) -> List[np.ndarray]:
        added = {state.new: state for state in net.states}
        variables = {state.name: state for state in request.query_state()} if added else {}
        tokens = arrays[0].shape[1] if added else 0
        outputs = []
        for spec in net.outputs:
            state = added.get(spec.name)
            if state is None:
                outputs.append(from_tensor(request.get_tensor(spec.artifact_name), spec))
            else:
                whole = np.array(variables[state.artifact_name].state.data, dtype=np.float32)
                outputs.append(whole.transpose(np.argsort(state.order))[:, -tokens:])
        return outputs

    def _unload(self) -> None:
        self._compiled, self._idle, self._files = {}, {}, []


def _passed_on(net: Net) -> Dict[str, str]:
    """Contract name to the artifact's name of the outputs that another model takes."""
    specs = [spec for spec in net.outputs if spec.name.startswith(_PASSED_ON)]
    return {spec.name: spec.artifact_name for spec in specs}


def element_type(name: str) -> Any:
    """``f32``, ``f16`` or ``bf16`` as an ``openvino.Type``."""
    import openvino

    return {"f32": openvino.Type.f32, "f16": openvino.Type.f16, "bf16": openvino.Type.bf16}[name]


def as_tensor(array: np.ndarray, spec: TensorSpec, kind: Any) -> Any:
    """A tensor of element type ``kind``, laid out as the artifact wants it.

    Nothing is copied where type and layout are the array's own.
    """
    import openvino

    if spec.layout is not None:
        array = array.transpose(spec.layout.order)
        if spec.layout.scale != 1.0:
            array = array * np.float32(spec.layout.scale)
    name = kind.get_type_name()
    if name == "bf16":
        bits = narrowed(array, "bfloat16")
        tensor = openvino.Tensor(kind, openvino.Shape(list(bits.shape)))
        raw(tensor)[...] = bits
        return tensor
    array = np.asarray(array, dtype=kind.to_dtype(), order="C")
    # An empty array has no memory to share.
    return openvino.Tensor(array, shared_memory=array.size > 0)


def from_tensor(tensor: Any, spec: TensorSpec) -> np.ndarray:
    """A copy of a tensor as the contract has it; half precision as float32."""
    array = np.array(raw(tensor))
    if spec.layout is None:
        return array
    array = widened(array).transpose(np.argsort(spec.layout.order))
    if spec.layout.scale != 1.0:
        array = array / np.float32(spec.layout.scale)
    return np.ascontiguousarray(array)


def empty(kind: Any, shape: Sequence[int]) -> Any:
    """A new tensor of an element type, contents undefined."""
    import openvino

    return openvino.Tensor(kind, openvino.Shape(list(shape)))


def raw(tensor: Any) -> np.ndarray:
    """A tensor's memory; bfloat16 as its bits in ``uint16``, which numpy has no type for."""
    data: np.ndarray = tensor.data
    if tensor.get_element_type().get_type_name() == "bf16":
        return data.view(np.uint16)
    return data


def tensor_rows(tensor: Any, index: Union[slice, np.ndarray]) -> Any:
    """These rows of a tensor's first axis; no copy where they are one consecutive run."""
    import openvino

    shape = list(tensor.get_shape())
    if isinstance(index, slice):
        begin, end = _bounds(index, shape[0])
        if (begin, end) == (0, shape[0]):
            return tensor
        start = openvino.Coordinate([begin] + [0] * (len(shape) - 1))
        return openvino.Tensor(tensor, start, openvino.Coordinate([end, *shape[1:]]))
    picked = empty(tensor.get_element_type(), [len(index), *shape[1:]])
    raw(picked)[...] = raw(tensor)[index]
    return picked


def _bounds(index: slice, length: int) -> Tuple[int, int]:
    begin, end, _ = index.indices(length)
    return begin, end
