"""Between numpy arrays as the contract has them and OpenVINO's tensors as an artifact has them."""

from __future__ import annotations

from typing import Any, Sequence, Tuple, Union

import numpy as np

from ..files.manifests import TensorSpec
from ..files.number_formats import narrowed, widened


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
    array = np.ascontiguousarray(array, dtype=kind.to_dtype())
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


def rows(tensor: Any, index: Union[slice, np.ndarray]) -> Any:
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
