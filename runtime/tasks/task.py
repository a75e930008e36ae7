"""What captioning, answering and matching share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import (
    Any,
    Callable,
    Iterable,
    Iterator,
    List,
    Optional,
    Tuple,
    Type,
    TypeVar,
    Union,
)

import numpy as np

from ..decoding.batching import chunk_rows
from ..errors import ArtifactError, InputError
from ..files.manifests import TaskManifest, TextSettings
from ..files.user_cache import cache_root
from ..generation.search import Sequence
from ..generation.settings import GenerationSettings
from ..preprocessing.images import ImageSource, PreparedImage
from ..preprocessing.pixel_values import ImagePreprocessor
from ..preprocessing.tokenization import TextTokenizer
from ..sessions.session import Session, SessionOptions, resolved_mode
from .artifacts import Artifacts
from .streaming import StopSignal, Stream
from .timing import Timings

AnyTask = TypeVar("AnyTask", bound="Task")
Item = TypeVar("Item")
Result = TypeVar("Result")
_TOKENIZER = "processor/tokenizer.json"


class Task:
    """A task on loaded artifacts. Objects may be shared between threads."""

    task = ""

    def __init__(self, artifacts: Artifacts) -> None:
        self.artifacts = artifacts
        self.manifest: TaskManifest = artifacts.manifest
        if _TOKENIZER not in self.manifest.files:
            raise ArtifactError(f"{self.manifest.path}: files: no {_TOKENIZER}; export it again")
        self.preprocessor = ImagePreprocessor(self.manifest.image)
        self.tokenizer = TextTokenizer(self.manifest.folder / _TOKENIZER, self.manifest.text)

    @classmethod
    def from_artifacts(
        cls: Type[AnyTask],
        folder: Union[str, Path],
        *,
        target: str = "openvino",
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
    ) -> AnyTask:
        """Opens the task's artifacts; nets are loaded when first used.

        Args:
            folder: task folder, or the pipeline folder that holds it.
            target: ``onnx``, ``openvino`` or a chip, e.g. ``bm1684x``.
            precision: of the artifacts; None takes what is there, half precision first.
            device: OpenVINO device (CPU, GPU, NPU, AUTO); for a chip its index, or ``simulator``.
            mode: OpenVINO arithmetic, ``exact`` (float32), ``fast`` (the device's default), or
                ``int8`` (the ``int8`` artifacts at the device's default).
            performance_hint: OpenVINO ``latency`` or ``throughput``.
            cache_folder: where OpenVINO's compiled models are kept for later starts; None: in the
                user's cache folder; False: nowhere.
            threads: CPU threads per call.
            batch: images taken through all stages at once; None: what fits in bounded memory.
            verify_digest: compare files with the manifest's SHA-256 before loading them.
            load_ahead: start to load every net now, in a thread, rather than when first used.
            rehash: compare even large files that were compared before and have not changed since.

        Raises:
            ArtifactError: missing, damaged or too new artifacts.
            BackendError: the backend is missing.
        """
        mode, precision = resolved_mode(mode, precision)
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
        return cls(opened)

    def session(self, component: str) -> Session:
        """The session of one of the task's components."""
        return self.artifacts.session(component)

    def images_at_once(self) -> int:
        """How many images one call takes through all stages at once."""
        return chunk_rows(self.session("vision_encoder"), 1)

    def concurrency(self) -> int:
        """How many calls at a time keep the device busy."""
        return self.session("vision_encoder").concurrency()

    def stream_batches(
        self,
        items: Iterable[Item],
        source: Callable[[Item], ImageSource],
        work: Callable[[List[Tuple[Item, PreparedImage]], Timings], List[Result]],
        timings: Timings,
    ) -> Iterator[Tuple[Item, Union[Result, InputError]]]:
        """Works through any number of items: images are prepared while others are worked on.

        Args:
            items: what to work on.
            source: the image of an item.
            work: prepared items to one result per item.
            timings: collects the time of each stage; ends the work when the caller leaves.

        Yields:
            every item in order, with its result or with what is wrong with its image.
        """
        stop = StopSignal()
        timings.interrupt = stop.check

        def load(item: Item) -> PreparedImage:
            with timings.measure("preprocess"):
                return self.preprocessor.prepare(source(item))

        stream: Stream[Item, PreparedImage, Result] = Stream(
            load,
            lambda group: work(group, timings),
            batch=self.images_at_once(),
            workers=self.concurrency(),
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


def _cache_root(given: Union[str, Path, bool, None]) -> Optional[Path]:
    if given is None or given is True:
        return cache_root()
    return None if given is False else Path(given)


def padded_sequences(
    found: List[List[Sequence]], text: TextSettings, settings: GenerationSettings
) -> np.ndarray:
    """Sequences as one array ``[rows, tokens]`` int64, filled as HuggingFace fills shorter ones."""
    rows = [sequence.token_ids for sequences in found for sequence in sequences]
    fill = text.pad_token_id
    if settings.num_beams > 1 and fill == 0:
        # There, a pad id of 0 counts as absent in beam search and the end token takes its place.
        fill = text.end_token_id
    padded = np.full((len(rows), max(len(row) for row in rows)), fill, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def like_input(array: np.ndarray, example: Any) -> Any:
    """The array as a torch tensor if the example is one; torch is never imported for it."""
    if type(example).__module__.split(".")[0] == "torch" and "torch" in sys.modules:
        return sys.modules["torch"].from_numpy(array)
    return array
