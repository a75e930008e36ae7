"""Stands in for sophon-sail where there is no board: real BModels on the vendor's simulator.

It keeps sail's semantics (read from the library's own source), its dtype traps included:

- ``update_data`` takes exactly float32, int8, uint8, int32, uint32, int16 and uint16 arrays. All
  else (int64, float16, float64) silently becomes float32 first, as pybind11's first overload does,
  and is then refused unless the tensor is float32. Half-precision tensors take two-byte items:
  their ``uint16`` bits.
- ``asnumpy`` gives half-precision tensors as ``uint16``.
- A net reads the bytes of its tensors as its own dtypes: another dtype is never noticed.
- ``Engine.process`` on numpy is float32 only: other inputs are cast, half-precision outputs are
  reinterpreted memory.
- Offsets and lengths of ``sync_d2d`` count elements, and dtypes must match.
- Device memory is not system memory: what is not synchronised is not seen.

``BUS`` counts the bytes that cross between host and device.
"""

from __future__ import annotations

import enum
from pathlib import Path

import numpy as np

from runtime.simulator.session import SimulatorSession

DEVICES = 1


class Bus:
    """Bytes copied between host and device."""

    def __init__(self) -> None:
        self.to_device = 0
        self.from_device = 0


BUS = Bus()


class Dtype(enum.Enum):
    BM_FLOAT32 = 0
    BM_FLOAT16 = 1
    BM_INT8 = 2
    BM_UINT8 = 3
    BM_INT16 = 4
    BM_UINT16 = 5
    BM_INT32 = 6
    BM_UINT32 = 7
    BM_BFLOAT16 = 8


class IOMode(enum.Enum):
    SYSI = 0
    SYSO = 1
    SYSIO = 2
    DEVIO = 3


class SailTensorError(RuntimeError):
    pass


class SailEngineError(RuntimeError):
    pass


_HALF = (Dtype.BM_FLOAT16, Dtype.BM_BFLOAT16)
_NUMPY = {
    Dtype.BM_FLOAT32: np.float32,
    Dtype.BM_FLOAT16: np.uint16,
    Dtype.BM_BFLOAT16: np.uint16,
    Dtype.BM_INT8: np.int8,
    Dtype.BM_UINT8: np.uint8,
    Dtype.BM_INT16: np.int16,
    Dtype.BM_UINT16: np.uint16,
    Dtype.BM_INT32: np.int32,
    Dtype.BM_UINT32: np.uint32,
}
_OVERLOADS = (np.float32, np.int8, np.uint8, np.int32, np.uint32, np.int16, np.uint16)
_DECLARED = {
    "f32": Dtype.BM_FLOAT32,
    "f16": Dtype.BM_FLOAT16,
    "bf16": Dtype.BM_BFLOAT16,
    "i32": Dtype.BM_INT32,
    "u32": Dtype.BM_UINT32,
    "i16": Dtype.BM_INT16,
    "u16": Dtype.BM_UINT16,
    "i8": Dtype.BM_INT8,
    "u8": Dtype.BM_UINT8,
}


def get_available_tpu_num() -> int:
    return DEVICES


class Handle:
    def __init__(self, dev_id: int) -> None:
        self._dev_id = dev_id

    def get_device_id(self) -> int:
        return self._dev_id


class Tensor:
    def __init__(self, handle, shape, dtype, own_sys_data=False, own_dev_data=False) -> None:
        assert isinstance(handle, Handle)
        self._shape = [int(axis) for axis in shape]
        self._dtype = dtype
        itemsize = np.dtype(_NUMPY[dtype]).itemsize
        size = int(np.prod(self._shape)) * itemsize
        self._sys = np.zeros(size, dtype=np.uint8) if own_sys_data else None
        self._dev = np.zeros(size, dtype=np.uint8) if own_dev_data else None

    def shape(self):
        return list(self._shape)

    def dtype(self):
        return self._dtype

    def update_data(self, data: np.ndarray) -> None:
        if data.dtype.type not in _OVERLOADS:
            data = data.astype(np.float32)
        if list(data.shape) != self._shape:
            raise SailTensorError("invalid argument")
        wanted = np.dtype(_NUMPY[self._dtype])
        fits = data.itemsize == wanted.itemsize and (self._dtype in _HALF or data.dtype == wanted)
        if not fits:
            raise SailTensorError("Wrong dtype of input array!")
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        if self._sys is not None:
            self._sys[:] = raw
        elif self._dev is not None:
            self._dev[:] = raw
            BUS.to_device += raw.nbytes
        else:
            raise SailTensorError("invalid Tensor")

    def asnumpy(self) -> np.ndarray:
        memory = self._sys
        if memory is None:
            if self._dev is None:
                raise SailTensorError("invalid Tensor")
            memory = self._dev
            BUS.from_device += memory.nbytes
        return memory.view(_NUMPY[self._dtype]).reshape(self._shape).copy()

    def sync_s2d(self) -> None:
        if self._sys is not None and self._dev is not None:
            self._dev[:] = self._sys
            BUS.to_device += self._dev.nbytes

    def sync_d2s(self) -> None:
        if self._sys is not None and self._dev is not None:
            self._sys[:] = self._dev
            BUS.from_device += self._dev.nbytes

    def sync_d2d(self, src: Tensor, offset_src: int, offset_dst: int, len: int) -> None:  # noqa: A002
        if self._dtype != src._dtype:
            raise SailTensorError("mismatch Tensor")
        if self._dev is None or src._dev is None:
            raise SailTensorError("invalid Tensor")
        item = np.dtype(_NUMPY[self._dtype]).itemsize
        if (offset_src + len) * item > src._dev.nbytes or (
            offset_dst + len
        ) * item > self._dev.nbytes:
            raise SailTensorError("size out of range")
        source = src._dev[offset_src * item : (offset_src + len) * item].copy()
        self._dev[offset_dst * item : (offset_dst + len) * item] = source


