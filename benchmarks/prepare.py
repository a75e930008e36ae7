"""Everything a measurement needs, made when it is missing: checkpoint, ONNX, IR, inputs."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from benchmarks.variants.base import BATCH, MODES, Inputs
from configs.errors import ConfigError, InputError, ToolError
from configs.layout import REPOSITORY_ROOT, Layout, checkpoint_folder
from configs.load import load_target, shown
from configs.schema import PipelineConfig, Task
from pipeline.console import messages
from pipeline.scenes import CAPTION_PROMPT, caption, draw, make_scene, questions
from runtime.files.manifests import read_task_manifest
from runtime.preprocessing.processor import ImagePreprocessor, TextTokenizer

#: Tokens of every caption prompt, and of every question or text, [CLS] and [SEP] included.
PROMPT_TOKENS, TEXT_TOKENS = 5, 8
_RANDOM = re.compile(r"random-(base|large)-(caption|vqa|itm)")


def prepare(
    config: Path, pipeline: PipelineConfig, task: Task, variants: tuple[str, ...]
) -> dict[str, str]:
    """Makes the checkpoint (random ones only), exports it and compiles the IRs that variants need.

    Returns:
        variant -> why it cannot be measured, one line.

    Raises:
        InputError: the checkpoint is missing.
        ToolError: the export failed.
    """
    _make_checkpoint(pipeline, task)
    common = ("--config", str(config), "--task", task)
    if _run("export", *common):
        raise ToolError(f"{shown(config)}: {task} could not be exported; see the lines above")
    modes = [name for name in variants if name in MODES]
    offered = load_target("openvino").precisions
    problems: dict[str, str] = {}
    for precision in {MODES[name][0]: None for name in modes}:
        if precision not in offered:
            problems[precision] = f"OpenVINO artifacts have no precision {precision}"
        elif code := _run("compile", *common, "--target", "openvino", "--precision", precision):
            problems[precision] = f"compiling {precision} failed (exit {code})"
    return {name: problems[MODES[name][0]] for name in modes if MODES[name][0] in problems}


def make_inputs(layout: Layout, task: Task) -> Inputs:
    """The images and texts that every variant gets."""
    manifest = read_task_manifest(layout.task_manifest(task))
    tokenizer = TextTokenizer(manifest.folder / "processor/tokenizer.json", manifest.text)
    scenes = [make_scene(index) for index in range(BATCH.batch)]
    pixels = ImagePreprocessor(manifest.image)([draw(scene) for scene in scenes])
    if task == "caption":
        rows = [_of_length(tokenizer.encode(CAPTION_PROMPT), PROMPT_TOKENS) for _ in scenes]
    else:
        texts = [questions(s)[0].question if task == "vqa" else caption(s) for s in scenes]
        rows = [_of_length(tokenizer.question(text), TEXT_TOKENS) for text in texts]
    return Inputs(pixels, np.array(rows, dtype=np.int64))


def _of_length(ids: list[int], length: int) -> list[int]:
    """First and last id kept, the words between cut or repeated."""
    return [ids[0], *islice(cycle(ids[1:-1]), length - 2), ids[-1]]


def _make_checkpoint(pipeline: PipelineConfig, task: Task) -> None:
    if pipeline.tasks[task].image_size:
        raise ConfigError(
            f"tasks.{task}.image_size: the checkpoint is measured beside the artifacts, at its own "
            "size; remove it"
        )
    folder = checkpoint_folder(pipeline.tasks[task].checkpoint)
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
