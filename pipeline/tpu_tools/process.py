"""Runs vendor tools: own folder, own log file, clean environment, and a failure that says why."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from configs.errors import ToolError
from configs.layout import REPOSITORY_ROOT, TPU_ENVIRONMENT
from configs.load import shown
from pipeline.tpu_tools.command_lines import tool, version

#: A single step of a full-size net takes under a minute on two cores.
TIMEOUT_S = 1800.0
#: Lines of a log that explain a failure.
_TELLING = re.compile(
    r"error|not support|unreachable|assert|fail|what\(\)|no space|killed|fatal|broken|GLIBC", re.I
)
_SHOWN_LINES = 8
#: Of a log that has longer lines, pieces of this size count as lines: a log may be of any size.
_PIECE_BYTES = 1 << 16
#: Why a tool failed stands at the end of its log.
_EXPLAINING_BYTES = 1 << 22
#: Runs a tool, and ends it with all of its processes when we end.
_SUPERVISOR = Path(__file__).with_name("supervisor.py")
#: How long a tool's processes have to end after they were killed.
_ENDING_S = 30.0
#: What a log says when the compiler's own compiled kernels are in the way, or cannot be made.
_KERNELS = re.compile(r"\bppl|bus error|dlopen", re.I)
_NO_COMPILER = "the compiler compiles kernels with gcc, g++, cmake and make; make doctor finds them"
_LONGEST_LINE = 300
#: Variables that would make another Python or other libraries leak into the vendor's environment.
_FOREIGN = re.compile(r"^(PYTHON|LD_|VIRTUAL_ENV|CONDA|TPUC_|PPL_)")


class MemoryBudget:
    """Lets heavy steps run side by side only while their expected sizes fit together."""

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, needed_bytes: int) -> Iterator[None]:
        """Waits until ``needed_bytes`` are free; a step larger than the budget runs alone."""
        needed = min(needed_bytes, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._used + needed <= self._total)
            self._used += needed
        try:
            yield
        finally:
            with self._changed:
                self._used -= needed
                self._changed.notify_all()


def _foreign() -> list[str]:
    return sorted(name for name in os.environ if _FOREIGN.match(name))


def _own() -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(os.cpu_count() or 1), "PYTHONNOUSERSITE": "1"}


def kernel_cache(work: Path) -> Path:
    """Where the compiler keeps kernels that it compiled: code, so a folder per version.

    Its library ``libppl_host.so`` reads the folder from ``PPL_CACHE_PATH``; the default is
    ``~/.ppl/cache``, which all checkouts and versions of an account share.
    """
    return work / f"kernels-{version()}"


def clean_environment() -> dict[str, str]:
    """This process's environment without what belongs to another Python or tool chain."""
    foreign = _foreign()
    return {k: v for k, v in os.environ.items() if k not in foreign} | _own()


def shell_line(argv: Sequence[str], folder: Path, work: Path | None = None) -> str:
    """A command with its folder and environment, as typed at the top of the checkout."""
    program = shown(TPU_ENVIRONMENT / "bin" / argv[0])
    depth = shown(folder)
    if not Path(program).is_absolute() and not Path(depth).is_absolute():
        up = os.path.relpath(".", depth)
        program = os.path.join(up, program)  # noqa: PTH118 - keeps leading ".." parts as typed
    elif not Path(program).is_absolute():
        program = str(REPOSITORY_ROOT / program)
    removed = (part for name in _foreign() for part in ("-u", name))
    added = (f"{name}={value}" for name, value in _own().items())
    kernels = ""
    if work is not None:
        place = os.path.relpath(kernel_cache(work), folder)
        kernels = f'PPL_CACHE_PATH="$PWD"/{shlex.quote(place)} '
    line = f"{shlex.join(('env', *removed, *added))} {kernels}{shlex.join((program, *argv[1:]))}"
    return f"(cd {shlex.quote(depth)} && {line})"


def log_lines(log: Path, last_bytes: int | None = None) -> Iterator[str]:
    """What a tool printed, or the end of it, line by line; very long lines come in pieces.

    Our own first line, which repeats the command, is left out.
    """
    with log.open("rb") as stream:
        first = stream.readline()
        if not first.startswith(b"$ "):
            stream.seek(0)
        if last_bytes is not None:
            stream.seek(max(stream.tell(), log.stat().st_size - last_bytes))
        while piece := stream.readline(_PIECE_BYTES):
            yield piece.decode(errors="replace")


