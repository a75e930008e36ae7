"""Real inputs of every net: the exported graphs of a task run one after the other.

Lengths are those that chips are compiled for: texts padded, caches of fixed size, partly filled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from compile.calibration.examples import Example, examples
from compile.graph import Array
from configs.errors import InputError, ToolError
from configs.layout import Layout
from configs.manifest import ComponentManifest, ImageSettings, TaskManifest, read_manifest
from configs.schema import CalibrationConfig, Component, StaticShapes, Task

Arrays = dict[str, Array]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_MASKED = np.float32(-10000.0)
#: Steps of one generation that calibrate the step net: lengths differ between examples anyway.
STEPS_PER_EXAMPLE = 2


@dataclass(frozen=True)
class NetInput:
    """One call of one net."""

    component: Component
    net: str
    arrays: Arrays


def pixels(image: Image.Image, settings: ImageSettings) -> Array:
    """An RGB image as ``[1, 3, height, width]`` float32: resized, rescaled, normalised."""
    resized = image.resize((settings.width, settings.height), _FILTERS[settings.resample])
    scaled = np.asarray(resized, dtype=np.float32) * np.float32(settings.rescale_factor)
    mean, std = (np.array(v, dtype=np.float32) for v in (settings.mean, settings.std))
    return np.ascontiguousarray(((scaled - mean) / std).transpose(2, 0, 1)[None])


class TaskGraphs:
    """The exported graphs of one task under onnxruntime, opened when first needed."""

    def __init__(self, layout: Layout, task: Task) -> None:
        self.layout = layout
        self.task: Task = task
        self.manifest = read_manifest(TaskManifest, layout.task_manifest(task))
        self._sessions: dict[Component, onnxruntime.InferenceSession] = {}

    @cached_property
    def tokenizer(self) -> object:
        """The checkpoint's tokenizer."""
        from tokenizers import Tokenizer

        path = self.layout.task(self.task) / "processor" / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"{path}: missing; run: make export FORCE=1")
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def ids(self, text: str) -> list[int]:
        """Token ids with [CLS] first and [SEP] last."""
        found: list[int] = self.tokenizer.encode(text).ids  # type: ignore[attr-defined]
        return found

    def run(self, component: Component, feeds: Arrays) -> Arrays:
        """Runs one exported graph."""
        if component not in self._sessions:
            location = self.layout.onnx(self.task, component)
            manifest = read_manifest(ComponentManifest, location.manifest)
            self._sessions[component] = _session(location.folder / manifest.nets[0].file)
        graph = self._sessions[component]
        names = [output.name for output in graph.get_outputs()]
        taken = {value.name: feeds[value.name] for value in graph.get_inputs()}
        return dict(zip(names, graph.run(names, taken), strict=True))

    def has_input(self, component: Component, name: str) -> bool:
        """Whether an exported graph takes an input of this name."""
        location = self.layout.onnx(self.task, component)
        manifest = read_manifest(ComponentManifest, location.manifest)
        return any(spec.name == name for spec in manifest.nets[0].inputs)


def net_inputs(layout: Layout, task: Task, calibration: CalibrationConfig) -> Iterator[NetInput]:
    """Inputs of all nets of a task, example by example.

    Raises:
        InputError: no examples, or a text that is longer than ``shapes.text_tokens``.
    """
    graphs = TaskGraphs(layout, task)
    shapes = layout.pipeline.tasks[task].shapes
    makers = {"caption": _caption, "vqa": _vqa, "itm": _itm}
    generator = np.random.default_rng(calibration.seed)
    for example in examples(calibration, task):
        feeds = {"pixel_values": pixels(example.image, graphs.manifest.image)}
        yield NetInput("vision_encoder", "main", feeds)
        embeds = graphs.run("vision_encoder", feeds)["image_embeds"]
        yield from makers[task](graphs, shapes, example, embeds, generator)


def _caption(
    graphs: TaskGraphs,
    shapes: StaticShapes,
    example: Example,
    embeds: Array,
    generator: np.random.Generator,
) -> Iterator[NetInput]:
    feeds = {"encoder_hidden_states": embeds}
    yield NetInput("cross_key_values", "main", feeds)
    cross = graphs.run("cross_key_values", feeds)
    prompt = [graphs.manifest.text.start_token_id]
    if example.text:
        prompt += graphs.ids(example.text)[1:-1]
    yield from _decode(graphs, shapes, prompt[: shapes.text_tokens], cross, generator)


def _vqa(
    graphs: TaskGraphs,
    shapes: StaticShapes,
    example: Example,
    embeds: Array,
    generator: np.random.Generator,
) -> Iterator[NetInput]:
    text = _padded(graphs, shapes, example, _question(graphs, example))
    feeds = {**text, "image_embeds": embeds}
    yield NetInput("text_encoder", "main", feeds)
    states = graphs.run("text_encoder", feeds)["last_hidden_state"]
    yield NetInput("cross_key_values", "main", {"encoder_hidden_states": states})
    cross = graphs.run("cross_key_values", {"encoder_hidden_states": states})
    allowed = text["attention_mask"][:, None, None, :] != 0
    cross["cross_attention_mask"] = _additive(allowed)
    start = [graphs.manifest.text.start_token_id]
    yield from _decode(graphs, shapes, start, cross, generator)


