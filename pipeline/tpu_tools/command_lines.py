"""TPU-MLIR's command lines: the one file that knows the vendor tools' flags (tpu_mlir 1.30.2)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path

from configs.errors import ToolError
from configs.layout import TPU_ENVIRONMENT
from configs.load import shown
from configs.precisions import PRECISIONS, Precision

#: Tools as installed in the environment's ``bin`` folder.
TRANSFORM = "model_transform.py"
DEPLOY = "model_deploy.py"
RUNNER = "model_runner.py"
MODEL_TOOL = "model_tool"
_GRAPH, _THRESHOLDS, _TABLE = "--model_def", "--calibration_table", "--quantize_table"

Argv = tuple[str, ...]


def transform(net: str, onnx: str) -> Argv:
    """ONNX with fixed shapes -> top-level MLIR ``<net>.mlir``, which serves every chip."""
    return (
        TRANSFORM,
        *("--model_name", net),
        *(_GRAPH, onnx),
        # The graph is already folded. The tool's own simplification needs ten times the weights'
        # size in memory. The flag is a bool made from a string, so only "" means no.
        *("--do_onnx_sim", ""),
        *("--mlir", f"{net}.mlir"),
    )


def transformed(net: str) -> tuple[str, ...]:
    """Files that :func:`transform` leaves and :func:`deploy` needs: the MLIR and its weights."""
    return (f"{net}.mlir", f"{net}_top_f32_all_weight.npz")


def graph_of(transformation: Sequence[str]) -> str:
    """The ONNX file that a command of :func:`transform` takes."""
    return transformation[list(transformation).index(_GRAPH) + 1]


def with_graph(transformation: Sequence[str], onnx: str) -> Argv:
    """The same command for another ONNX file."""
    place = list(transformation).index(_GRAPH) + 1
    return (*transformation[:place], onnx, *transformation[place + 1 :])


#: Precisions whose nets compute in one half-precision type from border to border.
HALF_PRECISIONS: tuple[Precision, ...] = ("f16", "bf16", "w8f16", "w8bf16", "w4f16", "w4bf16")


def deploy(
    net: str,
    chip: str,
    precision: Precision,
    cores: int,
    *,
    native_borders: bool = False,
    address_mode: str | None = None,
    layer_group_search: int | None = None,
    thresholds: str | None = None,
    table: str | None = None,
    scale_per_channel: bool = False,
) -> Argv:
    """``<net>.mlir`` -> ``<net>.bmodel`` for one chip. Log level 1 lists the fusions made.

    ``native_borders`` leaves out the casts from and to float32 at the inputs and outputs of a net
    that computes in half precision. In other nets it would make the borders integers.
    """
    built = PRECISIONS[precision]
    if built.vendor_flag is None:
        raise ValueError(f"{precision}: TPU-MLIR has no such precision")
    calibration = ("--calibration_table", thresholds) if thresholds else ()
    # Left out, BM1684X and BM1688 give a whole matrix one scale.
    per_channel = ("--matmul_perchannel",) if scale_per_channel and thresholds else ()
    islands = (_TABLE, table) if table else ()
    addresses = ("--addr_mode", address_mode) if address_mode else ()
    searched = layer_group_search
    groups = () if searched is None else ("--shape_secs_search_strategy", str(searched))
    borders = ("--quant_input", "--quant_output") if native_borders and built.half else ()
    several_cores = ("--num_core", str(cores)) if cores > 1 else ()
    return (
        DEPLOY,
        *("--mlir", f"{net}.mlir"),
        *("--chip", chip),
        *("--quantize", built.vendor_flag),
        *calibration,
        *islands,
        *per_channel,
        *several_cores,
        *borders,
        *addresses,
        *groups,
        *("--log_level", "1"),
        *("--model", f"{net}.bmodel"),
    )


def calibration_files(deployment: Sequence[str]) -> tuple[str | None, str | None]:
    """Thresholds and quantize table that a command of :func:`deploy` takes, None without one."""
    following = dict(pairwise(deployment))
    return following.get(_THRESHOLDS), following.get(_TABLE)


def with_debug(deployment: Sequence[str]) -> Argv:
    """The same command, which also leaves its modules: ``<net>_<chip>_<precision>_*_tpu.mlir``."""
    return (*deployment, "--debug")


def dump_tensors(mlir: str, inputs: str, result: str) -> Argv:
    """Runs a module operator by operator, in the chip's number formats; keeps every tensor."""
    return (RUNNER, "--input", inputs, "--model", mlir, "--dump_all_tensors", "--output", result)


def combine(bmodels: Sequence[str], result: str) -> Argv:
    """Several BModels -> one with several nets; nets with equal weights share them."""
    return (MODEL_TOOL, "--combine", *bmodels, "-o", result)


def info(bmodel: str) -> Argv:
    """Prints a BModel's nets, tensors and memory."""
    return (MODEL_TOOL, "--info", bmodel)


def version() -> str:
    """Version of the installed TPU-MLIR, read without starting it.

    Raises:
        ToolError: the environment or the package is missing.
    """
    for packages in sorted(TPU_ENVIRONMENT.glob("lib/python3*/site-packages")):
        for found in metadata.distributions(name="tpu_mlir", path=[str(packages)]):
            return found.version
    raise ToolError(f"{shown(TPU_ENVIRONMENT)}: TPU-MLIR is not installed; run: make setup-tpu")


def tool(name: str) -> Path:
    """Path of a vendor tool.

    Raises:
        ToolError: the environment or the tool is missing.
    """
    path = TPU_ENVIRONMENT / "bin" / name
    if not path.is_file():
        raise ToolError(f"{shown(path)}: vendor tool not found; run: make setup-tpu")
    return path
