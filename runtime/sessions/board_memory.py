"""Tensors in a board's memory through sophon-sail, and launches and copies that are checked.

sail logs a failed launch or copy and returns as if nothing had happened (every release from 3.9.0
to 3.10.7). What was there before would then become the answer. So an output is marked before the
launch, with bits that no net produces, and an input is read back at an element that changed.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..errors import BackendError
from ..files.manifests import TensorSpec
from ..files.number_formats import narrowed
from .session import one_line

#: numpy dtype name of the manifest -> name in ``sail.Dtype``, and the mark: NaNs that no arithmetic
#: makes, and integers that are no token.
_DTYPES: Dict[str, Tuple[str, np.ndarray]] = {
    "float32": ("BM_FLOAT32", np.array([0x7FDABE1D], np.uint32).view(np.float32)),
    "float16": ("BM_FLOAT16", np.array([0x7F5A], np.uint16)),
    "bfloat16": ("BM_BFLOAT16", np.array([0x7FDA], np.uint16)),
    "int32": ("BM_INT32", np.array([-0x7FDABE1D], np.int32)),
    "uint32": ("BM_UINT32", np.array([0x8FDABE1D], np.uint32)),
    "int16": ("BM_INT16", np.array([-0x7F5A], np.int16)),
    "uint16": ("BM_UINT16", np.array([0xFF5A], np.uint16)),
    "int8": ("BM_INT8", np.array([-128], np.int8)),
    "uint8": ("BM_UINT8", np.array([255], np.uint8)),
}
#: Releases said already.
_noted: List[str] = []


def sail_dtype(sail: Any, dtype: str) -> Optional[Any]:
    """sail's name of a manifest's dtype, or None."""
    return getattr(sail.Dtype, _DTYPES[dtype][0]) if dtype in _DTYPES else None


def bits(array: np.ndarray) -> np.ndarray:
    """An array as sail takes it: float16 as ``uint16``, everything else as it is."""
    return array.view(np.uint16) if array.dtype == np.float16 else array


class DeviceMemory:
    """Tensors on one device."""

    def __init__(self, sail: Any, engine: Any) -> None:
        self._sail = sail
        self._handle = engine.get_handle()
        #: whether a tensor may be a part of another (3.9.1 and later): without, parts are copied
        self.views = "no_copy" in str(sail.Tensor.__init__.__doc__)
        #: one element per dtype that carries what a view would reach
        self._single: Dict[Tuple[str, str], Any] = {}
        if not self.views and not _noted:
            _noted.append("3.9.0")
            print(
                f"note: sophon-sail {_release(sail)} is 3.9.0 or older: it ends the process where "
                "later releases report an error, and each token copies its keys and values; "
                "install 3.10.7",
                file=sys.stderr,
            )

    def tensor(self, shape: Sequence[int], dtype: str) -> Any:
        """A new tensor of zeros.

        Raises:
            BackendError: there is no memory for it.
        """
        try:
            # Without system memory, update_data and asnumpy copy from and to the device themselves.
            return self._sail.Tensor(
                self._handle, list(shape), sail_dtype(self._sail, dtype), False, True
            )
        except Exception as error:
            raise BackendError(
                f"no device memory for {list(shape)} {dtype} ({one_line(error)}; sophon-sail "
                f"{_release(self._sail)}); enlarge the NPU heap, or on an SE5 with sophon-sail "
                "3.9.1 to 3.10.2 install 3.10.7"
            ) from None

    def part(self, tensor: Any, shape: Sequence[int], offset: int) -> Any:
        """A view into a tensor from an element on; the tensor must be kept as long as the view."""
        return self._sail.Tensor(tensor, list(shape), offset, True)

    def write(self, tensor: Any, array: np.ndarray, spec: TensorSpec) -> None:
        """Copies an array to a device tensor, in the spec's dtype."""
        tensor.update_data(bits(narrowed(array, spec.dtype)))

    def read(self, tensor: Any, spec: TensorSpec) -> np.ndarray:
        """Copies a device tensor to an array; bfloat16 as ``uint16`` bits."""
        array: np.ndarray = np.asarray(tensor.asnumpy())
        return array.view(np.float16) if spec.dtype == "float16" else array

    def mark(self, tensor: Any, spec: TensorSpec) -> None:
        """Puts the mark into a tensor's last element."""
        last, mark = _elements(spec) - 1, _DTYPES[spec.dtype][1]
        if self.views:
            self.part(tensor, [1], last).update_data(mark)
            return
        marked = self._single.get(("mark", spec.dtype))
        if marked is None:
            marked = self._single["mark", spec.dtype] = self.tensor([1], spec.dtype)
            marked.update_data(mark)
        tensor.sync_d2d(marked, 0, last, 1)

    def element(self, tensor: Any, spec: TensorSpec, index: int) -> np.ndarray:
        """One element of a tensor, ``[1]``, as ``asnumpy`` gives it."""
        if self.views:
            return np.asarray(self.part(tensor, [1], index).asnumpy())
        single = self._single.get(("read", spec.dtype))
        if single is None:
            single = self._single["read", spec.dtype] = self.tensor([1], spec.dtype)
        single.sync_d2d(tensor, index, 0, 1)
        return np.asarray(single.asnumpy())

    def unwritten(
        self, outputs: Iterable[Tuple[TensorSpec, Any]], arrays: Mapping[str, np.ndarray]
    ) -> Optional[str]:
        """Name of the first of these outputs that still has its mark, or None.

        Args:
            outputs: marked outputs.
            arrays: what was read of them, by name; of the others the last element is read.
        """
        for spec, tensor in outputs:
            read = arrays.get(spec.name)
            last = (
                self.element(tensor, spec, _elements(spec) - 1)
                if read is None
                else read.reshape(-1)[-1:]
            )
            if last.tobytes() == _DTYPES[spec.dtype][1].tobytes():
                return spec.name
        return None

    def copy(self, spec: TensorSpec, copies: Iterable[Tuple[Any, Any, int, int, int]]) -> None:
        """Copies parts of tensors of one spec's dtype on the device, and looks at the last one.

        Args:
            spec: of either side.
            copies: target, source, first element there and here, elements.

        Raises:
            BackendError: the last copy's last element did not arrive.
        """
        done = None
        for done in copies:
            target, source, start, to, count = done
            target.sync_d2d(source, start, to, count)
        if done is not None:
            target, source, start, to, count = done
            found = self.element(target, spec, to + count - 1).tobytes()
            if found != self.element(source, spec, start + count - 1).tobytes():
                raise BackendError(f"'{spec.name}': a copy in the device's memory failed")


