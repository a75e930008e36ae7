"""What captioning, answering and matching share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Generic,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    Union,
    overload,
)

import numpy as np

from ..decoding.batching import (
    StopSignal,
    Timings,
    chunk_rows,
    chunks,
    fixed_batch,
    padded_texts,
    run_rows,
    stage,
    text_limit,
)
from ..errors import ArtifactError, InputError
from ..files.manifests import TaskManifest
from ..files.user_cache import cache_root
from ..preprocessing.images import MAXIMUM_PIXELS, ImageSource, PreparedImage, read_image
from ..preprocessing.processor import ImagePreprocessor, TextReader, TextTokenizer
from ..sessions.session import Session, SessionOptions, resolved_mode
from .artifacts import Artifacts, default_target
from .streaming import Stream, Turns

if TYPE_CHECKING:
    from .image_cache import ImageCache

AnyTask = TypeVar("AnyTask", bound="Task[Any]")
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
_TOKENIZER = "processor/tokenizer.json"


class Result(ABC):
    """What a task found about one image and one text."""

    @property
    @abstractmethod
    def shown(self) -> str:
        """The result for people, in one line."""

    @abstractmethod
    def record(self) -> Dict[str, Any]:
        """The result for JSON."""


Found = TypeVar("Found", bound=Result)


class Task(ABC, Generic[Found]):
    """A task on loaded artifacts. Objects may be shared between threads."""

    task = ""
    #: what a text is called in a result's record; empty where it is no question
    asks = ""
    #: whether results are generated, so that ``GenerationSettings`` apply
    generates = False

    def __init__(
        self,
        artifacts: Artifacts,
        *,
        truncate: bool = False,
        maximum_pixels: int = MAXIMUM_PIXELS,
        image_cache_bytes: int = 0,
    ) -> None:
        if image_cache_bytes < 0:
            raise InputError(f"image_cache_bytes {image_cache_bytes}: must be at least 0")
        self.artifacts = artifacts
        self.manifest: TaskManifest = artifacts.manifest
        if _TOKENIZER not in self.manifest.files:
            raise ArtifactError(f"{self.manifest.path}: files: no {_TOKENIZER}; export it again")
        options = self.session("vision_encoder").options
        self.preprocessor = ImagePreprocessor(
            self.manifest.image,
            maximum_pixels,
            threads=options.threads,
            scaled_jpeg=options.mode != "exact",
        )
        self._cache: Optional[ImageCache] = None
        if image_cache_bytes:
            from .image_cache import ImageCache

            self._cache = ImageCache(image_cache_bytes)
        self.tokenizer = TextTokenizer(self.manifest.folder / _TOKENIZER, self.manifest.text)
        self.read_text = self._reader(truncate)

    @classmethod
    def from_artifacts(
        cls: Type[AnyTask],
        folder: Union[str, Path],
        *,
        target: Optional[str] = None,
        precision: Optional[str] = None,
        device: Optional[str] = None,
        mode: str = "exact",
        performance_hint: str = "latency",
        cache_folder: Union[str, Path, bool, None] = None,
        threads: Optional[int] = None,
        batch: Optional[int] = None,
        verify_digest: bool = True,
        rehash: bool = False,
        load_ahead: bool = False,
        truncate: bool = False,
        maximum_pixels: int = MAXIMUM_PIXELS,
        image_cache_bytes: int = 0,
    ) -> AnyTask:
        """Opens the task's artifacts; nets are loaded when first used.

        Args:
            folder: task folder, or the pipeline folder that holds it.
            target: ``onnx``, ``openvino`` or a chip, e.g. ``bm1684x``; None: ``openvino``, or what
                is there if it is the only one.
            precision: of the artifacts; None takes what is there, half precision first.
            device: OpenVINO device (CPU, GPU, NPU, AUTO); for a chip its index, or ``simulator``.
            mode: OpenVINO arithmetic, ``exact`` (float32), ``fast`` (the device's default), or
                ``int8`` (the ``int8`` artifacts at the device's default). All but ``exact`` decode
                large JPEGs at a part of their size, at least twice the model's.
            performance_hint: OpenVINO ``latency`` or ``throughput``.
            cache_folder: where OpenVINO's compiled models are kept for later starts; None: in the
                user's cache folder; False: nowhere.
            threads: CPU threads per call.
            batch: images taken through all stages at once; None: what fits in bounded memory.
            verify_digest: compare files with the manifest's SHA-256 before loading them.
            load_ahead: start to load every net now, in a thread, rather than when first used.
            rehash: compare even large files that were compared before and have not changed since.
            truncate: cut questions and descriptions after 35 tokens, as BLIP's own code does, or
                where the artifact takes no more; otherwise longer ones are refused.
            maximum_pixels: larger images are refused; each takes up to 8 bytes per pixel.
            image_cache_bytes: memory for what the vision encoder made of the latest images, so that
                another text about one of them takes no vision; 0: none.

        Raises:
            ArtifactError: missing, damaged or too new artifacts.
            BackendError: the backend is missing.
        """
        mode, precision = resolved_mode(mode, precision)
        target = target or default_target(folder, cls.task)
        options = SessionOptions(
            device=device,
            mode=mode,
            performance_hint=performance_hint,
            cache_folder=_cache_root(cache_folder),
            threads=threads,
            batch=batch,
            verify_digest=verify_digest,
            rehash=rehash,
        )
        opened = Artifacts.open(
            folder, cls.task, target=target, precision=precision, options=options
        )
        if load_ahead:
            opened.load_ahead()
        return cls(
            opened,
            truncate=truncate,
            maximum_pixels=maximum_pixels,
            image_cache_bytes=image_cache_bytes,
        )

    def _reader(self, truncate: bool) -> TextReader:
        """Reads the task's texts."""
        return TextReader(self.tokenizer, self.asks, self._text_limit, truncate=truncate)

    def _text_limit(self) -> int:
        return text_limit(self.session("text_encoder"), self.manifest.text)

    def session(self, component: str) -> Session:
        """The session of one of the task's components."""
        return self.artifacts.session(component)

    @overload
    def __call__(
        self, images: ImageSource, texts: Optional[str] = None, **options: Any
    ) -> Found: ...
    @overload
    def __call__(self, images: Any, texts: Any = None, **options: Any) -> Any: ...
    def __call__(self, images: Any, texts: Any = None, **options: Any) -> Any:
        """One image and one text in, one result out; a list in, a list out.

        ``task(image)`` gives a result, ``task([image, image])`` a list of as many results, and
        ``task(image, [text, text])`` a result per text. See ``ask``.
        """
        found = self.ask(images, texts, **options)
        several = isinstance(images, (list, tuple)) or isinstance(texts, (list, tuple))
        return found if several else found[0]

    def ask(
        self,
        images: Union[ImageSource, List[Any], Tuple[Any, ...]],
        texts: Union[str, List[Any], Tuple[Any, ...], None] = None,
        **options: Any,
    ) -> List[Found]:
        """Works on images and texts, stage by stage, in bounded memory.

        Args:
            images: one image, or a list or tuple of images: paths, encoded bytes, Pillow images or
                uint8 arrays ``[height, width]`` or ``[height, width, 1|3|4]``.
            texts: prompt, question or description: one, or a list or tuple of as many as there are
                images. One image goes with every text, one text with every image.
            **options: as in ``pairs``.

        Returns:
            result i is about image i and text i.

        Raises:
            InputError: an image, a text or an argument that cannot be used.
        """
        if not isinstance(images, (list, tuple)):
            mine = texts if isinstance(texts, (list, tuple)) else [texts]
            return self.pairs([images], [mine], **options)[0]
        asked = texts if isinstance(texts, (list, tuple)) else [texts] * len(images)
        if len(asked) != len(images):
            raise InputError(f"texts: {len(asked)} for {len(images)} images; pass one per image")
        found = self.pairs(images, [[text] for text in asked], **options)
        return [results[0] for results in found]

    @abstractmethod
    def pairs(
        self,
        images: Sequence[ImageSource],
        texts: Sequence[Sequence[Optional[str]]],
        *,
        timings: Optional[Timings] = None,
        stop: Optional[StopSignal] = None,
        **options: Any,
    ) -> List[List[Found]]:
        """Works on every text of ``texts[i]`` with ``images[i]``.

        Args:
            images: as in ``ask``.
            texts: one list of texts per image.
            timings: collects the time of each stage.
            stop: ends the work at its next stage.
            **options: of the task.

        Raises:
            InputError: an image, a text or an argument that cannot be used.
            StoppedError: ``stop`` was set.
        """

    def encode(
        self,
        images: Sequence[ImageSource],
        *,
        timings: Optional[Timings] = None,
        stop: Optional[StopSignal] = None,
    ) -> np.ndarray:
        """Image states ``[images, image tokens, hidden]`` float32."""
        parts = chunks(images, self.images_at_once())
        return np.concatenate([self.image_states(part, timings, stop) for part in parts])

    def image_states(
        self,
        images: Sequence[ImageSource],
        timings: Optional[Timings],
        stop: Optional[StopSignal],
    ) -> Any:
        """What ``vision_states`` makes of images; of known ones it was kept."""
        if self._cache is not None:
            prepared = [self.prepare(image, timings, stop) for image in images]
            return self._cache.states(
                prepared,
                lambda unknown: self.vision_states(self.preprocessor(unknown), timings, stop),
            )
        ready = all(isinstance(image, PreparedImage) for image in images)
        # The time of prepared ones was counted when they were prepared.
        with stage("preprocess", len(images), None if ready else timings, stop):
            pixel_values = self.preprocessor(images)
        return self.vision_states(pixel_values, timings, stop)

    def prepare(
        self,
        source: ImageSource,
        timings: Optional[Timings] = None,
        stop: Optional[StopSignal] = None,
    ) -> PreparedImage:
        """Does an image's whole work ahead, in whatever thread; a known image takes none.

        Raises:
            InputError: the image is missing, damaged or too large.
        """
        if isinstance(source, PreparedImage) and (self._cache is None or source.key is not None):
            return source
        with stage("preprocess", 1, timings, stop):
            if self._cache is not None:
                return self._cache.prepare(source, self.preprocessor)
            return self.preprocessor.prepare(source)

    def vision_states(
        self, pixel_values: np.ndarray, timings: Optional[Timings], stop: Optional[StopSignal]
    ) -> Any:
        """What is kept of ``[images, 3, height, width]`` for further texts: ``image_embeds``."""
        return self.image_embeds(pixel_values, timings, stop)

    def image_embeds(
        self, pixel_values: np.ndarray, timings: Optional[Timings], stop: Optional[StopSignal]
    ) -> np.ndarray:
        """Image states of ``[images, 3, height, width]`` float32."""
        with stage("vision", len(pixel_values), timings, stop):
            feeds = {"pixel_values": pixel_values}
            return run_rows(self.session("vision_encoder"), feeds)["image_embeds"]

    def run_texts(
        self, component: str, rows: Sequence[Sequence[int]], **more: np.ndarray
    ) -> Tuple[Dict[str, np.ndarray], np.ndarray]:
        """Outputs of a text net for rows of token ids, and their mask ``[rows, tokens]``."""
        session = self.session(component)
        ids, mask = padded_texts(session, rows, self.manifest.text)
        return run_rows(session, {"input_ids": ids, "attention_mask": mask, **more}), mask

    def embeds_for(self, image_embeds: np.ndarray, images: Sequence[int]) -> np.ndarray:
        """States of the image of each text of a call, from ``encode``.

        Of one image for all texts it is one row, from which the net makes keys and values once.
        """
        net = self.session("text_encoder").manifest.nets[0]
        one = len(set(images)) == 1 and fixed_batch(net) is None
        picked: np.ndarray = image_embeds[list(images[:1] if one else images)]
        return picked

    def images_at_once(self) -> int:
        """How many images one call takes through all stages at once."""
        size, image = self.manifest.dimensions, self.manifest.image
        states = 2 * size.image_tokens * size.vision_hidden_size
        return self.rows_at_once("vision_encoder", 3 * image.height * image.width + states)

    def rows_at_once(self, component: str, floats: int) -> int:
        """How many rows a component takes at once, each of which leaves so many floats."""
        return chunk_rows(self.session(component), 4 * floats)

    def concurrency(self) -> int:
        """How many calls at a time keep the device busy."""
        return self.session("vision_encoder").concurrency()

    def stream(
        self,
        images: Iterable[ImageSource],
        text: Optional[str] = None,
        *,
        timings: Optional[Timings] = None,
        **options: Any,
    ) -> Iterator[Tuple[ImageSource, Union[Found, InputError]]]:
        """Works on any number of images in order, in bounded memory, with the device kept busy.

        Args:
            images: as in ``ask``; may be endless.
            text: for all images.
            timings: collects the time of each stage.
            **options: as in ``pairs``.

        Yields:
            every image with its result, or with what is wrong with it.

        Raises:
            InputError: an argument that cannot be used.
        """

        def work(group: List[Tuple[ImageSource, PreparedImage]], stop: StopSignal) -> List[Found]:
            prepared = [image for _, image in group]
            return self.ask(prepared, text, timings=timings, stop=stop, **options)

        self.pairs([], [], **options)
        self.read_text(text)
        return self.stream_batches(images, lambda image: image, work, timings)

    def stream_batches(
        self,
        items: Iterable[Item],
        source: Callable[[Item], ImageSource],
        work: Callable[[List[Tuple[Item, PreparedImage]], StopSignal], List[Outcome]],
        timings: Optional[Timings] = None,
    ) -> Iterator[Tuple[Item, Union[Outcome, InputError]]]:
        """Works through any number of items: images are prepared while others are worked on.

        Args:
            items: what to work on.
            source: the image of an item.
            work: prepared items to one result per item; its signal is set when the caller leaves.
            timings: collects the time of preparing images.

        Yields:
            every item in order, with its result or with what is wrong with its image.
        """

        stop = StopSignal()
        workers = self.concurrency()
        shared = workers == 1 and self.session("vision_encoder").on_processors()
        turns = Turns(wanted=shared)

        def load(item: Item) -> PreparedImage:
            # A disk is read while others work; only what takes a processor waits for its turn.
            image = read_image(source(item))
            with turns.load():
                return self.prepare(image, timings, stop)

        def worked(group: List[Tuple[Item, PreparedImage]]) -> List[Outcome]:
            with turns.work():
                return work(group, stop)

        stream: Stream[Item, PreparedImage, Outcome] = Stream(
            load,
            worked,
            batch=self.images_at_once(),
            workers=workers,
            loaders=turns.loaders,
            stop=stop,
        )
        return stream(items)

    def close(self) -> None:
        """Releases what the backend holds."""
        self.artifacts.close()

    def __enter__(self: AnyTask) -> AnyTask:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def check_pairs(images: Sequence[Any], texts: Sequence[Any], what: str) -> None:
    """Compares images with the lists of texts that go with them.

    Raises:
        InputError: not one list of texts, which must be texts, per image.
    """
    if len(images) != len(texts) or any(isinstance(mine, str) for mine in texts):
        raise InputError(f"{what}: pass one list of {what} per image ({len(images)})")


def _cache_root(given: Union[str, Path, bool, None]) -> Optional[Path]:
    if given is None or given is True:
        return cache_root()
    return None if given is False else Path(given)
