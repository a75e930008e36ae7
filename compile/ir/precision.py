"""What the weights of an IR become: half precision, or integers by NNCF.

``int8`` quantises weights and activations with ranges from calibration images; ``w8f16`` and
``w4f16`` compress weights only, the arithmetic stays in float.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from compile.backend import Job
from compile.calibration.examples import images
from configs.errors import ToolError
from configs.precisions import PRECISIONS, Precision
from pipeline.manifest import TaskManifest, read_manifest

if TYPE_CHECKING:
    import openvino

#: Weights that share a scale, in INT4.
_GROUP_SIZE = 32


def convert(model: openvino.Model, job: Job, kind: Precision) -> openvino.Model:
    """The model with its weights, and for ``int8`` its activations, in integers.

    Raises:
        ToolError: NNCF failed, or does not know how to calibrate this component.
    """
    # Otherwise every call is reported to a server, from a process of its own.
    os.environ["NNCF_CI"] = "1"
    # Here, not above: it is slow to load, and only integers need it.
    import nncf

    nncf.set_log_level(logging.ERROR)
    with _quiet():
        try:
            if PRECISIONS[kind].calibrated:
                return _calibrated(model, job)
            if PRECISIONS[kind].weights == "int8":
                return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
            return nncf.compress_weights(
                model, mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=_GROUP_SIZE, ratio=1.0
            )
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ToolError(f"{job.name}: nncf failed ({reason})") from None


def _calibrated(model: openvino.Model, job: Job) -> openvino.Model:
    import nncf

    if job.component != "vision_encoder":
        raise ToolError(
            f"{job.name}: only the vision encoder is calibrated for int8 on OpenVINO; "
            "build this component as w8f16"
        )
    calibration = job.layout.pipeline.calibration
    data = list(_images(job))
    quantized: openvino.Model = nncf.quantize(
        model,
        nncf.Dataset(data),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=min(calibration.samples, len(data)),
        # A shifted bias is no exported one, and verification could not tell it from a wrong one.
        advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
    )
    return quantized


def _images(job: Job) -> Iterator[dict[str, Any]]:
    """The vision encoder's input for each calibration image."""
    # Here, not above: an unchanged run must not wait for numpy to load.
    from compile.calibration.inputs import pixel_values

    settings = read_manifest(TaskManifest, job.layout.task_manifest(job.task)).image
    for image in images(job.layout.pipeline.calibration):
        yield {"pixel_values": pixel_values(image, settings)}


@contextmanager
def _quiet() -> Iterator[None]:
    """NNCF draws progress bars of its own beside ours."""
    from rich import get_console

    console = get_console()
    before = console.quiet
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = before
