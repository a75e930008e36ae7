"""Stands in for sophon-sail where there is no board: real BModels on the vendor's simulator.

It behaves as sail's sources do, in failure too; files and lines are those of release 3.10.7, of
3.9.0 where it says so. ``release("3.9.0")`` makes it the library of that release:

- A failed launch is logged and ``process`` returns, every release (graph.cpp:711-723). So do failed
  copies: ``update_data`` (tensor.cpp:1772-1778), ``asnumpy``, whose array then is memory that
  nobody has written (2468-2471), and ``sync_d2d``, which logs nothing either (1092).
  ``FAULTS`` makes them fail.
- Up to 3.9.0 every error that later raises ends the process with ``exit`` (tensor.cpp:874-882,
  1434-1484; engine.cpp:384-388 of 3.9.0), and there are no views (bind.cpp:286-296 of 3.9.0).
- ``update_data`` takes exactly the dtypes that have an overload (bind.cpp:310-316); all else
  (int64, float16, float64) silently becomes float32, as pybind11's first overload does. From 3.10.7
  on that is refused unless the tensor is float32 (tensor.cpp:1665-1698); before, only too many
  bytes are (1478-1485 of 3.9.0), and int16 and uint32 have no overload (bind.cpp:296-300 of 3.9.0).
- ``asnumpy`` gives half-precision tensors as ``uint16`` and ``uint32`` as ``int32``
  (tensor.cpp:2523-2530).
- ``Engine(path, device, mode)`` allocates all inputs and outputs of all nets (engine.cpp:645-660,
  graph.cpp:554-580); ``Engine(device)`` and ``load`` do not (638-643, 747-749).
- A view is not kept alive by, and does not keep, the tensor that it is part of
  (tensor.cpp:756-810).
- A net reads the bytes of its tensors as its own dtypes: another dtype is never noticed.
- ``Engine.process`` on numpy is float32 only: other inputs are cast, half-precision outputs are
  reinterpreted memory.
- Offsets and lengths of ``sync_d2d`` count elements, and dtypes must match (tensor.cpp:1060-1093).
- Device memory is not system memory: what is not synchronised is not seen.
- ``__version__`` is the date of the build, never the release (tensor.cpp:364-377).

``BUS`` counts the bytes that cross between host and device and the copies on the device;
``MEMORY`` what is allocated there.
"""

from __future__ import annotations

import enum
import os
import sys
import weakref
from collections import Counter
from pathlib import Path

import numpy as np

from runtime.simulator.session import SimulatorSession

DEVICES = 1
__version__ = "master(20251114_120000)"
_release = (3, 10, 7)


class Bus:
    """Bytes copied between host and device, and copies within the device."""

    def __init__(self) -> None:
        self.to_device = 0
        self.from_device = 0
        self.device_copies = 0


class Memory:
    """Bytes of device memory that tensors hold."""

    def __init__(self) -> None:
        self.used = 0
        self.peak = 0

    def change(self, size: int) -> None:
        self.used += size
        self.peak = max(self.peak, self.used)


class Faults:
    """What fails, as the library fails: without an exception."""

    def __init__(self) -> None:
        self.launches: set[tuple[str, int]] = set()  # (end of a net's name, its n-th launch)
        self.copies: set[str] = set()  # update_data, sync_d2d, asnumpy
        self.count: Counter[str] = Counter()

    def launch_fails(self, graph: str) -> bool:
        self.count[graph] += 1
        return any(graph.endswith(net) and self.count[graph] == n for net, n in self.launches)


BUS = Bus()
MEMORY = Memory()
FAULTS = Faults()


def release(number: str) -> None:
    """Makes this the library of a release, e.g. ``3.9.0``."""
    global _release
    _release = tuple(int(part) for part in number.split("."))
    views = "" if _release < (3, 9, 1) else "4. (src, shape, offset: int, no_copy: bool = True)"
    Tensor.__init__.__doc__ = f"Overloaded function. 1. (handle, shape, dtype) {views}"


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
_OVERLOADS = (np.float32, np.int8, np.uint8, np.int32, np.uint16)
_LATER_OVERLOADS = (*_OVERLOADS, np.uint32, np.int16)
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


def _raise(error: RuntimeError, code: int) -> None:
    """Raises, or in 3.9.0 ends the process as C's ``exit`` does: nothing can catch that."""
    if _release < (3, 9, 1):
        print(f"[sail] [error] {error}", file=sys.stderr, flush=True)
        os._exit(code % 256)
    raise error


def _log(line: str) -> None:
    print(f"[sail] [error] {line}", file=sys.stderr, flush=True)


def get_available_tpu_num() -> int:
    return DEVICES


class Handle:
    def __init__(self, dev_id: int) -> None:
        self._dev_id = dev_id

    def get_device_id(self) -> int:
        return self._dev_id


