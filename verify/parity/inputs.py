"""Real inputs for component checks: held-out scenes, run through the exported graphs.

Every component gets what its upstream neighbours answer under onnxruntime, so that each artifact
is judged alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.schema import TASK_COMPONENTS, Component, Task
from pipeline.scenes import CAPTION_PROMPT, make_scene, matching_pairs
from runtime.decoding.batching import padded_texts
from runtime.decoding.decoder_run import CrossStates, fixed_axis
from runtime.files.manifests import ComponentManifest, Net, TaskManifest, TextSettings
from runtime.files.nets import FIRST_LOGIT
from runtime.preprocessing.processor import ImagePreprocessor, TextTokenizer
from runtime.sessions.session import ArrayDict, Session, SessionOptions
from runtime.tasks.artifacts import open_session
from verify.answers.cases import SEED_STRIDE, picture, questions_by_length
from verify.artifacts import runtime_failures
from verify.parity.asked_once import AskedOnce
from verify.parity.samples import Sample as Sample
from verify.parity.samples import variant_samples

Array = NDArray[Any]

#: Decode steps that are always compared: the second is where a fused kernel went wrong unseen by
#: the first.
_EARLY_STEPS = (1, 2, 3)
#: What computes most, and of the same few pictures.
_OF_PICTURES: tuple[Component, ...] = ("vision_encoder", "cross_key_values")
#: The one that checks drafted tokens, where a net can.
_DRAFTED_STEP = 2
#: Ends the name of a sample whose unused cache slots hold another generation's rows.
STALE = ", stale slots"


class Recorder(Session):
    """Answers a target's nets with the exported graph, and keeps every call.

    The runtime's own generation drives it, so the recorded inputs are those that the target gets
    from users: masks, padding, positions and cache slots included.
    """

    def __init__(self, target: ComponentManifest, onnx: Session) -> None:
        super().__init__(target, onnx.options)
        self._onnx = onnx
        self.calls: list[tuple[Net, ArrayDict, ArrayDict]] = []

    def run(self, feeds: Mapping[str, Array], net: str | None = None) -> ArrayDict:
        """Runs the exported graph, and keeps what it was fed and what it answered."""
        # The cache is written in place after each call; cross keys and values are large and stay.
        copies = {
            name: np.array(array) if name.startswith("past.") else np.asarray(array)
            for name, array in feeds.items()
        }
        if self.net(net).answers_everywhere:
            copies[FIRST_LOGIT] = np.array(-copies["input_ids"].shape[1])
        elif copies.get(FIRST_LOGIT) == -1:
            del copies[FIRST_LOGIT]
        outputs = self._onnx.run(copies)
        self.calls.append((self.net(net), copies, outputs))
        return outputs

    def _load(self) -> None:
        """Nothing of its own to load."""

    def _unload(self) -> None:
        """Nothing of its own to release."""

    def _execute(self, net: Net, arrays: list[Array]) -> list[Array]:  # noqa: ARG002
        raise AssertionError(f"{net.name}: answered by the exported graph")


class Graphs:
    """The exported graphs of one task under onnxruntime, its tokenizer and its image processor."""

    def __init__(
        self, manifest: TaskManifest, components: Mapping[Component, ComponentManifest]
    ) -> None:
        self.manifest = manifest
        # Digests were checked when the artifacts were found.
        options = SessionOptions(verify_digest=False)
        opened = {name: open_session(component, options) for name, component in components.items()}
        of_pictures = {n: AskedOnce(opened[n]) for n in _OF_PICTURES if n in opened}
        self.sessions: Mapping[Component, Session] = MappingProxyType({**opened, **of_pictures})

    @property
    def text(self) -> TextSettings:
        """Token ids and text handling."""
        return self.manifest.text

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The task's tokenizer."""
        path = self.manifest.folder / "processor" / "tokenizer.json"
        return TextTokenizer(path, self.manifest.text)

    @cached_property
    def preprocessor(self) -> ImagePreprocessor:
        """The task's image processor."""
        return ImagePreprocessor(self.manifest.image)

    def pixel_values(self, scene: int) -> Array:
        """``[1, 3, height, width]`` of one held-out scene."""
        return self.preprocessor([picture(scene)])

    def image_embeds(self, scene: int) -> Array:
        """``[1, image tokens, hidden]`` of one held-out scene."""
        feeds = {"pixel_values": self.pixel_values(scene)}
        return self.sessions["vision_encoder"].run(feeds)["image_embeds"]

    def close(self) -> None:
        """Releases the sessions."""
        for session in self.sessions.values():
            session.close()


