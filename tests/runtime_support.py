"""What the runtime tests share: reference images, checkpoints under HuggingFace, fixed shapes."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from pipeline.scenes import draw, scenes

ROOT = Path(__file__).resolve().parent.parent
MODELS = {
    "caption": BlipForConditionalGeneration,
    "vqa": BlipForQuestionAnswering,
    "itm": BlipForImageTextRetrieval,
}
# Small nets on shared cores: waiting threads would cost more than they bring.
torch.set_num_threads(1)
THREADS = 1
SCENES = list(scenes(8, "heldout"))
IMAGES = [draw(scene) for scene in SCENES]


def checkpoint_folder(artifacts: Path, task: str) -> Path:
    """The checkpoint that a task's artifacts were made from."""
    manifest = json.loads((artifacts / task / "manifest.json").read_text())
    return ROOT / manifest["checkpoint"]["source"]


@functools.cache
def reference_model(artifacts: Path, task: str) -> Any:
    """The checkpoint as a HuggingFace model."""
    return MODELS[task].from_pretrained(checkpoint_folder(artifacts, task)).eval()


@functools.cache
def reference_tokenizer(artifacts: Path, task: str) -> Any:
    """The checkpoint's HuggingFace tokenizer."""
    return AutoTokenizer.from_pretrained(checkpoint_folder(artifacts, task))


@functools.cache
def reference_processor(artifacts: Path, task: str) -> Any:
    """The checkpoint's HuggingFace image processor, the Pillow one."""
    return BlipImageProcessorPil.from_pretrained(checkpoint_folder(artifacts, task))


@functools.cache
def reference_pixels(artifacts: Path, task: str) -> np.ndarray:
    """``IMAGES`` through the HuggingFace image processor."""
    processor = reference_processor(artifacts, task)
    return np.asarray(processor(IMAGES, return_tensors="np")["pixel_values"])


def reference_caption(
    artifacts: Path, pixels: np.ndarray, prompt: str | None, **generation: Any
) -> list[list[int]]:
    """Tokens of HuggingFace ``generate``, one prompt for all images."""
    inputs: dict[str, Any] = {"pixel_values": torch.from_numpy(pixels)}
    if prompt is not None:
        encoded = reference_tokenizer(artifacts, "caption")(
            [prompt] * len(pixels), return_tensors="pt"
        )
        inputs |= {key: encoded[key] for key in ("input_ids", "attention_mask")}
    with warnings.catch_warnings():
        # It warns of lengths that a test sets on purpose, or leaves to the default on purpose.
        warnings.simplefilter("ignore", UserWarning)
        found = reference_model(artifacts, "caption").generate(**inputs, **generation)
    return found.tolist()


def trimmed(row: Any, end: int, pad: int) -> list[int]:
    """A row without what fills it up after its end token."""
    tokens = [int(token) for token in row]
    for index in range(1, len(tokens)):
        if tokens[index] == end:
            return tokens[: index + 1]
    while tokens and tokens[-1] == pad:
        tokens.pop()
    return tokens


def fixed_view(source: Path, destination: Path) -> Path:
    """The ONNX artifacts with manifests that allow the fixed shapes of a chip only."""
    for task in MODELS:
        target = destination / task
        ignored = shutil.ignore_patterns("openvino", "BM*")
        shutil.copytree(source / task, target, ignore=ignored)
        shapes = json.loads((target / "manifest.json").read_text())
        for path in (target / "onnx").glob("*.manifest.json"):
            manifest = json.loads(path.read_text())
            net = manifest["nets"][0]
            if manifest["component"] == "text_decoder":
                lengths = {"first_pass": shapes["shapes"]["text_tokens"], "step": 1}
            else:
                lengths = {"main": shapes["shapes"]["text_tokens"]}
            manifest["nets"] = [
                _fixed_net(net, name, tokens, shapes) for name, tokens in lengths.items()
            ]
            path.write_text(json.dumps(manifest))
    return destination


def _fixed_net(net: dict[str, Any], name: str, tokens: int, task: dict[str, Any]) -> dict[str, Any]:
    fixed = copy.deepcopy(net)
    fixed["name"] = name
    slots = task["shapes"]["past_tokens"] or 0
    question = task["task"] == "vqa"
    encoder = task["shapes"]["text_tokens"] if question else task["dimensions"]["image_tokens"]
    for spec in fixed["inputs"] + fixed["outputs"]:
        kind = spec["name"].split(".")[0]
        dynamic = {
            "past": slots,
            "cross": encoder,
            "encoder_hidden_states": encoder,
        }.get(kind, tokens)
        shape = [axis if isinstance(axis, int) else dynamic for axis in spec["shape"]]
        shape[0] = 1
        if kind == "self_attention_mask":
            shape[3] = slots + tokens
        if kind == "cross_attention_mask":
            shape[3] = encoder
        spec["shape"] = shape
    return fixed
