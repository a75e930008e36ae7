"""Real inputs of every net: the exported graphs of a task run one after the other.

Lengths are those that chips are compiled for: texts padded, caches of fixed size, partly filled.
Pixels, ids, masks, positions and caches are made by the runtime's own functions: nets are
calibrated with what they get in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
from PIL.Image import Image

from compile.calibration.examples import Example, examples
from compile.graphs.graph import Array
from configs.errors import InputError, ToolError
from configs.layout import Layout
from configs.schema import TASK_COMPONENTS, CalibrationConfig, Component, StaticShapes, Task
from pipeline.manifest import ComponentManifest, ImageSettings, TaskManifest, read_manifest
from runtime.decoding.caches import FixedCache
from runtime.decoding.decoder_run import CROSS_MASK, CrossStates, cross_mask, fixed_call
from runtime.errors import BlipEdgeError
from runtime.preprocessing.processor import ImagePreprocessor, TextTokenizer

Arrays = dict[str, Array]


@dataclass(frozen=True)
class NetInput:
    """One call of one net."""

    component: Component
    net: str
    arrays: Arrays


def pixel_values(image: Image, settings: ImageSettings) -> Array:
    """An RGB image as ``[1, 3, height, width]`` float32, as the runtime makes it."""
    preprocessor = ImagePreprocessor(settings)
    return preprocessor.pixels(image)[None]


class TaskGraphs:
    """The exported graphs of one task under onnxruntime, opened when first needed."""

    def __init__(self, layout: Layout, task: Task) -> None:
        self.layout = layout
        self.task: Task = task
        self.manifest = read_manifest(TaskManifest, layout.task_manifest(task))
        self._sessions: dict[Component, onnxruntime.InferenceSession] = {}

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The checkpoint's tokenizer."""
        path = self.layout.task(self.task) / "processor" / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"{path}: missing; run: make export FORCE=1")
        return TextTokenizer(path, self.manifest.text)

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


def net_inputs(
    layout: Layout,
    task: Task,
    calibration: CalibrationConfig,
    last: Component | None = None,
) -> Iterator[NetInput]:
    """Inputs of all nets of a task, example by example; not of the components behind ``last``.

    Raises:
        InputError: no examples, or a text that is longer than ``shapes.text_tokens``.
    """
    graphs = TaskGraphs(layout, task)
    shapes = layout.pipeline.tasks[task].shapes
    makers = {"caption": _caption, "vqa": _vqa, "itm": _itm}
    generator = np.random.default_rng(calibration.seed)
    order = TASK_COMPONENTS[task]
    wanted = order[: order.index(last) + 1] if last else order
    for example in examples(calibration, task):
        try:
            feeds = {"pixel_values": pixel_values(example.image, graphs.manifest.image)}
            yield NetInput("vision_encoder", "main", feeds)
            embeds = graphs.run("vision_encoder", feeds)["image_embeds"]
            for made in makers[task](graphs, shapes, example, embeds, generator):
                if made.component not in wanted:
                    break
                yield made
        except InputError as error:
            raise InputError(f"calibration: {example.name}: {error}") from None
        except BlipEdgeError as error:
            # The runtime's errors are not the pipeline's; the text is the same.
            kind = InputError if error.exit_code == InputError.exit_code else ToolError
            raise kind(f"calibration: {example.name}: {error}") from None


def _caption(
    graphs: TaskGraphs,
    shapes: StaticShapes,
    example: Example,
    embeds: Array,
    generator: np.random.Generator,
) -> Iterator[NetInput]:
    feeds = {"encoder_hidden_states": embeds}
    yield NetInput("cross_key_values", "main", feeds)
    cross = CrossStates(graphs.run("cross_key_values", feeds))
    prompt = graphs.tokenizer.prompt(example.text)
    yield from _decode(graphs, shapes, prompt[: shapes.text_tokens], cross, generator)


