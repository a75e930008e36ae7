"""The commands ``info`` and ``devices``."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import textwrap
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Set, Tuple

import numpy as np

from ..errors import ArtifactError, BackendError
from ..files.manifests import (
    TASK_MANIFEST,
    ComponentManifest,
    TensorSpec,
    component_manifests,
    read_task_manifest,
)
from ..files.task_file import in_one_file
from ..tasks.artifacts import HOST_TARGETS, SIMULATOR, board_available
from .reports import mebibytes, say, say_json, table


def info(options: argparse.Namespace) -> int:
    """Runs ``blip-edge info``; returns the exit code."""
    for index, folder in enumerate(_task_folders(Path(options.folder))):
        manifest = read_task_manifest(folder / TASK_MANIFEST)
        manifest.check_files(digests=options.verify_digest)
        found = [
            item
            for item in component_manifests(folder)
            if options.target is None or item.target == options.target
        ]
        if options.target is not None and not found:
            raise ArtifactError(f"{folder}: nothing built for target '{options.target}'")
        found = _as_loaded(found)
        for item in found:
            item.check_files(digests=options.verify_digest)
        if options.json:
            for item in found:
                say_json(_record(item))
            continue
        if index:
            say("")
        checkpoint = manifest.checkpoint
        size = manifest.dimensions
        say(f"{manifest.pipeline}/{manifest.task}  ({folder})")
        say(f"checkpoint  {checkpoint.source}  weights sha256 {checkpoint.weights_sha256[:16]}")
        say(
            f"model       image {manifest.image.height} x {manifest.image.width}, "
            f"{size.image_tokens} image tokens, {size.layers} text layers, {size.heads} heads of "
            f"{size.head_size}, vocabulary {manifest.text.vocabulary_size}"
        )
        print(_components(found))
        for line in [*_totals(found, options.heap_mib), "shapes", *_signatures(found)]:
            say(line)
    return 0


def devices(options: argparse.Namespace) -> int:
    """Runs ``blip-edge devices``; returns the exit code."""
    rows = _onnxruntime() + _openvino() + _sail() + _simulator()
    if options.json:
        for target, device, detail in rows:
            say_json({"target": target, "device": device, "detail": detail})
    else:
        print(table(["target", "device", "detail"], rows))
    return 0


def _task_folders(folder: Path) -> List[Path]:
    if (folder / TASK_MANIFEST).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{TASK_MANIFEST}"))
    if not found:
        raise ArtifactError(f"{folder}: no {TASK_MANIFEST} here or one level down; build it first")
    return found


def _sets(found: List[ComponentManifest]) -> Dict[Tuple[str, str], List[ComponentManifest]]:
    """The components of each target and precision."""
    sets: Dict[Tuple[str, str], List[ComponentManifest]] = {}
    for item in found:
        sets.setdefault((item.target, item.precision), []).append(item)
    return sets


def _as_loaded(found: List[ComponentManifest]) -> List[ComponentManifest]:
    """Components in the files that the runtime loads: for a chip, a combined one if any."""
    loaded: List[ComponentManifest] = []
    for (target, _), items in _sets(found).items():
        loaded += items if target in HOST_TARGETS else in_one_file(items)
    return loaded


def _size_bytes(item: ComponentManifest) -> int:
    return sum(record.size_bytes for record in item.runtime_files.values())


def _costs(found: List[ComponentManifest]) -> List[Tuple[int, Optional[int]]]:
    """Bytes of files and of device memory of each component; of a shared file, the first one's."""
    seen: Set[Path] = set()
    costs = []
    for item in found:
        sizes = {item.folder / name: one.size_bytes for name, one in item.runtime_files.items()}
        nets = {item.folder / net.file for net in item.compiled_nets}
        memory = None if nets <= seen else item.device_memory_bytes
        costs.append((sum(size for path, size in sizes.items() if path not in seen), memory))
        seen |= set(sizes)
    return costs


def _components(found: List[ComponentManifest]) -> str:
    rows = []
    for item, (size_bytes, memory) in zip(found, _costs(found)):
        for index, net in enumerate(item.compiled_nets):
            first = index == 0
            rows.append(
                [
                    item.target if first else "",
                    item.precision if first else "",
                    item.component if first else "",
                    net.name,
                    mebibytes(size_bytes) if first and size_bytes else "",
                    mebibytes(memory) if first and memory is not None else "",
                    "" if net.latency_ms is None else f"{net.latency_ms:.2f}",
                    _digest(item, net.file),
                ]
            )
    header = ["target", "precision", "component", "net", "MiB", "device MiB", "estimate ms"]
    return table([*header, "sha256"], rows)


def _signatures(found: List[ComponentManifest]) -> List[str]:
    """Shapes of every net; targets that share them are named together."""
    targets: Dict[Tuple[str, str, str], List[str]] = {}
    for item in found:
        for net in item.compiled_nets:
            shapes = f"{_shapes(net.inputs)} -> {_shapes(net.outputs)}"
            targets.setdefault((item.component, net.name, shapes), []).append(item.target)
    lines = []
    for (component, net_name, shapes), names in targets.items():
        lines.append(f"{component} {net_name} ({', '.join(dict.fromkeys(names))})")
        lines += textwrap.wrap(shapes, 96, initial_indent="    ", subsequent_indent="    ")
    return lines


def _shapes(specs: Tuple[TensorSpec, ...]) -> str:
    """Shapes, with the repeated ones of layers written once."""
    seen: Dict[str, int] = {}
    for spec in specs:
        parts = spec.name.split(".")
        name = f"{parts[0]}.*" if len(parts) > 2 else spec.name
        text = f"{name}[{','.join(str(axis) for axis in spec.shape)}]"
        seen[text] = seen.get(text, 0) + 1
    return " ".join(f"{count}x{text}" if count > 1 else text for text, count in seen.items())