class Engine:
    def __init__(self, bmodel_path: str, dev_id: int, mode: IOMode) -> None:
        if dev_id >= DEVICES:
            raise SailEngineError("Engine related error")
        self._session = SimulatorSession(bmodel_path, Path(bmodel_path).parent.name.lower())
        self._nets = self._session.nets()
        self._mode = mode
        self._handle = Handle(dev_id)

    def get_handle(self) -> Handle:
        return self._handle

    def get_graph_names(self):
        return list(self._nets)

    def get_input_names(self, graph_name):
        return [tensor.name for tensor in self._nets[graph_name].inputs]

    def get_output_names(self, graph_name):
        return [tensor.name for tensor in self._nets[graph_name].outputs]

    def get_input_dtype(self, graph_name, tensor_name):
        return _dtype_of(self._nets[graph_name].inputs, tensor_name)

    def get_output_dtype(self, graph_name, tensor_name):
        return _dtype_of(self._nets[graph_name].outputs, tensor_name)

    def process(self, graph_name, inputs, outputs=None):
        if outputs is None:
            return self._process_numpy(graph_name, inputs)
        net = self._nets[graph_name]
        system_in = self._mode in (IOMode.SYSI, IOMode.SYSIO)
        for tensor in [*inputs.values(), *outputs.values()]:
            if tensor._dev is None:
                raise SailEngineError("bad input")
        if {tensor.name for tensor in net.inputs} != set(inputs):
            raise SailEngineError("bad input")
        feeds = {}
        for declared in net.inputs:
            tensor = inputs[declared.name]
            if system_in:
                if tensor._sys is None:
                    raise SailEngineError("bad input")
                tensor.sync_s2d()
            # Whatever the tensor says it is, the net reads the bytes as its own dtype.
            values = tensor._dev.view(np.dtype(declared.array_dtype))
            # The driver takes the stage that has the tensors' shapes.
            feeds[declared.name] = values.reshape(tensor._shape)
        results = self._session.run(graph_name, feeds, stage=True)
        for name, array in results.items():
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            if name in outputs:
                outputs[name]._dev[: raw.nbytes] = raw
                if self._mode in (IOMode.SYSO, IOMode.SYSIO):
                    outputs[name].sync_d2s()
        return None

    def _process_numpy(self, graph_name, inputs):
        if self._mode not in (IOMode.SYSI, IOMode.SYSIO):
            raise SailEngineError("bad input")
        net = self._nets[graph_name]
        feeds = {}
        for declared in net.inputs:
            array = np.asarray(inputs[declared.name], dtype=np.float32)
            if declared.dtype not in ("f32", "i32", "i8", "u8"):
                raise SailEngineError("not supported")
            feeds[declared.name] = array.astype(np.dtype(declared.array_dtype))
        results = {}
        for declared, array in zip(
            net.outputs, self._session.run(graph_name, feeds).values(), strict=True
        ):
            if declared.dtype in ("f16", "bf16"):
                # sail reads as many float32 as there are elements: twice the bytes there are.
                memory = np.zeros(array.size * 4, dtype=np.uint8)
                raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                memory[: raw.nbytes] = raw
                results[declared.name] = memory.view(np.float32).reshape(array.shape)
            else:
                results[declared.name] = array.astype(np.float32)
        return results


def _dtype_of(tensors, name):
    found = next(tensor for tensor in tensors if tensor.name == name)
    return _DECLARED[found.dtype]
