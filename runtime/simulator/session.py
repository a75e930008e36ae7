"""Runs a BModel on the vendor's chip simulator, in a process that stays alive between calls.

The simulator needs Python 3.10 with TPU-MLIR: ``$BLIP_EDGE_TPU_PYTHON``, or
``.venv-tpu/bin/python`` of this checkout. Any number of chips and files may be simulated at once,
from any number of processes; a session is safe to share between threads, its calls run one after
the other.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sys
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import Dict, List, Mapping, Optional, Sequence, Type, Union

import numpy as np

from ..errors import ArtifactError, BackendError, InputError
from ..files.number_formats import narrowed
from .process import BModelNet, BModelTensor, SimulatorProcess

PYTHON_VARIABLE = "BLIP_EDGE_TPU_PYTHON"
WORKERS_VARIABLE = "BLIP_EDGE_SIMULATOR_WORKERS"

#: Idle simulator processes are stopped, least recently used first, beyond this many. A task has
#: at most four components; a stopped one starts again in about 0.3 s.
DEFAULT_WORKERS = 6
#: A full-size vision encoder takes many minutes; a call beyond this is taken for hung.
DEFAULT_TIMEOUT_SECONDS = 2 * 3600.0

#: A fault of the vendor's two-core model or of its compiler: the same call passes when repeated.
_MESSAGE_IN_USE = re.compile(r"msg id:\d+ is in use")

_REPOSITORY = Path(__file__).resolve().parent.parent.parent

Feeds = Union[Mapping[Union[str, int], np.ndarray], Sequence[np.ndarray]]


def find_python(python: Optional[Union[str, Path]] = None) -> Path:
    """The TPU-MLIR interpreter: the argument, ``$BLIP_EDGE_TPU_PYTHON``, or that of ``.venv-tpu``.

    Raises:
        BackendError: it is not there.
    """
    given = python or os.environ.get(PYTHON_VARIABLE)
    path = Path(given) if given else _REPOSITORY / ".venv-tpu" / "bin" / "python"
    if not path.is_file():
        raise BackendError(
            f"chip simulator: no interpreter at {path}; "
            f"run make setup-tpu, or set {PYTHON_VARIABLE}"
        )
    return path


class SimulatorSession:
    """One BModel on the simulator. Its process starts on first use, and again after a failure."""

    def __init__(
        self,
        bmodel_path: Union[str, Path],
        chip: str,
        *,
        python: Optional[Union[str, Path]] = None,
        log_path: Optional[Union[str, Path]] = None,
    ) -> None:
        """Checks what can be checked at once; nothing is started yet.

        Args:
            bmodel_path: file with one or more nets.
            chip: as TPU-MLIR calls it, e.g. ``bm1684x``.
            python: the TPU-MLIR environment's interpreter, see :func:`find_python`.
            log_path: file for what the simulator prints; by default a temporary file, kept on
                failure only.

        Raises:
            ArtifactError: no such file.
            BackendError: no interpreter.
        """
        self.path = Path(bmodel_path)
        if not self.path.is_file():
            raise ArtifactError(f"{self.path}: no such file; build it with make bmodel")
        self.chip = chip
        self._python = find_python(python)
        self._log_path = Path(log_path).resolve() if log_path else None
        self._lock = threading.Lock()
        self._worker: Optional[SimulatorProcess] = None

    def nets(self) -> Dict[str, BModelNet]:
        """Nets of the file by name, as the BModel itself declares them.

        Raises:
            BackendError: the file cannot be loaded.
        """
        with self._lock:
            return dict(self._started().nets)

    def run(
        self,
        net: str,
        feeds: Feeds,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        *,
        stage: bool = False,
    ) -> Dict[str, np.ndarray]:
        """Runs one net.

        Args:
            net: name inside the BModel.
            feeds: all inputs, by the BModel's tensor name or by index. Float arrays are rounded to
                the input's float type, integers are narrowed if their values fit.
            timeout_seconds: after this the process is ended.
            stage: the arrays' shapes may be those of any of the net's stages, as its manifest says;
                the file itself declares those of its first stage, the largest, only.

        Returns:
            Output arrays by the BModel's tensor name, in its order and its own types;
            ``bf16`` as ``uint16`` bits.

        Raises:
            InputError: an input is missing, unknown, or does not fit.
            BackendError: the simulator failed, died or timed out.
        """
        with self._lock:
            nets = self._started().nets
            if net not in nets:
                known = ", ".join(nets)
                raise InputError(f"{self.path.name}: no net '{net}'; there are: {known}")
            declared = nets[net]
            arrays = _ordered(declared, feeds, f"{self.path.name}, net '{net}'", stage)
            try:
                outputs = self._request(net, arrays, timeout_seconds)
            except BackendError as error:
                if not _MESSAGE_IN_USE.search(str(error)):
                    raise
                print(
                    f"note: {error}; two cores of the simulated chip sent one message twice, as "
                    "w4 nets do in some runs: run once more. Try such a net on a board first",
                    file=sys.stderr,
                )
                outputs = self._request(net, arrays, timeout_seconds)
        return {tensor.name: array for tensor, array in zip(declared.outputs, outputs)}

    def close(self) -> None:
        """Stops the process; the session can be used again."""
        with self._lock:
            self._stop()

    def __enter__(self) -> SimulatorSession:
        return self

    def __exit__(
        self,
        exception_type: Optional[Type[BaseException]],
        exception: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def _started(self) -> SimulatorProcess:
        """The running process, started if need be; the lock is held."""
        if self._worker is None or self._worker.owner != os.getpid():
            _POOL.make_room(self)
            self._worker = SimulatorProcess(self._python, self.path, self.chip, self._log_file())
        _POOL.used(self)
        return self._worker

    def _request(
        self, net: str, arrays: List[np.ndarray], timeout_seconds: float
    ) -> List[np.ndarray]:
        worker = self._started()
        try:
            return worker.request(net, arrays, timeout_seconds)
        except BaseException:
            if not worker.alive:
                self._worker = None
                _POOL.stopped(self)
            raise

    def _stop(self) -> None:
        """Ends the process after success: a temporary log is of no more use; the lock is held."""
        worker, self._worker = self._worker, None
        _POOL.stopped(self)
        if worker is not None:
            worker.kill()
            if self._log_path is None:
                with contextlib.suppress(FileNotFoundError):
                    worker.log.unlink()

    def _log_file(self) -> Path:
        if self._log_path is not None:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            return self._log_path
        descriptor, name = tempfile.mkstemp(prefix=f"blip-edge-{self.path.stem}-", suffix=".log")
        os.close(descriptor)
        return Path(name)


class _Pool:
    """Which sessions have a process, least recently used first; keeps their number down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: OrderedDict[SimulatorSession, None] = OrderedDict()

    def used(self, session: SimulatorSession) -> None:
        """Marks a session as the most recently used."""
        with self._lock:
            self._sessions[session] = None
            self._sessions.move_to_end(session)

    def stopped(self, session: SimulatorSession) -> None:
        """Forgets a session that has no process."""
        with self._lock:
            self._sessions.pop(session, None)

    def make_room(self, newcomer: SimulatorSession) -> None:
        """Stops idle processes until one more fits the limit; those in a call are left alone."""
        limit = _worker_limit()
        with self._lock:
            others = [session for session in self._sessions if session is not newcomer]
        surplus = len(others) + 1 - limit
        for session in others:
            if surplus <= 0:
                return
            if session._lock.acquire(blocking=False):
                try:
                    session._stop()
                finally:
                    session._lock.release()
                surplus -= 1

    def close(self) -> None:
        """Ends all processes at the interpreter's exit."""
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session._stop()