def telling_lines(log: Path) -> list[str]:
    """The last lines of a log that explain a failure, or simply its last lines."""
    last: deque[str] = deque(maxlen=_SHOWN_LINES)
    telling: deque[str] = deque(maxlen=_SHOWN_LINES)
    for line in log_lines(log, _EXPLAINING_BYTES):
        if text := line.strip()[:_LONGEST_LINE]:
            last.append(text)
            if _TELLING.search(text):
                telling.append(text)
    return list(telling or last)


def _blames_kernels(log: Path) -> bool:
    return any(map(_KERNELS.search, log_lines(log, _EXPLAINING_BYTES)))


class VendorTools:
    """Starts vendor tools, and ends those that still run when a build is given up."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()
        self._stopped = False
        #: when kernels were last removed
        self._removed = -math.inf

    def run(
        self,
        argv: Sequence[str],
        folder: Path,
        log: Path,
        *,
        leaves: Sequence[str] = (),
        work: Path | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Iterator[str]:
        """Runs one tool in ``folder``; returns the lines that it printed, which ``log`` keeps.

        A tool that compiles keeps its kernels in ``work``. If they are damaged, which a power loss
        leaves and the tool never mends, they are removed and it runs once more.

        Raises:
            ToolError: the tool is missing, failed, ran too long, or left a file of ``leaves`` out;
                with the command, its exit code, the lines that matter and the log's path. Or the
                build was given up.
        """
        started = time.monotonic()
        kernels = None if work is None else kernel_cache(work)
        try:
            self._run(argv, folder, log, leaves, work, timeout_s)
        except ToolError:
            if kernels is None or self._stopped or not _blames_kernels(log):
                raise
            with self._guard:
                # Not what another tool has made since: it was given up for the same damage.
                if self._removed < started:
                    shutil.rmtree(kernels, ignore_errors=True)
                    self._removed = time.monotonic()
            try:
                self._run(argv, folder, log, leaves, work, timeout_s)
            except ToolError as error:
                made = any(kernels.glob("**/*.so"))
                raise ToolError(str(error) if made else f"{error}\n  {_NO_COMPILER}") from None
        return log_lines(log)

    def _run(
        self,
        argv: Sequence[str],
        folder: Path,
        log: Path,
        leaves: Sequence[str],
        work: Path | None,
        timeout_s: float,
    ) -> None:
        line = shell_line(argv, folder, work)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            stream.write(f"$ {line}\n".encode())
            stream.flush()
            process = self._start([str(tool(argv[0])), *argv[1:]], folder, stream, work)
            try:
                code = process.wait(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                outcome = f"did not finish in {timeout_s:g} s"
                raise ToolError(_failure(argv, line, outcome, log)) from None
            finally:
                _kill(process)
                with self._guard:
                    self._running.discard(process)
        missing = [file for file in leaves if not (folder / file).is_file()]
        if code != 0:
            raise ToolError(_failure(argv, line, _outcome(code), log))
        if missing:
            outcome = f"ended with exit code 0 but left no {', '.join(missing)}"
            raise ToolError(_failure(argv, line, outcome, log))

    def stop(self) -> None:
        """Ends every tool that runs, and lets none start any more."""
        with self._guard:
            self._stopped = True
            for process in self._running:
                _kill(process)

    def _start(
        self, command: list[str], folder: Path, stream: IO[bytes], work: Path | None
    ) -> subprocess.Popen[bytes]:
        environment = clean_environment()
        if work is not None:
            kernels = kernel_cache(work)
            kernels.mkdir(parents=True, exist_ok=True)
            environment["PPL_CACHE_PATH"] = str(kernels)
        with self._guard:
            if self._stopped:
                raise ToolError("given up: another step failed or the run was interrupted")
            process = subprocess.Popen(
                [sys.executable, "-IS", str(_SUPERVISOR), *command],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                # A session of its own: Ctrl-C in the terminal is ours to handle.
                start_new_session=True,
            )
            self._running.add(process)
            return process


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a tool and the processes that it started; see ``supervisor.py``."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(timeout=_ENDING_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _outcome(code: int) -> str:
    if code < 0:
        return f"was ended by signal {signal.Signals(-code).name}"
    return f"failed with exit code {code}"


def _failure(argv: Sequence[str], line: str, outcome: str, log: Path) -> str:
    lines = "\n".join(f"    {text}" for text in telling_lines(log))
    return f"{argv[0]} {outcome}\n  command: {line}\n  log: {shown(log)}\n{lines}"