class SampleSource:
    """Builds the samples of one task: for dynamic nets, or for the fixed lengths of a chip."""

    def __init__(
        self,
        graphs: Graphs,
        nets: Mapping[Component, ComponentManifest],
        *,
        scenes: int,
        seed: int,
        past_tokens: int | None,
        few: bool,
    ) -> None:
        """``few`` keeps calls rare, for simulators; ``past_tokens`` is the last cache length."""
        self._graphs = graphs
        self._nets = nets
        self._task: Task = graphs.manifest.task  # type: ignore[assignment]
        self._scenes = range(
            seed * SEED_STRIDE, seed * SEED_STRIDE + (min(2, scenes) if few else scenes)
        )
        self._past_tokens = past_tokens or 0
        self._few = few

    def samples(self, component: Component) -> list[Sample]:
        """All samples of one component.

        Raises:
            ToolError: the exported graph failed.
        """
        with runtime_failures():
            return list(self._all[component])

    @cached_property
    def _all(self) -> dict[Component, list[Sample]]:
        found: dict[Component, list[Sample]] = {c: [] for c in TASK_COMPONENTS[self._task]}
        for index, scene in enumerate(self._scenes):
            makers = {"caption": self._caption, "vqa": self._vqa, "itm": self._itm}
            for sample in makers[self._task](index, scene):
                found[sample.component].append(sample)
        for component, samples in found.items():
            samples += variant_samples(
                self._nets[component], self._graphs.sessions[component], samples
            )
        return found

    def _single(
        self, component: Component, name: str, feeds: ArrayDict, rows: slice | None = None
    ) -> Sample:
        expected = self._graphs.sessions[component].run(feeds)
        net = self._nets[component].nets[0].name
        return Sample(component, name, net, feeds, expected, rows)

    def _vision(self, scene: int) -> Sample:
        feeds = {"pixel_values": self._graphs.pixel_values(scene)}
        return self._single("vision_encoder", f"scene {scene}", feeds)

    def _caption(self, index: int, scene: int) -> Iterator[Sample]:
        yield self._vision(scene)
        feeds = {"encoder_hidden_states": self._graphs.image_embeds(scene)}
        if not self._few:
            # Where one model computes image states and their projections, it takes the image.
            feeds["pixel_values"] = self._graphs.pixel_values(scene)
        cross = self._single("cross_key_values", f"scene {scene}", feeds)
        yield cross
        text = CAPTION_PROMPT if index % 2 == 0 else ""
        prompt = self._graphs.tokenizer.prompt(text)
        yield from self._decode(
            f"scene {scene} {text!r}", prompt, CrossStates(cross.expected), index
        )

    def _vqa(self, index: int, scene: int) -> Iterator[Sample]:
        yield self._vision(scene)
        asked = questions_by_length(scene, 3)
        # Simulators: the shortest question of one scene, the longest of the other.
        chosen = [asked[0 if index % 2 == 0 else -1]] if self._few else asked
        for number, question in enumerate(chosen):
            name = f"scene {scene} {question!r}"
            text = self._text_feeds("text_encoder", self._graphs.tokenizer.question(question))
            length = int(text["attention_mask"].sum())
            rows = slice(0, length)
            feeds = {**text, "image_embeds": self._graphs.image_embeds(scene)}
            encoded = self._single("text_encoder", name, feeds, rows)
            yield encoded
            states = {"encoder_hidden_states": encoded.expected["last_hidden_state"]}
            cross = self._single("cross_key_values", name, states, rows)
            yield cross
            if number == 0 or number == len(chosen) - 1:
                mask = text["attention_mask"]
                prompt = [self._graphs.manifest.text.start_token_id]
                yield from self._decode(name, prompt, CrossStates(cross.expected, mask), index)

    def _itm(self, index: int, scene: int) -> Iterator[Sample]:
        yield self._vision(scene)
        embeds = self._graphs.image_embeds(scene)
        yield self._single("vision_projection", f"scene {scene}", {"image_embeds": embeds})
        texts = sorted((pair.text for pair in matching_pairs(make_scene(scene))), key=len)
        chosen = [texts[0 if index % 2 == 0 else -1]] if self._few else [texts[0], texts[-1]]
        for text in chosen:
            name = f"scene {scene} {text!r}"
            feeds = self._text_feeds("text_encoder", self._graphs.tokenizer.question(text))
            yield self._single("text_encoder", name, {**feeds, "image_embeds": embeds})
            # Contrastive features start with [CLS], whatever the matching head starts with.
            bare = self._text_feeds("text_encoder_unimodal", self._graphs.tokenizer.encode(text))
            yield self._single("text_encoder_unimodal", name, bare)

    def _text_feeds(self, component: Component, ids: Sequence[int]) -> ArrayDict:
        session = Recorder(self._nets[component], self._graphs.sessions[component])
        input_ids, mask = padded_texts(session, [ids], self._graphs.text)
        return {"input_ids": input_ids, "attention_mask": mask}

    def _decode(
        self, name: str, prompt: Sequence[int], cross: CrossStates, index: int
    ) -> Iterator[Sample]:
        """Decodes greedily until the cache is full, and picks the steps to compare."""
        manifest = self._nets["text_decoder"]
        recorder = Recorder(manifest, self._graphs.sessions["text_decoder"])
        run = recorder.start_run(self._graphs.manifest.dimensions, cross)
        logits = run.start([prompt], [0])
        lengths = [0]
        parents = np.zeros(1, dtype=np.int64)
        for past in range(len(prompt), self._last_past() + 1):
            if run.most_drafts and len(lengths) == _DRAFTED_STEP:
                # As right drafts are: what follows a wrong one is read by nobody.
                following = self._greedy(cross, prompt, _DRAFTED_STEP + len(prompt))
                draft = following[_DRAFTED_STEP - 1 :][: run.most_drafts]
                (answers,) = run.check(parents, [draft])
                run.keep([1])
                logits = answers[:1]
            else:
                logits = run.step(parents, logits.argmax(axis=-1))
            lengths.append(past)
        chosen = self._chosen(lengths, index)
        stale = recorder.calls[-1][1]
        for past, (net, feeds, outputs) in zip(lengths, recorder.calls, strict=True):
            if past not in chosen:
                continue
            tokens = feeds["input_ids"].shape[1]
            rows = slice(tokens - len(prompt), None) if past == 0 else None
            drafted = ", drafted" if past and tokens > 1 else ""
            label = f"{name} past {past}{drafted}"
            sample = Sample("text_decoder", label, net.name, feeds, outputs, rows)
            yield sample
            if past == chosen[1] and "step" in recorder.nets:
                yield self._with_stale_slots(sample, stale, past)

    def _greedy(self, cross: Any, prompt: Sequence[int], count: int) -> list[int]:
        """The first tokens that the exported graph chooses after a prompt."""
        recorder = Recorder(self._nets["text_decoder"], self._graphs.sessions["text_decoder"])
        run = recorder.start_run(self._graphs.manifest.dimensions, cross)
        logits = run.start([prompt], [0])
        tokens = [int(logits.argmax())]
        for _ in range(count - 1):
            logits = run.step(np.zeros(1, dtype=np.int64), logits.argmax(axis=-1))
            tokens.append(int(logits.argmax()))
        return tokens

    def _last_past(self) -> int:
        manifest = self._nets["text_decoder"]
        if len(manifest.nets) > 1 or manifest.nets[0].name == "step":
            return fixed_axis(manifest.net("step"), "past.0.key", 1)
        positions = self._graphs.manifest.text.maximum_positions
        return min(self._past_tokens, positions - 1)

    def _chosen(self, lengths: Sequence[int], index: int) -> list[int]:
        """Past lengths to compare: the first pass, early steps, a middle one, the last."""
        steps: Iterable[int] = _EARLY_STEPS
        if self._few:
            steps = _EARLY_STEPS[:2] if index == 0 else _EARLY_STEPS[:1]
        last = len(lengths) - 1
        wanted = {0, *steps, last} if self._few and index else {0, *steps, last // 2, last}
        return [lengths[i] for i in sorted(i for i in wanted if i <= last)]

    def _with_stale_slots(self, sample: Sample, later: ArrayDict, past: int) -> Sample:
        """The same call with stale rows in unused cache slots: they must not be attended."""
        feeds = dict(sample.feeds)
        for name, array in sample.feeds.items():
            if name.startswith("past."):
                filled = array.copy()
                # A later call may have had a larger cache.
                filled[:, past:] = later[name][:, past : filled.shape[1]][:, ::-1]
                feeds[name] = filled
        # The expected answer stays that of the clean cache.
        return Sample(
            sample.component, sample.name + STALE, sample.net, feeds, sample.expected, sample.rows
        )
