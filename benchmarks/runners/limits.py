"""The machine's own limits: what OpenVINO's matrix products and a plain read of memory reach."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.runners.base import Measured, Runner, RunnerOptions
from benchmarks.schedule import Workload

#: Matrix products of one ViT-B layer at 384 px, ``(inner, outer)`` of ``[rows, inner] x [inner,
#: outer]``: query, key, value and output projections, and the two of the feed-forward part.
VIT_BASE_PRODUCTS = ((768, 768), (768, 768), (768, 768), (768, 768), (768, 3072), (3072, 768))
#: Tokens of a 384 px image in patches of 16, plus the class token.
VIT_BASE_ROWS = 577
_LAYERS = 6
#: Far beyond any last-level cache.
_READ_BYTES = 1 << 29
GEMM_TYPES = ("f32", "bf16", "int8")


class LimitsRunner(Runner):
    """Matrix products per type through OpenVINO, and read bandwidth through torch."""

    def __init__(self, options: RunnerOptions) -> None:
        super().__init__(options)
        self._products: dict[str, Callable[[], None]] = {}
        self._buffer: Any = None

    def open(self) -> None:
        """Compiles one model per type and fills the buffer."""
        import numpy as np
        import torch

        torch.set_num_threads(self.options.threads)
        for kind in GEMM_TYPES:
            self._products[kind] = _gemm_model(kind, self.options.threads)
        self._buffer = torch.from_numpy(np.ones(_READ_BYTES // 4, dtype=np.float32))

    def facts(self) -> dict[str, Any]:
        """The type that the device computes in by default."""
        import openvino

        hint = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
        return {"default_type": str(hint.get_type_name())}

    def run(self, workload: Workload) -> Measured:
        """One pass; the rate is in ``rates``: floating-point operations or bytes per second."""
        if workload.name == "read_bandwidth":
            begin = time.perf_counter()
            self._buffer.sum()
            elapsed = time.perf_counter() - begin
            return Measured(elapsed, rate=_READ_BYTES / elapsed)
        infer = self._products[workload.name.removeprefix("gemm_")]
        begin = time.perf_counter()
        infer()
        elapsed = time.perf_counter() - begin
        return Measured(elapsed, rate=gemm_operations() / elapsed)


def gemm_operations() -> float:
    """Operations of one pass through the measured stack, two per multiplication and addition."""
    per_row = sum(inner * outer for inner, outer in VIT_BASE_PRODUCTS)
    return 2.0 * VIT_BASE_ROWS * per_row * _LAYERS


def _gemm_model(kind: str, threads: int) -> Callable[[], None]:
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    random = np.random.default_rng(0)
    parameter = ops.parameter([VIT_BASE_ROWS, VIT_BASE_PRODUCTS[0][0]], np.float32)
    state = parameter
    for _ in range(_LAYERS):
        for inner, outer in VIT_BASE_PRODUCTS:
            state = _product(ops, state, random.normal(0, inner**-0.5, (inner, outer)), kind)
    model = openvino.Model([state], [parameter], f"gemm_{kind}")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": str(threads),
        # INT8 layers are what quantised weights and activations make of it; the rest is float32.
        "INFERENCE_PRECISION_HINT": "bf16" if kind == "bf16" else "f32",
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    data = random.normal(0, 1, (VIT_BASE_ROWS, VIT_BASE_PRODUCTS[0][0])).astype(np.float32)

    def infer() -> None:
        request.infer({0: data}, share_inputs=True)

    return infer


def _product(ops: Any, state: Any, weights: Any, kind: str) -> Any:
    import numpy as np

    if kind != "int8":
        constant = ops.constant(weights.astype(np.float32))
        return ops.matmul(state, constant, False, False)
    bound = np.float32(4.0)
    low, high = ops.constant(-bound), ops.constant(bound * 127 / 128)
    state = ops.fake_quantize(state, low, high, low, high, 256)
    scale = np.abs(weights).max(axis=0, keepdims=True) / 127
    stored = ops.constant(np.rint(weights / scale).astype(np.int8))
    floats = ops.convert(stored, "f32")
    return ops.matmul(
        state, ops.multiply(floats, ops.constant(scale.astype(np.float32))), False, False
    )