def _vqa(
    graphs: TaskGraphs,
    shapes: StaticShapes,
    example: Example,
    embeds: Array,
    generator: np.random.Generator,
) -> Iterator[NetInput]:
    text = padded(graphs, shapes, graphs.tokenizer.question(example.text))
    feeds = {**text, "image_embeds": embeds}
    yield NetInput("text_encoder", "main", feeds)
    states = graphs.run("text_encoder", feeds)["last_hidden_state"]
    yield NetInput("cross_key_values", "main", {"encoder_hidden_states": states})
    arrays = graphs.run("cross_key_values", {"encoder_hidden_states": states})
    cross = CrossStates(arrays, text["attention_mask"])
    yield from _decode(graphs, shapes, graphs.tokenizer.prompt(None), cross, generator)


def _itm(
    graphs: TaskGraphs,
    shapes: StaticShapes,
    example: Example,
    embeds: Array,
    generator: np.random.Generator,  # noqa: ARG001 - one signature for all tasks
) -> Iterator[NetInput]:
    text = padded(graphs, shapes, graphs.tokenizer.question(example.text))
    yield NetInput("text_encoder", "main", {**text, "image_embeds": embeds})
    # Contrastive features start with [CLS], whatever the matching head starts with.
    bare = padded(graphs, shapes, graphs.tokenizer.encode(example.text))
    yield NetInput("text_encoder_unimodal", "main", bare)
    yield NetInput("vision_projection", "main", {"image_embeds": embeds})


def _decode(
    graphs: TaskGraphs,
    shapes: StaticShapes,
    prompt: list[int],
    cross: CrossStates,
    generator: np.random.Generator,
) -> Iterator[NetInput]:
    """Decodes greedily until the cache is full; yields the first pass and at most two steps.

    One step is of the answer, the other as often the last as any: beams go on after an answer's
    end, and answers may be longer than these. Short answers alone once let a search make
    integers of products that the later steps cannot do without (docs/quantization.md).
    """
    text = graphs.manifest.text
    slots = shapes.past_tokens or 0
    cache, row = FixedCache(graphs.manifest.dimensions, 1, slots), range(1)
    first = shapes.first_pass_tokens if graphs.task == "caption" else 1
    past, tokens = 0, prompt
    steps: list[Arrays] = []
    answered = None
    while past + len(tokens) <= min(slots, text.maximum_positions - 1) or past == slots:
        length = first if past == 0 else 1
        feeds = {**fixed_call(tokens, length, past, slots), **cross.arrays}
        feeds |= {name: array.copy() for name, array in cache.feeds(row, slots).items()}
        if cross.mask is not None:
            feeds[CROSS_MASK] = cross_mask(cross, length)
        outputs = graphs.run("text_decoder", feeds)
        if past == 0 and graphs.task == "caption":
            yield NetInput("text_decoder", "first_pass", feeds)
        else:
            steps.append(feeds)
        if past == slots:
            break
        cache.append(row, outputs, len(tokens))
        past += len(tokens)
        tokens = [int(outputs["logits"][0].argmax())]
        if tokens[0] == text.end_token_id and answered is None:
            answered = len(steps)
    if not steps:
        return
    own, later = int(generator.integers(answered or len(steps))), len(steps) - 1
    if generator.integers(2):
        later = int(generator.integers(len(steps)))
    for index in sorted({own, later}):
        yield NetInput("text_decoder", "step", steps[index])


def padded(graphs: TaskGraphs, shapes: StaticShapes, ids: list[int]) -> Arrays:
    """Ids and mask ``[1, text_tokens]`` int64 of a question or text.

    Raises:
        InputError: it is longer.
    """
    length = shapes.text_tokens
    if len(ids) > length:
        raise InputError(
            f"text of {len(ids)} tokens, but "
            f"tasks.{graphs.task}.shapes.text_tokens is {length}; shorten it or raise that"
        )
    input_ids = np.full((1, length), graphs.manifest.text.pad_token_id, dtype=np.int64)
    input_ids[0, : len(ids)] = ids
    mask = np.zeros((1, length), dtype=np.int64)
    mask[0, : len(ids)] = 1
    return {"input_ids": input_ids, "attention_mask": mask}


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
