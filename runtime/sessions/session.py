"""What every backend offers: named arrays in, named arrays out, in the contract's names."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import (
    Any,
    Callable,
    ContextManager,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

import numpy as np

from ..errors import ArtifactError, BackendError, InputError
from ..files.manifests import ComponentManifest, Dimensions, HostLookup, Net, TensorSpec
from ..files.nets import FIRST_LOGIT
from ..files.number_formats import narrowed, widened

Arrays = Mapping[str, "np.ndarray[Any, Any]"]
ArrayDict = Dict[str, "np.ndarray[Any, Any]"]

MODES = ("exact", "fast")
#: What users may ask for: ``int8`` is the set of that precision, at the device's default.
MODE_CHOICES = (*MODES, "int8")
PERFORMANCE_HINTS = ("latency", "throughput")


@dataclass(frozen=True)
class SessionOptions:
    """How to load and run nets; each backend reads what concerns it."""

    #: openvino: CPU, GPU, NPU, AUTO; SOPHON: device index or ``simulator``; None: the default
    device: Optional[str] = None
    #: openvino: ``exact`` computes in float32, ``fast`` in the device's default precision
    mode: str = "exact"
    #: openvino: ``latency`` or ``throughput``
    performance_hint: str = "latency"
    #: openvino: folder to keep compiled models in; None compiles every time
    cache_folder: Optional[Path] = None
    #: onnxruntime, openvino: threads per call; None: the backend's choice
    threads: Optional[int] = None
    #: images taken through all stages at once; None: what fits in bounded memory
    batch: Optional[int] = None
    #: compare SHA-256 digests with the manifest before loading
    verify_digest: bool = True
    #: compare digests even of files that were compared before and have not changed since
    rehash: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode '{self.mode}': choose from {', '.join(MODE_CHOICES)}")
        if self.performance_hint not in PERFORMANCE_HINTS:
            known = ", ".join(PERFORMANCE_HINTS)
            raise InputError(f"performance_hint '{self.performance_hint}': choose from {known}")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads {self.threads}: must be at least 1")
        if self.batch is not None and self.batch < 1:
            raise InputError(f"batch {self.batch}: must be at least 1")

    def with_device(self, device: Optional[str]) -> "SessionOptions":
        """The same options for another device."""
        return replace(self, device=device)


def resolved_mode(mode: str, precision: Optional[str]) -> Tuple[str, Optional[str]]:
    """Mode of the device and precision of the artifacts for what a user asked for.

    Raises:
        InputError: mode ``int8`` with artifacts of another precision.
    """
    if mode != "int8":
        return mode, precision
    if precision not in (None, "int8"):
        raise InputError(f"mode int8: takes int8 artifacts, not {precision}; use mode fast")
    return "fast", "int8"


class FilePool:
    """Model files that sessions share: opened once, closed when the last user has given it back."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._open: Dict[Path, Tuple[Any, List[int]]] = {}
        self._locks: Dict[Path, Any] = {}

    def take(self, path: Path, opened: Callable[[], Any]) -> Any:
        """The file's engine, made by ``opened`` for the first user."""
        with self._guard:
            if path not in self._open:
                self._open[path] = (opened(), [0])
            engine, users = self._open[path]
            users[0] += 1
            return engine

    def give_back(self, path: Path, close: Callable[[Any], None]) -> None:
        """One user less; the last one's ``close`` gets the engine."""
        with self._guard:
            engine, users = self._open[path]
            users[0] -= 1
            if users[0] == 0:
                del self._open[path]
                close(engine)

    def lock(self, path: Path) -> Any:
        """The lock of everyone who uses the file: its nets run one after the other."""
        with self._guard:
            return self._locks.setdefault(path, threading.RLock())


