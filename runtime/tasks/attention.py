"""Where in a picture the words of a text look: cross-attention of one layer, word by word.

The exported graphs are run by OpenVINO with the attention of their text net as further outputs, in
float32 and whatever target a task runs on; no artifact has to be built for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np

from ..decoding.batching import additive
from ..errors import ArtifactError, BackendError, InputError
from ..files.manifests import ComponentManifest, component_manifests
from ..preprocessing.images import ImageSource
from .artifacts import ONNX_TARGET
from .task import Task

Arrays = Dict[str, np.ndarray]


@dataclass(frozen=True)
class Attention:
    """What each word of a text looks at."""

    words: Tuple[str, ...]
    #: ``[words, rows, columns]``: the share of a word's attention that each patch of the picture
    #: gets, the mean over heads; what is left of 1 goes to the token that stands for the whole
    maps: "np.ndarray"
    layer: int


def attention_maps(
    task: Task[Any], image: ImageSource, text: str, layer: Optional[int] = None
) -> Attention:
    """Where in a picture the words of a question or description look, or how a caption's came up.

    Args:
        task: an opened task; its folder must hold the exported graphs.
        image: as in ``Task.ask``.
        text: a caption, a question, or a description.
        layer: of the text net, from 0; None: two thirds up, where words and places meet best.

    Raises:
        InputError: an image, text or layer that cannot be used.
        ArtifactError: the exported graphs are not there.
        BackendError: OpenVINO is missing or failed.
    """
    layers = task.manifest.dimensions.layers
    chosen = 2 * layers // 3 if layer is None else layer
    if not 0 <= chosen < layers:
        raise InputError(f"layer {layer}: choose from 0 to {layers - 1}")
    graphs = _Graphs(task)
    pixels = task.preprocessor([image])
    embeds = graphs.run("vision_encoder", {"pixel_values": pixels})["image_embeds"]
    ids = _ids(task, text)
    if "text_encoder" in graphs.manifests:
        mask = np.ones((1, len(ids)), dtype=np.int64)
        feeds = {"attention_mask": mask, "image_embeds": embeds}
        found = graphs.attention("text_encoder", chosen, ids, feeds)
    else:
        feeds = graphs.run("cross_key_values", {"encoder_hidden_states": embeds})
        found = graphs.attention("text_decoder", chosen, ids, {**feeds, **_first_pass(task, ids)})
    seen = found.mean(axis=0)
    if task.task == "caption":
        # A word is chosen by what the token before it looks at.
        seen = np.concatenate([seen[:1], seen[:-1]])
    words, rows = _words(task, ids, seen)
    size = task.manifest.image
    patches = rows.shape[1] - 1
    high = round((patches * size.height / size.width) ** 0.5)
    # The first image token is no place.
    maps = rows[:, 1:].reshape(len(words), high, patches // high)
    return Attention(words, maps, chosen)


def _ids(task: Task[Any], text: str) -> List[int]:
    if task.task == "caption":
        ids = task.tokenizer.prompt(text)
        if len(ids) < 2:
            raise InputError("attention: the caption is empty; write something")
        return ids
    return task.read_text.tokens(text)


def _first_pass(task: Task[Any], ids: List[int]) -> Arrays:
    """A decoder's inputs for a whole text at once, but for its tokens and cross states."""
    size, length = task.manifest.dimensions, len(ids)
    causal = np.tril(np.ones((1, 1, length, length), dtype=bool))
    feeds: Arrays = {
        "position_ids": np.arange(length, dtype=np.int64)[None],
        "self_attention_mask": additive(causal),
    }
    empty = np.zeros((1, 0, size.heads, size.head_size), dtype=np.float32)
    for number in range(size.layers):
        feeds[f"past.{number}.key"] = feeds[f"past.{number}.value"] = empty
    return feeds


def _words(task: Task[Any], ids: List[int], rows: np.ndarray) -> Tuple[Tuple[str, ...], np.ndarray]:
    """Pieces of a word as one, and neither start nor end: each row is the mean of its pieces."""
    groups: List[List[int]] = []
    last = len(ids) if task.task == "caption" else len(ids) - 1
    for place in range(1, last):
        if groups and task.tokenizer.continues(ids[place]):
            groups[-1].append(place)
        else:
            groups.append([place])
    words = tuple(task.tokenizer.decode([ids[place] for place in group]) for group in groups)
    return words, np.stack([rows[group].mean(axis=0) for group in groups])


class _Graphs:
    """The exported graphs of a task, run by OpenVINO."""

    def __init__(self, task: Task[Any]) -> None:
        try:
            import openvino
        except ImportError:
            raise BackendError("attention: needs OpenVINO; pip install openvino") from None
        self._openvino = openvino
        self._core = openvino.Core()
        self._layers = task.manifest.dimensions.layers
        folder = task.manifest.folder
        every = component_manifests(folder)
        self.manifests: Dict[str, ComponentManifest] = {
            one.component: one for one in every if one.target == ONNX_TARGET
        }
        if set(task.manifest.components) - set(self.manifests):
            raise ArtifactError(
                f"{folder}: attention needs the exported graphs; copy the folder onnx as well"
            )

    def run(self, component: str, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """The outputs of a graph by their names."""
        manifest = self.manifests[component]
        found = self._infer(self._read(manifest), manifest, feeds)
        return {spec.name: found[index] for index, spec in enumerate(manifest.nets[0].outputs)}

    def attention(
        self, component: str, layer: int, ids: List[int], feeds: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """Cross-attention of a layer ``[heads, tokens, image tokens]``."""
        manifest = self.manifests[component]
        model = self._read(manifest)
        # Each layer attends its text, then the picture.
        every = [op for op in model.get_ordered_ops() if op.get_type_name() == "Softmax"]
        if len(every) != 2 * self._layers:
            raise ArtifactError(f"{manifest.path}: no attention to be read; export it again")
        count = len(manifest.nets[0].outputs)
        model.add_outputs([every[2 * layer + 1].output(0)])
        outputs = self._infer(model, manifest, {"input_ids": np.array([ids]), **feeds})
        found: np.ndarray = outputs[count][0]
        return found

    def _read(self, manifest: ComponentManifest) -> Any:
        manifest.check_files(remembered=True)
        return self._core.read_model(str(manifest.folder / manifest.nets[0].file))

    def _infer(
        self, model: Any, manifest: ComponentManifest, feeds: Mapping[str, np.ndarray]
    ) -> List[np.ndarray]:
        inputs = manifest.nets[0].inputs
        try:
            exact = {"INFERENCE_PRECISION_HINT": self._openvino.Type.f32}
            request = self._core.compile_model(model, "CPU", exact).create_infer_request()
            named = {spec.artifact_name: feeds[spec.name] for spec in inputs if spec.name in feeds}
            found = request.infer(named)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise BackendError(f"attention: {manifest.component}: {reason}") from None
        return [np.array(array) for array in found.to_tuple()]