def _worker_limit() -> int:
    text = os.environ.get(WORKERS_VARIABLE, "")
    if not text:
        return DEFAULT_WORKERS
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"{WORKERS_VARIABLE}={text}: must be a whole number of at least 1")
    return int(text)


def _ordered(net: BModelNet, feeds: Feeds, where: str, stage: bool) -> List[np.ndarray]:
    """Feeds in the order, shapes and dtypes of a net's inputs."""
    named: Dict[Union[str, int], np.ndarray]
    named = dict(feeds) if isinstance(feeds, Mapping) else dict(enumerate(feeds))
    arrays = []
    for index, tensor in enumerate(net.inputs):
        key = tensor.name if tensor.name in named else index
        if key not in named:
            raise InputError(f"{where}: input {index} '{tensor.name}' is missing")
        arrays.append(
            _fitted(np.asarray(named.pop(key)), tensor, f"{where}, input '{tensor.name}'", stage)
        )
    if named:
        known = ", ".join(tensor.name for tensor in net.inputs)
        raise InputError(f"{where}: no input '{next(iter(named))}'; there are: {known}")
    return arrays


def _fitted(array: np.ndarray, tensor: BModelTensor, where: str, stage: bool) -> np.ndarray:
    smaller = len(array.shape) == len(tensor.shape) and all(
        mine <= most for mine, most in zip(array.shape, tensor.shape)
    )
    if array.shape != tensor.shape and not (stage and smaller):
        raise InputError(f"{where}: shape {list(array.shape)}, it must be {list(tensor.shape)}")
    wanted = np.dtype(tensor.array_dtype)
    if array.dtype == wanted:
        return array
    if tensor.dtype == "bf16":
        return narrowed(array, "bfloat16")
    if wanted.kind == "f" and array.dtype.kind in "fiu":
        return array.astype(wanted)
    if wanted.kind in "iu" and array.dtype.kind in "iu":
        limits = np.iinfo(wanted)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise InputError(f"{where}: values do not fit {wanted}")
        return array.astype(wanted)
    raise InputError(f"{where}: {array.dtype} given, it takes {tensor.dtype}")


_POOL = _Pool()
atexit.register(_POOL.close)
