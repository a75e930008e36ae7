"""Everything a measurement needs, made when it is missing: checkpoint, ONNX, IR, inputs."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

from benchmarks.runners.inputs import ROWS, Inputs
from benchmarks.schedule import PROMPT_TOKENS
from configs.errors import InputError, ToolError
from configs.layout import REPOSITORY_ROOT, Layout, checkpoint_folder
from configs.load import load_target, shown
from configs.schema import PipelineConfig, Task
from pipeline.console import messages
from pipeline.scenes import CAPTION_PROMPT, caption, draw, make_scene, questions
from runtime.files.manifests import read_task_manifest
from runtime.preprocessing.processor import ImagePreprocessor, TextTokenizer

#: Questions and texts of this many tokens, [CLS] and [SEP] included.
TEXT_TOKENS = 8
#: Mode -> precision set that it needs.
NEEDED_PRECISION = {"exact": "f16", "fast": "f16", "int8": "int8", "int4": "int4"}
_RANDOM = re.compile(r"random-(base|large)-(caption|vqa|itm)")


@dataclass
class Prepared:
    """What is there to measure, and why the rest is not."""

    #: variant -> one-line reason
    missing: dict[str, str] = field(default_factory=dict)


def prepare(
    config: Path, pipeline: PipelineConfig, task: Task, variants: tuple[str, ...]
) -> Prepared:
    """Makes the checkpoint (random ones only), exports it and compiles the IRs that variants need.

    Raises:
        InputError: the checkpoint is missing.
        ToolError: the export failed.
    """
    _checkpoint(pipeline, task)
    common = ["--config", str(config), "--task", task]
    if _run("export", *common):
        raise ToolError(f"{shown(config)}: {task} could not be exported; see the lines above")
    prepared = Prepared()
    offered = load_target("openvino").precisions
    failed: dict[str, str] = {}
    for variant in variants:
        precision = NEEDED_PRECISION.get(variant)
        if precision is None:
            continue
        if precision not in offered:
            failed[precision] = f"OpenVINO artifacts have no precision {precision}"
        elif precision not in failed:
            code = _run("compile", *common, "--target", "openvino", "--precision", precision)
            failed[precision] = f"compiling {precision} failed (exit {code})" if code else ""
        if failed[precision]:
            prepared.missing[variant] = failed[precision]
    return prepared


def make_inputs(pipeline: PipelineConfig, task: Task, path: Path) -> None:
    """Writes the images and texts that every variant gets."""
    manifest = read_task_manifest(Layout(pipeline).task_manifest(task))
    tokenizer = TextTokenizer(manifest.folder / "processor/tokenizer.json", manifest.text)
    scenes = [make_scene(index) for index in range(ROWS)]
    pixels = ImagePreprocessor(manifest.image)([draw(scene) for scene in scenes])
    if task == "caption":
        rows = [_of_length(tokenizer.encode(CAPTION_PROMPT), PROMPT_TOKENS + 1)] * ROWS
    elif task == "vqa":
        texts = [questions(scene)[0].question for scene in scenes]
        rows = [_of_length(tokenizer.question(text), TEXT_TOKENS) for text in texts]
    else:
        rows = [_of_length(tokenizer.question(caption(s)), TEXT_TOKENS) for s in scenes]
    import numpy as np

    Inputs(pixels, np.array(rows, dtype=np.int64)).save(path)


def _of_length(ids: list[int], length: int) -> list[int]:
    """First and last id kept, the words between cut or repeated."""
    return [ids[0], *islice(cycle(ids[1:-1]), length - 2), ids[-1]]


def _checkpoint(pipeline: PipelineConfig, task: Task) -> None:
    source = pipeline.tasks[task].checkpoint
    folder = checkpoint_folder(source)
    if folder is None or (folder / "config.json").is_file():
        return
    name = _RANDOM.fullmatch(folder.name)
    if name is None or name[2] != task:
        raise InputError(
            f"{shown(folder)}: no checkpoint; put it there, or name another in "
            f"tasks.{task}.checkpoint"
        )
    messages.print(f"bench: making {shown(folder)}, a full-size checkpoint with random weights")
    arguments = ("--size", name[1], "--task", task, "--out", str(folder))
    if _run("scripts.make_random_checkpoint", *arguments):
        raise ToolError(f"{shown(folder)}: could not be made; see the lines above")


def _run(module: str, *arguments: str) -> int:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=REPOSITORY_ROOT, check=False).returncode