def _itm(
    graphs: TaskGraphs,
    shapes: StaticShapes,
    example: Example,
    embeds: Array,
    generator: np.random.Generator,  # noqa: ARG001 - one signature for all tasks
) -> Iterator[NetInput]:
    yield NetInput("vision_projection", "main", {"image_embeds": embeds})
    text = _padded(graphs, shapes, example, _question(graphs, example))
    yield NetInput("text_encoder", "main", {**text, "image_embeds": embeds})
    # Contrastive features start with [CLS], whatever the matching head starts with.
    bare = _padded(graphs, shapes, example, graphs.ids(example.text))
    yield NetInput("text_encoder_unimodal", "main", bare)


def _decode(
    graphs: TaskGraphs,
    shapes: StaticShapes,
    prompt: list[int],
    cross: Arrays,
    generator: np.random.Generator,
) -> Iterator[NetInput]:
    """Decodes greedily until the end token or a full cache; yields the first pass and steps."""
    text, dimensions = graphs.manifest.text, graphs.manifest.dimensions
    slots = shapes.past_tokens or 0
    rows = (1, slots, dimensions.heads, dimensions.head_size)
    cache = {
        f"past.{layer}.{kind}": np.zeros(rows, dtype=np.float32)
        for layer in range(dimensions.layers)
        for kind in ("key", "value")
    }
    first = shapes.text_tokens if graphs.task == "caption" else 1
    past, tokens = 0, prompt
    steps: list[Arrays] = []
    while past + len(tokens) <= min(slots, text.maximum_positions - 1) or past == slots:
        length = first if past == 0 else 1
        feeds = {**_call(tokens, length, past, slots), **cache, **cross}
        if "cross_attention_mask" in cross:
            shape = (1, 1, length, cross["cross_attention_mask"].shape[-1])
            feeds["cross_attention_mask"] = np.broadcast_to(cross["cross_attention_mask"], shape)
        outputs = graphs.run("text_decoder", feeds)
        if past == 0 and graphs.task == "caption":
            yield NetInput("text_decoder", "first_pass", feeds)
        else:
            steps.append(feeds)
        if past == slots:
            break
        cache = {name: array.copy() for name, array in cache.items()}
        for name, array in cache.items():
            new = outputs[name.replace("past.", "new.")]
            array[:, past : past + len(tokens)] = new[:, -len(tokens) :]
        past += len(tokens)
        tokens = [int(outputs["logits"][0].argmax())]
        if tokens[0] == text.end_token_id:
            break
    count = min(STEPS_PER_EXAMPLE, len(steps))
    for index in sorted(generator.choice(len(steps), count, replace=False)) if count else []:
        yield NetInput("text_decoder", "step", steps[int(index)])


def _call(tokens: list[int], length: int, past: int, slots: int) -> Arrays:
    """Ids, positions and self mask of a call of fixed length over a cache of ``slots`` rows."""
    pads = length - len(tokens)
    ids = np.zeros((1, length), dtype=np.int64)
    ids[0, pads:] = tokens
    positions = np.zeros((1, length), dtype=np.int64)
    positions[0, pads:] = np.arange(past, past + len(tokens))
    allowed = np.zeros((1, length, slots + length), dtype=bool)
    allowed[:, pads:, :past] = True
    allowed[:, :, slots:] = np.tril(np.ones((length, length), dtype=bool))
    allowed[:, pads:, slots : slots + pads] = False
    return {
        "input_ids": ids,
        "position_ids": positions,
        "self_attention_mask": _additive(allowed)[:, None],
    }


def _question(graphs: TaskGraphs, example: Example) -> list[int]:
    ids = graphs.ids(example.text)
    text = graphs.manifest.text
    if text.question_start == "enc" and text.enc_token_id is not None:
        ids = [text.enc_token_id, *ids[1:]]
    return ids


def _padded(graphs: TaskGraphs, shapes: StaticShapes, example: Example, ids: list[int]) -> Arrays:
    length = shapes.text_tokens
    if len(ids) > length:
        raise InputError(
            f"calibration: {example.name}: text of {len(ids)} tokens, but "
            f"tasks.{graphs.task}.shapes.text_tokens is {length}; shorten it or raise that"
        )
    input_ids = np.full((1, length), graphs.manifest.text.pad_token_id, dtype=np.int64)
    input_ids[0, : len(ids)] = ids
    mask = np.zeros((1, length), dtype=np.int64)
    mask[0, : len(ids)] = 1
    return {"input_ids": input_ids, "attention_mask": mask}


def _additive(allowed: Array) -> Array:
    return np.where(allowed, np.float32(0.0), _MASKED)


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime raises its own classes, which share no base but Exception.
        reason = " ".join(str(error).split())
        raise ToolError(f"{path}: onnxruntime cannot load this graph ({reason})") from None