class Input:
    """An input tensor that is written from arrays; it knows what it holds."""

    def __init__(self, memory: DeviceMemory, spec: TensorSpec) -> None:
        self._memory = memory
        self._spec = spec
        self.tensor = memory.tensor([int(axis) for axis in spec.shape], spec.dtype)
        self._held: Optional[np.ndarray] = None

    def write(self, array: np.ndarray) -> None:
        """Copies an array of the input's own dtype to the device, unless it is there already.

        Raises:
            BackendError: the copy did not arrive.
        """
        raw = bits(array)
        flat = raw.reshape(-1).view(f"u{raw.itemsize}")
        changed = flat != (0 if self._held is None else self._held)
        index = int(changed.argmax())
        if self._held is not None and not changed[index]:
            return
        self._held = None
        self.tensor.update_data(raw)
        found = self._memory.element(self.tensor, self._spec, index)
        if found.tobytes() != flat[index : index + 1].tobytes():
            raise BackendError(
                f"'{self._spec.name}' did not arrive in the device's memory; "
                "sophon-sail's own lines on stderr say why; restart the board if it stays"
            )
        self._held = flat.copy()


def _release(sail: Any) -> str:
    """The installed wheel's release; sail's own ``__version__`` is the date of its build."""
    for name in ("sophon-arm", "sophon"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return str(getattr(sail, "__version__", "of an unknown release"))


def _elements(spec: TensorSpec) -> int:
    return int(np.prod([int(axis) for axis in spec.shape]))
