"""The precisions: the one table that every list of them is derived from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

#: What a set of artifacts is built as. ``w8f16``: weights INT8, arithmetic f16. ``int8`` and
#: ``int4`` are mixed: what becomes an integer and what stays in float is decided per component.
#: Half precision stands first, integers last: the runtime takes the first one that is there.
Precision = Literal["f16", "bf16", "f32", "w8f16", "w8bf16", "int8", "w4f16", "w4bf16", "int4"]
#: Number format of stored weights.
Storage = Literal["f32", "f16", "bf16", "int8", "int4"]
#: Number format that products and activations are computed in.
Arithmetic = Literal["f32", "f16", "bf16", "int8"]
Backend = Literal["openvino", "sophon"]


@dataclass(frozen=True)
class Format:
    """One precision: what it stores, what it computes in, and what the compilers make of it."""

    weights: Storage
    #: on a chip; OpenVINO's floats follow the device's hint, its integers are integers
    arithmetic: Arithmetic
    #: TPU-MLIR's ``--quantize``; None: no chip has it
    vendor_flag: str | None
    #: peak memory of TPU-MLIR's compiler in float32 weights (BLIP-base, measured)
    deploy_memory: float = 3.0
    #: most bytes per weight of an IR; None: OpenVINO does not build it. What is no product's weight
    #: (norms, biases, tables of positions, projections beside a residual) stays in float in an
    #: integer IR; scales add a few percent.
    ir_bytes: float | None = None

    @property
    def integer_weights(self) -> bool:
        """Whether weights are stored as integers."""
        return self.weights in ("int8", "int4")

    @property
    def calibrated(self) -> bool:
        """Whether activations are integers as well, whose ranges come from calibration."""
        return self.arithmetic == "int8"

    @property
    def half(self) -> bool:
        """Whether a chip's net computes in one half-precision type from border to border."""
        return self.arithmetic in ("f16", "bf16")

    def built_by(self, backend: Backend) -> bool:
        """Whether a backend can build one component so; a set may be made of others."""
        return (self.ir_bytes if backend == "openvino" else self.vendor_flag) is not None


PRECISIONS: Mapping[Precision, Format] = {
    "f16": Format("f16", "f16", "F16", 2.0, 2.0),
    "bf16": Format("bf16", "bf16", "BF16", 2.0),
    "f32": Format("f32", "f32", "F32", 4.0, 4.0),
    "w8f16": Format("int8", "f16", "W8F16", ir_bytes=1.25),
    "w8bf16": Format("int8", "bf16", "W8BF16"),
    "int8": Format("int8", "int8", "INT8", ir_bytes=1.25),
    "w4f16": Format("int4", "f16", "W4F16", ir_bytes=1.1),
    "w4bf16": Format("int4", "bf16", "W4BF16"),
    # A set only: its components are int8, w8f16 and w4f16.
    "int4": Format("int4", "int8", None),
}
