"""The bench's side of a worker: starts it, asks, waits, and watches what else uses the machine."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.load_watch import LoadWatch
from benchmarks.runners.base import RunnerOptions
from benchmarks.schedule import Workload
from configs.layout import REPOSITORY_ROOT

#: The longest that opening or one measurement may take; ``torch.compile`` needs minutes at first.
TIMEOUT_S = 900.0


class WorkerError(Exception):
    """A variant cannot run here; the text is the reason, on one line."""


class Worker:
    """One variant in a process of its own."""

    def __init__(self, options: RunnerOptions, log: Path) -> None:
        self.options = options
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        threads = str(options.threads)
        environment = {
            **os.environ,
            # Equal for all; each library also gets the number through its own interface.
            **dict.fromkeys(
                ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads
            ),
            "TOKENIZERS_PARALLELISM": "false",
        }
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker"],
                cwd=REPOSITORY_ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._buffer = b""

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def open(self) -> dict[str, Any]:
        """Loads the variant; returns facts about it.

        Raises:
            WorkerError: it cannot run here.
        """
        raw = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(self.options).items()
        }
        return self._ask({"do": "open", "options": raw})

    def measure(self, workload: Workload, least_s: float) -> dict[str, Any]:
        """One sample, with ``others`` added: the share of a core that other processes took.

        Raises:
            WorkerError: the variant failed.
        """
        watch = LoadWatch(self.pid)
        begin = time.perf_counter()
        sample = self._ask({"do": "measure", "workload": workload.as_json(), "least_s": least_s})
        sample["seconds"] = time.perf_counter() - begin
        sample["others"] = watch.others_share()
        return sample

    def memory(self) -> dict[str, int]:
        """Resident and peak bytes.

        Raises:
            WorkerError: the worker has ended.
        """
        return self._ask({"do": "memory"})

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            try:
                self._send({"do": "close"})
                self._process.wait(timeout=20)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue

    def _send(self, request: dict[str, Any]) -> None:
        stream = self._process.stdin
        if stream is None:
            raise WorkerError("the worker has no input")
        stream.write(json.dumps(request).encode() + b"\n")
        stream.flush()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._send(request)
        except OSError:
            raise WorkerError(self._ended()) from None
        reply = json.loads(self._line())
        if "error" in reply:
            raise WorkerError(reply["error"])
        result: dict[str, Any] = reply["result"]
        return result

    def _line(self) -> bytes:
        stream = self._process.stdout
        if stream is None:
            raise WorkerError("the worker has no output")
        deadline = time.monotonic() + TIMEOUT_S
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self._process.kill()
                    raise WorkerError(f"no answer in {TIMEOUT_S:.0f} s")
                part = os.read(stream.fileno(), 1 << 16)
                if not part:
                    raise WorkerError(self._ended())
                self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _ended(self) -> str:
        code = self._process.wait()
        why = "killed, perhaps for memory" if code == -9 else f"exit {code}"
        return f"its process ended ({why}); see {self._log.name} in the pipeline's logs"
