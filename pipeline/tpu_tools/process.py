"""Runs vendor tools: own folder, own log file, clean environment, and a failure that says why."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from configs.errors import ToolError
from configs.layout import REPOSITORY_ROOT, TPU_ENVIRONMENT
from configs.load import shown
from pipeline.tpu_tools.command_lines import tool

#: A single step of a full-size net takes under a minute on two cores.
TIMEOUT_S = 1800.0
#: Lines of a log that explain a failure.
_TELLING = re.compile(
    r"error|not support|unreachable|assert|fail|what\(\)|no space|killed|fatal|broken|GLIBC", re.I
)
_SHOWN_LINES = 8
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


def clean_environment() -> dict[str, str]:
    """This process's environment without what belongs to another Python or tool chain."""
    foreign = _foreign()
    return {k: v for k, v in os.environ.items() if k not in foreign} | _own()


def shell_line(argv: Sequence[str], folder: Path) -> str:
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
    line = shlex.join(("env", *removed, *added, program, *argv[1:]))
    return f"(cd {shlex.quote(depth)} && {line})"


def telling_lines(log: Path) -> list[str]:
    """The last lines of a log that explain a failure, or simply its last lines."""
    last: deque[str] = deque(maxlen=_SHOWN_LINES)
    telling: deque[str] = deque(maxlen=_SHOWN_LINES)
    with log.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            text = line.strip()[:_LONGEST_LINE]
            # Our own first line repeats the command, which the message shows anyway.
            if text and not text.startswith("$ "):
                last.append(text)
                if _TELLING.search(text):
                    telling.append(text)
    return list(telling or last)


class VendorTools:
    """Starts vendor tools, and ends those that still run when a build is given up."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()
        self._stopped = False

    def run(
        self,
        argv: Sequence[str],
        folder: Path,
        log: Path,
        *,
        leaves: Sequence[str] = (),
        timeout_s: float = TIMEOUT_S,
    ) -> str:
        """Runs one tool in ``folder``; returns what it printed, which ``log`` keeps.

        Raises:
            ToolError: the tool is missing, failed, ran too long, or left a file of ``leaves`` out;
                with the command, its exit code, the lines that matter and the log's path. Or the
                build was given up.
        """
        line = shell_line(argv, folder)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            stream.write(f"$ {line}\n".encode())
            stream.flush()
            process = self._start([str(tool(argv[0])), *argv[1:]], folder, stream)
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
        return log.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """Ends every tool that runs, and lets none start any more."""
        with self._guard:
            self._stopped = True
            for process in self._running:
                _kill(process)

    def _start(
        self, command: list[str], folder: Path, stream: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        with self._guard:
            if self._stopped:
                raise ToolError("given up: another step failed or the run was interrupted")
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=clean_environment(),
                # A session of its own: the tools' own children are ended with them.
                start_new_session=True,
            )
            self._running.add(process)
            return process


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a tool and the processes that it started (they share its session)."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _outcome(code: int) -> str:
    if code < 0:
        return f"was ended by signal {signal.Signals(-code).name}"
    return f"failed with exit code {code}"


def _failure(argv: Sequence[str], line: str, outcome: str, log: Path) -> str:
    lines = "\n".join(f"    {text}" for text in telling_lines(log))
    return f"{argv[0]} {outcome}\n  command: {line}\n  log: {shown(log)}\n{lines}"