class DecoderRun(ABC):
    """One generation: rows of tokens that grow, each attending to one context."""

    #: Whether the best token of each row is all that is wanted of the next call. Where the decoder
    #: chooses it, the call then returns tokens ``[rows]`` instead of logits ``[rows, vocabulary]``.
    tokens_suffice = False
    #: Drafted tokens that a pass may check for each row.
    most_drafts = 0

    @abstractmethod
    def start(self, prompts: Sequence[Sequence[int]], contexts: Sequence[int]) -> np.ndarray:
        """Feeds the prompts; returns the logits ``[rows, vocabulary]`` after their last tokens."""

    @abstractmethod
    def begin(self, contexts: Sequence[int]) -> None:
        """Rows of no tokens, whose prompts ``check`` takes with the first drafted tokens."""

    def step(self, parents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Row i becomes row ``parents[i]``, then ``tokens[i]``; returns the rows' logits."""
        found = self.check(parents, [[token] for token in tokens.tolist()])
        self.keep([1] * len(found))
        return np.concatenate(found)

    def usual_drafts(self, rows: int) -> int:  # noqa: ARG002 - runs differ
        """How many drafted tokens for each of so many rows are worth a pass that checks them."""
        return self.most_drafts

    @abstractmethod
    def check(self, parents: np.ndarray, tokens: Sequence[Sequence[int]]) -> List[np.ndarray]:
        """Row i becomes row ``parents[i]``, then ``tokens[i]``: the next token and drafted ones.

        ``keep`` must follow.

        Returns:
            each row's logits ``[tokens, vocabulary]``, or best tokens, after each of its tokens.
        """

    @abstractmethod
    def keep(self, counts: Sequence[int]) -> None:
        """Row i keeps the first ``counts[i]`` tokens of the last ``check`` and loses the others."""

    def close(self) -> None:  # noqa: B027 - most runs hold nothing that others wait for
        """Lets go of what the run holds; it cannot go on afterwards."""


class Session(ABC):
    """One component artifact, loaded on first use and safe to share between threads."""

    def __init__(self, manifest: ComponentManifest, options: SessionOptions) -> None:
        self.manifest = manifest
        self.options = options
        self.nets: Dict[str, Net] = {net.name: net for net in manifest.nets}
        self._lock = threading.RLock()
        self._loaded = False
        self._tables: ArrayDict = {}
        self._pool = FilePool()
        #: time spent inside the backend in seconds; what a call takes beyond it is our own overhead
        self.backend_seconds = 0.0
        #: calls of nets on chips, by net
        self.launches: "Counter[str]" = Counter()

    @property
    def inputs(self) -> Tuple[TensorSpec, ...]:
        """Inputs of the first net."""
        return self.manifest.nets[0].inputs

    @property
    def outputs(self) -> Tuple[TensorSpec, ...]:
        """Outputs of the first net."""
        return self.manifest.nets[0].outputs

    def net(self, name: Optional[str]) -> Net:
        """The net called ``name``, or the only net if None.

        Raises:
            ArtifactError: no such net, or several to choose from.
        """
        if name is None:
            if len(self.nets) != 1:
                known = ", ".join(self.nets)
                raise ArtifactError(f"{self.manifest.path}: nets: name one of {known}")
            return self.manifest.nets[0]
        return self.nets[name] if name in self.nets else self.manifest.net(name)

    def rows_per_call(self, net: Net) -> Optional[int]:  # noqa: ARG002 - sessions differ
        """Most rows that a call of a net with a dynamic batch should take; None: any number."""
        return None

    def share(self, pool: FilePool) -> None:
        """Opens model files through a pool of several sessions; call it before anything else.

        Sessions on one file get one lock, so that their calls run one after the other.
        """
        self._pool = pool
        self._lock = pool.lock(self.manifest.folder / self.manifest.nets[0].file)

    def load(self) -> None:
        """Checks the files against the manifest and loads them; does nothing the second time.

        Raises:
            ArtifactError: a file is missing or damaged.
            BackendError: the backend is missing or refuses the artifact.
        """
        if self._loaded:
            return
        with self._lock:
            if self._loaded:
                return
            options = self.options
            self.manifest.check_files(digests=options.verify_digest, remembered=not options.rehash)
            for net in self.manifest.nets:
                for lookup in net.host_lookups:
                    self._load_table(lookup)
            self._load()
            self._loaded = True

    def run(self, feeds: Arrays, net: Optional[str] = None) -> ArrayDict:
        """Runs one net; its outputs may hold anything (``finite``).

        Args:
            feeds: contract name to array; names that the net does not take are ignored. Dtypes are
                converted to the net's own, and embeddings are looked up where the net takes them
                instead of token ids.
            net: which net; may be omitted where there is only one. Of a net compiled for several
                shapes, the stage that takes the shapes of ``feeds`` runs.

        Returns:
            Contract name to array; half-precision outputs come back as float32.

        Raises:
            InputError: an input is missing or has the wrong shape.
            BackendError: the backend failed.
        """
        chosen = self.net(net)
        if chosen.variants:
            chosen = chosen.taking({name: np.shape(array) for name, array in feeds.items()})
        self.load()
        arrays = self._convert(chosen, feeds)
        outputs = self._execute(chosen, arrays)
        return {spec.name: widened(array) for spec, array in zip(chosen.outputs, outputs)}

    def cross_states(self, feeds: Arrays, mask: Optional[np.ndarray] = None) -> Any:
        """Cross keys and values, held as ``start_run`` of the same backend's decoder takes them.

        Args:
            feeds: the inputs of the net that makes them; every input's first axis counts contexts.
            mask: 1 for real encoder tokens, 0 for padding ``[contexts, tokens]``; None: all real.
        """
        from ..decoding.decoder_run import CrossStates

        return CrossStates.of(self, feeds, mask)

    def start_run(self, dimensions: Dimensions, cross: Any) -> DecoderRun:
        """A run of this decoder over keys and values from ``cross_states``."""
        from ..decoding.decoder_run import FixedRun, GrowingRun

        kind = FixedRun if "step" in self.nets else GrowingRun
        return kind(self, dimensions, cross)

    def capacity(self, maximum_positions: int) -> int:
        """Longest sequence in tokens that this decoder can produce.

        The last token is produced, not fed: with P cache slots P + 1 tokens can be fed.
        """
        spec = self.nets["step"].input("past.0.key") if "step" in self.nets else None
        slots = None if spec is None else spec.shape[1]
        most = maximum_positions + 1
        return min(slots + 2, most) if isinstance(slots, int) else most

    def finite(self, name: str, array: np.ndarray) -> np.ndarray:
        """An output of a call, half precision as float32: the one place that looks for overflow.

        Raises:
            BackendError: a value is NaN or infinite.
        """
        array = widened(array)
        if array.dtype.kind != "f":
            return array
        with np.errstate(all="ignore"):
            total = array.sum()
        # The sum of finite values may overflow itself.
        if not np.isfinite(total) and not np.isfinite(array).all():
            raise BackendError(f"{self._title}: {name} is not finite; {self._cure_of_overflow()}")
        return array

    def _cure_of_overflow(self) -> str:
        precision = self.manifest.built_as or self.manifest.precision
        if self.manifest.target.startswith("openvino") and self.options.mode != "exact":
            return "numbers beyond the device's half precision overflow: use --mode exact"
        if precision.endswith("f16") and not precision.endswith("bf16"):
            return "numbers beyond f16 overflow: build bf16 or f32"
        return "'python -m verify' names the artifact at fault: build that one again, or in f32"

    @contextmanager
    def in_backend(self) -> Iterator[None]:
        """Counts the time of the block as the backend's own."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.backend_seconds += time.perf_counter() - begin

    def concurrency(self) -> int:
        """How many calls at a time keep the device busy; may load the net to find out."""
        return 1

    def on_processors(self) -> bool:
        """Whether nets run on the processors that decode images, too; may load the net."""
        return True

    def exclusive(self) -> ContextManager[object]:
        """Held while several calls must not be interleaved with another thread's."""
        return self._lock

    def close(self) -> None:
        """Releases what the backend holds; the session loads again when it is used again."""
        with self._lock:
            if self._loaded:
                self._unload()
                self._loaded = False

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @abstractmethod
    def _load(self) -> None:
        """Loads the artifact's files; called once, under the session's lock."""

    @abstractmethod
    def _execute(self, net: Net, arrays: List[np.ndarray]) -> List[np.ndarray]:
        """Runs a net on arrays in its inputs' order and dtypes; returns its outputs in order."""

    @abstractmethod
    def _unload(self) -> None:
        """Releases what ``_load`` took."""

    def _convert(self, net: Net, feeds: Arrays) -> List[np.ndarray]:
        lookups = {lookup.input: lookup for lookup in net.host_lookups}
        arrays = []
        for spec in net.fed:
            if spec.name in lookups and spec.name not in feeds:
                array = self._look_up(lookups[spec.name], feeds)
            elif spec.name in feeds:
                array = np.asarray(feeds[spec.name])
            elif spec.name == FIRST_LOGIT:
                array = np.array(-1)
            else:
                raise InputError(
                    f"{self._label(net)}: input '{spec.name}' is missing; feed {_names(net.inputs)}"
                )
            check_shape(array, spec, self._label(net))
            arrays.append(narrowed(array, spec.dtype))
        return arrays

    def _look_up(self, lookup: HostLookup, feeds: Arrays) -> np.ndarray:
        if lookup.indices not in feeds:
            raise InputError(f"{self.manifest.path.name}: input '{lookup.indices}' is missing")
        table = self._tables[lookup.table]
        indices = np.asarray(feeds[lookup.indices])
        if indices.size and (indices.min() < 0 or indices.max() >= len(table)):
            raise InputError(
                f"{self.manifest.path.name}: {lookup.indices} outside 0..{len(table) - 1}"
            )
        rows: np.ndarray = table[indices]
        return rows

    def _load_table(self, lookup: HostLookup) -> None:
        path = self.manifest.folder / lookup.table
        try:
            self._tables[lookup.table] = np.load(str(path), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: not a table ({one_line(error)}); rebuild it") from None

    @property
    def _title(self) -> str:
        manifest = self.manifest
        return f"{manifest.component} on {manifest.target} {manifest.precision}"

    def _label(self, net: Net) -> str:
        return f"{self.manifest.component} on {self.manifest.target} ({net.name})"

    def _failed(self, what: str, error: BaseException) -> BackendError:
        return BackendError(
            f"{self.manifest.component} on {self.manifest.target}: {what}: {one_line(error)}"
        )


def check_shape(array: np.ndarray, spec: TensorSpec, where: str) -> None:
    """Compares an array with a spec's fixed axes.

    Raises:
        InputError: rank or a fixed axis differs.
    """
    shape = spec.shape
    fits = len(shape) == array.ndim and all(
        wanted == have for wanted, have in zip(shape, array.shape) if isinstance(wanted, int)
    )
    if not fits:
        raise InputError(
            f"{where}: input '{spec.name}' has shape {list(array.shape)}, it must be {list(shape)}"
        )


def one_line(error: BaseException) -> str:
    """The first line of an exception's text that says something, for messages of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines and lines[0].startswith("Exception from") else "".join(lines[:1])
    return text or type(error).__name__


def _names(specs: Tuple[TensorSpec, ...]) -> str:
    return ", ".join(spec.name for spec in specs)
