"""The task manifest and processor files against the checkpoint's configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from configs.schema import TASK_COMPONENTS, Task, TaskConfig
from pipeline.json_file import read_object
from pipeline.manifest import TaskManifest
from verify.checkpoint.checkpoint import Checkpoint
from verify.host.finding import Finding

_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_IMAGE_FILE = "preprocessor_config.json"
#: Values that differ from model to model.
_OWN_VALUES = frozenset(("size", "image_mean", "image_std"))
#: Steps of other models' image processors.
_OTHER_STEPS = frozenset(("do_center_crop", "do_pad", "do_thumbnail", "do_align_long_axis"))


def compare_settings(
    manifest: TaskManifest, config: TaskConfig, checkpoint: Checkpoint, folder: Path
) -> list[Finding]:
    """Every value that the runtime reads beside the graphs; ``folder`` is the task folder."""
    found = list(_text(manifest, config, checkpoint))
    found += _image(manifest, checkpoint)
    found += _sizes(manifest, config, checkpoint)
    found += _processor_file(checkpoint, folder)
    return found


def _differs(part: str, where: str, found: Any, expected: Any) -> Iterator[Finding]:
    if found != expected:
        yield Finding(part, where, f"{found!r} instead of {expected!r}")


def _text(manifest: TaskManifest, config: TaskConfig, checkpoint: Checkpoint) -> Iterator[Finding]:
    text, truth, tokenizer = manifest.text, checkpoint.text_config, checkpoint.tokenizer
    pairs = {
        "end_token_id": (text.end_token_id, truth.sep_token_id),
        "start_token_id": (text.start_token_id, truth.bos_token_id),
        "pad_token_id": (text.pad_token_id, truth.pad_token_id),
        "cls_token_id": (text.cls_token_id, tokenizer.cls_token_id),
        "vocabulary_size": (text.vocabulary_size, truth.vocab_size),
        "maximum_positions": (text.maximum_positions, truth.max_position_embeddings),
        "question_start": (text.question_start, config.question_start),
        "lower_case": (text.lower_case, bool(getattr(tokenizer, "do_lower_case", True))),
        "enc_token_id": (text.enc_token_id, checkpoint.encoder_token),
    }
    for name, (found, expected) in pairs.items():
        part = "generation" if name in ("end_token_id", "start_token_id") else "tokenization"
        yield from _differs(part, f"manifest.json text.{name}", found, expected)


def _image(manifest: TaskManifest, checkpoint: Checkpoint) -> Iterator[Finding]:
    image, truth = manifest.image, checkpoint.processor
    size = checkpoint.model.config.vision_config.image_size
    pairs = {
        "height": (image.height, size),
        "width": (image.width, size),
        "resample": (image.resample, _FILTERS.get(int(truth.resample))),
        "rescale_factor": (image.rescale_factor, truth.rescale_factor),
        "mean": (tuple(image.mean), tuple(truth.image_mean)),
        "std": (tuple(image.std), tuple(truth.image_std)),
    }
    for name, (found, expected) in pairs.items():
        yield from _differs("preprocessing", f"manifest.json image.{name}", found, expected)


def _sizes(manifest: TaskManifest, config: TaskConfig, checkpoint: Checkpoint) -> Iterator[Finding]:
    model = checkpoint.model.config
    text, vision, sizes = model.text_config, model.vision_config, manifest.dimensions
    pairs: dict[str, tuple[Any, Any]] = {
        "dimensions.layers": (sizes.layers, text.num_hidden_layers),
        "dimensions.heads": (sizes.heads, text.num_attention_heads),
        "dimensions.head_size": (sizes.head_size, text.hidden_size // text.num_attention_heads),
        "dimensions.hidden_size": (sizes.hidden_size, text.hidden_size),
        "dimensions.vision_hidden_size": (sizes.vision_hidden_size, vision.hidden_size),
        "dimensions.image_tokens": (
            sizes.image_tokens,
            (vision.image_size // vision.patch_size) ** 2 + 1,
        ),
        "shapes": (asdict(manifest.shapes), config.shapes.model_dump()),
        "components": (manifest.components, TASK_COMPONENTS[cast(Task, manifest.task)]),
    }
    if manifest.task == "itm":
        pairs["dimensions.feature_size"] = (sizes.feature_size, model.image_text_hidden_size)
    for name, (found, expected) in pairs.items():
        yield from _differs("settings", f"manifest.json {name}", found, expected)


def _processor_file(checkpoint: Checkpoint, folder: Path) -> Iterator[Finding]:
    """The exported image-processor file: our runtime reads the manifest, others read this."""
    path = folder / "processor" / _IMAGE_FILE
    where = f"processor/{_IMAGE_FILE}"
    try:
        stored = read_object(path)
    except (OSError, ValueError) as error:
        yield Finding("preprocessing", where, f"cannot be read ({error})")
        return
    truth = checkpoint.processor
    size = {"height": truth.size.height, "width": truth.size.width}
    expected = {
        "size": size,
        "resample": int(truth.resample),
        "rescale_factor": truth.rescale_factor,
        "image_mean": list(truth.image_mean),
        "image_std": list(truth.image_std),
        **{f"do_{name}": True for name in ("resize", "rescale", "normalize")},
    }
    for name, value in expected.items():
        if name in stored and not _same(stored[name], value):
            yield Finding(
                "preprocessing", f"{where} {name}", f"{stored[name]!r} instead of {value!r}"
            )
    # What the file leaves out, another program takes from defaults of its own.
    for name in sorted((_OWN_VALUES & expected.keys()) - stored.keys()):
        yield Finding("preprocessing", f"{where} {name}", f"missing, {expected[name]!r} needed")
    for name in sorted(stored.keys() & _OTHER_STEPS):
        if stored[name] and not getattr(truth, name, None):
            what = f"{stored[name]!r}: the checkpoint's images take no such step"
            yield Finding("preprocessing", f"{where} {name}", what)


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        return isinstance(found, list) and np.array_equal(found, expected)
    return bool(found == expected)