def _digest(item: ComponentManifest, file: str) -> str:
    record = item.files.get(file)
    return "" if record is None else record.sha256[:12]


def _totals(found: List[ComponentManifest], heap_mib: Optional[int]) -> List[str]:
    lines = []
    for (target, precision), items in _sets(found).items():
        costs = _costs(items)
        total = sum(size_bytes for size_bytes, _ in costs)
        tools: Dict[str, str] = {}
        for item in items:
            tools.update(item.tools)
        versions = ", ".join(f"{name} {version}" for name, version in sorted(tools.items()))
        lines.append(f"{target} {precision}: {mebibytes(total)} MiB of files; tools: {versions}")
        memory = [memory for _, memory in costs if memory]
        if target not in HOST_TARGETS and memory:
            needed = sum(memory) + sum(map(_tensor_bytes, items))
            lines.append("  " + _heap(items[0].memory_layout_mib or {}, needed, heap_mib))
    return lines


def _tensor_bytes(item: ComponentManifest) -> int:
    """What the runtime adds on a board for one image and one sequence: inputs, outputs, a cache."""
    total = 0
    for net in item.nets:
        # A decoder reads the keys and values that are there: one cache, and an image's own states.
        past = ("past.",) if net.name == "step" else ()
        inputs = [s for s in net.inputs if s.name.startswith(past) or "." not in s.name]
        outputs = [s for s in net.outputs if not s.name.startswith("new.")]
        for spec in (*inputs, *outputs):
            shape = [axis for axis in spec.shape if isinstance(axis, int)]
            width = 2 if spec.dtype == "bfloat16" else np.dtype(spec.dtype).itemsize
            total += width * int(np.prod(shape)) if len(shape) == len(spec.shape) else 0
    return total


def _heap(layout: Mapping[str, int], needed_bytes: int, heap_mib: Optional[int]) -> str:
    needed_mib = -(-needed_bytes // (1 << 20))
    most = layout.get("npu")
    available = most if heap_mib is None else heap_mib
    needs = f"needs {needed_mib} MiB of NPU heap"
    if available is None:
        return needs
    if needed_mib <= available:
        where = "the board's" if heap_mib is not None else "the vendor's layout for BLIP:"
        return f"{needs}: fits {where} {available} MiB"
    if most is None or needed_mib > most:
        return f"{needs}: does not fit {available} MiB; use fewer tasks"
    sizes = " ".join(f"-{name} {size}" for name, size in layout.items())
    return f"{needs}: does not fit {available} MiB; set it with memory_edit.sh -c {sizes}"


def _record(item: ComponentManifest) -> Dict[str, Any]:
    return {
        "pipeline": item.pipeline,
        "task": item.task,
        "component": item.component,
        "target": item.target,
        "precision": item.precision,
        "nets": [
            {
                "name": net.name,
                "inputs": {spec.name: list(spec.shape) for spec in net.inputs},
                "outputs": {spec.name: list(spec.shape) for spec in net.outputs},
                "estimate_ms": net.latency_ms,
            }
            for net in item.compiled_nets
        ],
        "files": {name: record.sha256 for name, record in item.files.items()},
        "size_bytes": _size_bytes(item),
        "device_memory_bytes": item.device_memory_bytes,
        "tools": dict(item.tools),
        "rewrites": [rewrite.name for rewrite in item.rewrites],
    }


def _onnxruntime() -> List[Tuple[str, str, str]]:
    if importlib.util.find_spec("onnxruntime") is None:
        return [("onnx", "-", "onnxruntime is not installed (pip install onnxruntime)")]
    import onnxruntime

    return [("onnx", "CPU", f"onnxruntime {onnxruntime.__version__}")]


def _openvino() -> List[Tuple[str, str, str]]:
    from ..sessions.openvino_session import shared_core

    try:
        core = shared_core()
    except BackendError as error:
        return [("openvino", "-", str(error))]
    names = list(core.available_devices)
    rows = [("openvino", name, _openvino_detail(core, name)) for name in names]
    return [*rows, ("openvino", "AUTO", f"takes the best of {', '.join(names)}")]


def _openvino_detail(core: Any, name: str) -> str:
    """A device's full name and what the modes compute in on it."""
    capabilities = [str(item) for item in core.get_property(name, "OPTIMIZATION_CAPABILITIES")]
    modes = ["exact: f32"] if "FP32" in capabilities else []
    # Not every device says what its default is.
    with contextlib.suppress(RuntimeError, AttributeError):
        default = core.get_property(name, "INFERENCE_PRECISION_HINT").get_type_name()
        modes.append(f"fast: {default}")
    return f"{core.get_property(name, 'FULL_DEVICE_NAME')} ({', '.join(modes) or 'fast'})"


def _sail() -> List[Tuple[str, str, str]]:
    if not board_available():
        return [("SOPHON", "-", "sophon-sail is not installed: no board")]
    from sophon import sail

    count = int(sail.get_available_tpu_num())
    return [("SOPHON", str(index), "sophon-sail device") for index in range(count)] or [
        ("SOPHON", "-", "sophon-sail is installed but finds no device")
    ]


def _simulator() -> List[Tuple[str, str, str]]:
    from ..simulator.session import find_python

    try:
        python = str(find_python())
    except BackendError as error:
        return [("SOPHON", "-", str(error))]
    return [("SOPHON", SIMULATOR, f"chip simulator of {python}")]