class Tensor:
    def __init__(self, first, shape, third, own_sys_data=False, own_dev_data=False) -> None:
        self._shape = [int(axis) for axis in shape]
        if isinstance(first, Tensor):
            self._view(first, int(third), no_copy=own_sys_data)
            return
        assert isinstance(first, Handle)
        self._dtype = third
        size = self._bytes()
        self._sys = np.zeros(size, dtype=np.uint8) if own_sys_data else None
        self._memory = np.zeros(size, dtype=np.uint8) if own_dev_data else None
        self._root = weakref.ref(self)
        if own_dev_data:
            MEMORY.change(size)
            weakref.finalize(self, MEMORY.change, -size)

    def _view(self, source: Tensor, offset: int, *, no_copy: bool) -> None:
        assert _release >= (3, 9, 1), "3.9.0 has no such constructor"
        self._dtype, self._sys, self._root = source._dtype, None, source._root
        start = offset * np.dtype(_NUMPY[self._dtype]).itemsize
        if source._dev is None:
            _raise(SailTensorError("invalid Tensor"), 2009)
        if start + self._bytes() > source._dev.nbytes:
            _raise(SailTensorError("size out of range"), 2006)
        if not no_copy:
            _raise(SailTensorError("not supported"), 2007)
        self._memory = source._dev[start : start + self._bytes()]

    def _bytes(self) -> int:
        return int(np.prod(self._shape)) * np.dtype(_NUMPY[self._dtype]).itemsize

    @property
    def _dev(self) -> np.ndarray | None:
        assert self._root() is not None, "the tensor that this is a view of has been freed"
        return self._memory

    def shape(self):
        return list(self._shape)

    def dtype(self):
        return self._dtype

    def update_data(self, data: np.ndarray) -> None:
        checked = _release >= (3, 10, 7)
        if data.dtype.type not in (_LATER_OVERLOADS if checked else _OVERLOADS):
            data = data.astype(np.float32)
        if list(data.shape) != self._shape:
            _raise(SailTensorError("invalid argument"), 2004)
        wanted = np.dtype(_NUMPY[self._dtype])
        fits = data.itemsize == wanted.itemsize and (self._dtype in _HALF or data.dtype == wanted)
        if checked and not fits:
            _raise(SailTensorError("Wrong dtype of input array!"), 2005)
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        if raw.nbytes > self._bytes():
            _raise(SailTensorError("size out of range"), 2006)
        if self._sys is not None:
            self._sys[: raw.nbytes] = raw
        elif self._dev is None:
            _raise(SailTensorError("invalid Tensor"), 2003)
        elif "update_data" in FAULTS.copies:
            _log("bm_memcpy_s2d_partial(sys_data=%p, dev_data.addr=%p, size=%d)")
        else:
            self._dev[: raw.nbytes] = raw
            BUS.to_device += raw.nbytes

    def asnumpy(self) -> np.ndarray:
        memory = self._sys
        if memory is None:
            if self._dev is None:
                _raise(SailTensorError("invalid Tensor"), 2003)
            memory = self._dev
            if "asnumpy" in FAULTS.copies:
                _log("bm_memcpy_d2s_partial() err")
                memory = np.full(memory.nbytes, 7, dtype=np.uint8)
            BUS.from_device += memory.nbytes
        seen = np.int32 if self._dtype is Dtype.BM_UINT32 else _NUMPY[self._dtype]
        return memory.view(seen).reshape(self._shape).copy()

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
            _raise(SailTensorError("mismatch Tensor"), 2005)
        if self._dev is None or src._dev is None:
            _raise(SailTensorError("invalid Tensor"), 2009)
        item = np.dtype(_NUMPY[self._dtype]).itemsize
        if (offset_src + len) * item > src._dev.nbytes or (
            offset_dst + len
        ) * item > self._dev.nbytes:
            _raise(SailTensorError("size out of range"), 2007)
        BUS.device_copies += 1
        if "sync_d2d" not in FAULTS.copies:
            source = src._dev[offset_src * item : (offset_src + len) * item].copy()
            self._dev[offset_dst * item : (offset_dst + len) * item] = source


release("3.10.7")


class Engine:
    def __init__(self, bmodel_path: str | int, dev_id: int = 0, mode: IOMode = IOMode.DEVIO):
        device = bmodel_path if isinstance(bmodel_path, int) else dev_id
        if device >= DEVICES:
            _raise(SailEngineError("Engine related error"), 3002)
        self._nets = {}
        self._mode = mode
        self._handle = Handle(device)
        if isinstance(bmodel_path, int):
            return
        if not self.load(bmodel_path):
            _raise(SailEngineError("invalid bmodel"), 3002)
        self._own = [
            Tensor(self._handle, tensor.shape, _DECLARED[tensor.dtype], False, True)
            for net in self._nets.values()
            for tensor in [*net.inputs, *net.outputs]
        ]

    def load(self, bmodel_path: str) -> bool:
        if not Path(bmodel_path).is_file():
            _log(f"bmodel {bmodel_path} does not exist")
            if _release < (3, 9, 1):
                _raise(SailEngineError("invalid bmodel"), 3002)
            return False
        self._session = SimulatorSession(bmodel_path, Path(bmodel_path).parent.name.lower())
        self._nets = self._session.nets()
        return True

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
                _raise(SailEngineError("bad input"), 3007)
        if {tensor.name for tensor in net.inputs} != set(inputs):
            _raise(SailEngineError("bad input"), 3007)
        feeds = {}
        for declared in net.inputs:
            tensor = inputs[declared.name]
            if system_in:
                if tensor._sys is None:
                    _raise(SailEngineError("bad input"), 3007)
                tensor.sync_s2d()
            # Whatever the tensor says it is, the net reads the bytes as its own dtype.
            values = tensor._dev.view(np.dtype(declared.array_dtype))
            # The driver takes the stage that has the tensors' shapes.
            feeds[declared.name] = values.reshape(tensor._shape)
        if FAULTS.launch_fails(graph_name):
            _log("bmrt_launch_tensor_ex() err")
            return None
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
            _raise(SailEngineError("bad input"), 3002)
        net = self._nets[graph_name]
        feeds = {}
        for declared in net.inputs:
            array = np.asarray(inputs[declared.name], dtype=np.float32)
            if declared.dtype not in ("f32", "i32", "i8", "u8"):
                _raise(SailEngineError("not supported"), 3002)
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
