"""Runs OpenVINO IR components on Intel CPUs, GPUs and NPUs."""

from __future__ import annotations

import queue
import threading
import weakref
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

import numpy as np

from ..errors import BackendError
from ..files.manifests import Net
from .devices import openvino_device, real_devices
from .mapped_files import MappedFile, mapped
from .model_cache import compiled_models, entry_name, load_or_compile
from .openvino_tensors import as_tensor, element_type, empty, from_tensor, rows
from .session import ArrayDict, Arrays, Session, SessionOptions

#: Batches at a time; each one holds its own intermediate tensors.
_MOST_REQUESTS = 4
#: Images per call on CPUs, in float32 and in smaller types. The intermediate tensors of more do not
#: fit the caches: sixteen images of 384 pixels at once take a quarter to a third longer each
#: (docs/openvino.md).
_IMAGES_PER_CALL = {"exact": 2, "fast": 4}
#: Divides the rows of weights of BLIP-base (768) and large (1024).
_ACTIVATIONS_PER_SCALE = "256"
_CORE_LOCK = threading.Lock()
_CORE: List[Any] = []
#: Tensors that pass from one model to the next, in the type that the device computes in.
_PASSED_ON = "cross."


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


def computes_in(options: SessionOptions, device: str) -> str:
    """What a device computes in at a mode: ``f32``, ``f16`` or ``bf16``.

    Where the device has not been chosen yet (AUTO) or does not say, float32.
    """
    if options.mode == "exact":
        return "f32"
    core = shared_core()
    try:
        name = str(core.get_property(device, "INFERENCE_PRECISION_HINT").get_type_name())
    except (RuntimeError, AttributeError):
        return "f32"
    return name if name in ("f16", "bf16") else "f32"


def compile_settings(options: SessionOptions, device: str) -> Dict[str, str]:
    """OpenVINO properties for our options.

    ``exact`` asks for float32 arithmetic, states included; ``fast`` leaves the device its default:
    bfloat16 on newer CPUs, float16 on GPUs.
    """
    settings = {"PERFORMANCE_HINT": options.performance_hint.upper()}
    if options.mode == "exact":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    if device == "CPU":
        # By default past keys and values would be 8-bit integers, and become NaN when a request
        # that held few rows serves more (docs/openvino.md). There is nothing to gain here.
        settings["KV_CACHE_PRECISION"] = computes_in(options, device)
        # How many activations share a scale where they meet weights of 8 bits as 8-bit integers:
        # none in ``exact``. The default of 32 spends a tenth of a decoder step on scales
        # (docs/openvino.md).
        group = "0" if options.mode == "exact" else _ACTIVATIONS_PER_SCALE
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = group
    if options.threads is not None and device == "CPU":
        settings["INFERENCE_NUM_THREADS"] = str(options.threads)
    return settings


def check_arithmetic(core: Any, device: str, options: SessionOptions) -> None:
    """Compares a mode with what a device computes in.

    Raises:
        BackendError: ``exact`` on a device without float32.
    """
    if options.mode != "exact":
        return
    for name in real_devices(device, list(core.available_devices)):
        known = [str(item) for item in core.get_property(name, "OPTIMIZATION_CAPABILITIES")]
        if "FP32" in known:
            return
    raise BackendError(f"device {device}: does not compute in float32; use --mode fast")


class Resident:
    """Outputs of one call, left where the model wrote them until this object is let go."""

    def __init__(self, net: Net, request: Any) -> None:
        self._net = net
        self._request = request

    def tensors(self, prefix: str = "") -> Dict[str, Any]:
        """Contract name to ``openvino.Tensor`` as the artifact has it: type, axes, scale."""
        return {
            spec.name: self._request.get_tensor(spec.artifact_name)
            for spec in self._net.outputs
            if spec.name.startswith(prefix)
        }

    def arrays(self, prefix: str = "") -> ArrayDict:
        """Contract name to a copy as the contract has it."""
        tensors = self.tensors(prefix)
        return {
            spec.name: from_tensor(tensors[spec.name], spec)
            for spec in self._net.outputs
            if spec.name in tensors
        }


class Gathered:
    """Outputs of several calls, which wrote them one after the other into the same tensors."""

    def __init__(self, tensors: Dict[str, Any]) -> None:
        self._tensors = tensors

    def tensors(self, prefix: str = "") -> Dict[str, Any]:
        """Contract name to ``openvino.Tensor`` as the artifact has it: type, axes, scale."""
        return {name: t for name, t in self._tensors.items() if name.startswith(prefix)}


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

    def rows_per_call(self, net: Net) -> Optional[int]:
        """See ``Session``; only images are large enough for it to matter."""
        self.load()
        if self.device != "CPU" or not net.input("pixel_values"):
            return None
        return _IMAGES_PER_CALL[self.options.mode]

    def _check(self, compiled: Any, net: Net) -> None:
        states = {name for state in net.states for name in (state.past, state.new)}
        for specs, ports in ((net.inputs, compiled.inputs), (net.outputs, compiled.outputs)):
            known = {name for port in ports for name in port.get_names()}
            for spec in specs:
                if spec.name not in states and spec.artifact_name not in known:
                    raise BackendError(
                        f"{self.manifest.folder / net.file}: no tensor '{spec.artifact_name}' as "
                        "in its manifest; rebuild it"
                    )

    def compiled(self, net: Net) -> Any:
        """The ``openvino.CompiledModel`` of a net."""
        self.load()
        return self._compiled[net.name]

    def borrow(self, net: Net) -> Any:
        """An infer request for one user at a time; ``give_back`` it."""
        self.load()
        try:
            return self._idle[net.name].get_nowait()
        except queue.Empty:
            return self._compiled[net.name].create_infer_request()

    def give_back(self, net: Net, request: Any) -> None:
        """Returns a request for others to use."""
        if self._loaded:
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

    def run_resident(self, feeds: Arrays, net: Optional[str] = None) -> Resident:
        """Like ``run``, but nothing is copied out: what the next model reads stays in place.

        Raises:
            InputError: an input is missing or has the wrong shape.
            BackendError: the backend failed.
        """
        chosen = self.net(net)
        self.load()
        tensors = self._tensors(chosen, self._convert(chosen, feeds))
        request = self.borrow(chosen)
        try:
            self.infer(request, tensors)
        except BaseException:
            self.give_back(chosen, request)
            raise
        resident = Resident(chosen, request)
        weakref.finalize(resident, self.give_back, chosen, request)
        return resident

    def run_gathered(self, feeds: Arrays, most: int, prefix: str) -> Gathered:
        """Runs ``most`` rows per call, each of which writes its rows of the outputs in place.

        Args:
            feeds: as in ``run``.
            most: rows per call.
            prefix: of the names of the outputs to keep; all of their axes but the first are fixed.

        Raises:
            InputError: an input is missing or has the wrong shape.
            BackendError: the backend failed.
        """
        net = self.net(None)
        self.load()
        compiled = self._compiled[net.name]
        count = len(next(iter(feeds.values())))
        names = {s.name: s.artifact_name for s in net.outputs if s.name.startswith(prefix)}
        whole = {}
        for name, port in names.items():
            output = compiled.output(port)
            fixed = [axis.get_length() for axis in list(output.get_partial_shape())[1:]]
            whole[name] = empty(output.get_element_type(), [count, *fixed])
        # Not from the pool: a request keeps the tensors that it was given.
        request = compiled.create_infer_request()
        for start in range(0, count, most):
            part = {name: array[start : start + most] for name, array in feeds.items()}
            tensors = self._tensors(net, self._convert(net, part))
            for name, port in names.items():
                tensors[port] = rows(whole[name], slice(start, start + most))
            self.infer(request, tensors)
        for file in self._files:
            file.forget()
        return Gathered(whole)

    def _tensors(self, net: Net, arrays: List[np.ndarray]) -> Dict[str, Any]:
        compiled = self._compiled[net.name]
        states = {state.past for state in net.states}
        return {
            spec.artifact_name: as_tensor(
                array, spec, compiled.input(spec.artifact_name).get_element_type()
            )
            for spec, array in zip(net.inputs, arrays)
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
