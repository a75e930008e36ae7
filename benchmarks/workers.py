"""One process per variant: libraries share neither threads nor memory, and peak memory is theirs.

A variant that waits is blocked on its pipe, so it takes nothing from the one that works.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.variants.base import Call, Variant, VariantOptions, Workload

#: The longest that opening or one measurement may take.
TIMEOUT_S = 900.0


class VariantError(Exception):
    """A variant cannot run here; the text is the reason, on one line."""


@dataclass(frozen=True)
class Sample:
    """Means over the calls of one measurement, in ms, and the process's peak memory so far."""

    total_ms: float
    stages_ms: dict[str, float]
    step_ms: float | None
    tokens: list[list[int]]
    peak_bytes: int


class Worker:
    """One variant in a process of its own."""

    def __init__(self, options: VariantOptions, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, options, log), daemon=True)
        self._process.start()
        theirs.close()

    def opened(self) -> int | None:
        """Waits until the variant is loaded; returns the bytes of its artifacts.

        Raises:
            VariantError: it cannot run here.
        """
        found: int | None = self._ask(None)
        return found

    def measure(self, workload: Workload, least_s: float) -> Sample:
        """Calls a workload until ``least_s`` have passed.

        Raises:
            VariantError: the variant failed.
        """
        found: Sample = self._ask((workload, least_s))
        return found

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(20)
        self._process.kill()

    def _ask(self, request: tuple[Workload, float] | None) -> Any:
        try:
            if request is not None:
                self._pipe.send(request)
            if not self._pipe.poll(TIMEOUT_S):
                self._process.kill()
                raise VariantError(f"no answer in {TIMEOUT_S:.0f} s")
            failed, result = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            why = "killed, perhaps for memory" if code == -9 else f"exit {code}"
            raise VariantError(f"its process ended ({why}); see {self._log.name}") from None
        if failed:
            raise VariantError(result)
        return result


def open_variant(options: VariantOptions) -> Variant:
    """The variant; libraries are imported only for the one that needs them."""
    if options.variant == "notebook":
        from benchmarks.variants.notebook import NotebookVariant

        return NotebookVariant(options)
    if options.variant.startswith("torch"):
        from benchmarks.variants.huggingface import HuggingFaceVariant

        return HuggingFaceVariant(options)
    from benchmarks.variants.artifacts import ArtifactsVariant

    return ArtifactsVariant(options)


def _serve(pipe: Connection, options: VariantOptions, log: Path) -> None:
    """Opens the variant and answers until the pipe is closed; prints go to the log."""
    with log.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    try:
        variant = open_variant(options)
        pipe.send((False, variant.disk_bytes))
        while True:
            pipe.send((False, _measure(variant, *pipe.recv())))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:  # reported in the variant's row
        traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        pipe.send((True, text[:400]))


def _measure(variant: Variant, workload: Workload, least_s: float) -> Sample:
    gc.collect()
    calls: list[Call] = []
    while not calls or sum(call.seconds for call in calls) < least_s:
        calls.append(variant.run(workload))
    to_ms = 1000.0 / len(calls)
    steps = [call.step for call in calls if call.step is not None]
    return Sample(
        total_ms=to_ms * sum(call.seconds for call in calls),
        stages_ms={
            stage: to_ms * sum(call.stages[stage] for call in calls) for stage in calls[0].stages
        },
        step_ms=to_ms * sum(steps) if steps else None,
        tokens=calls[-1].tokens,
        peak_bytes=_peak_bytes(),
    )


def _peak_bytes() -> int:
    # ru_maxrss would count the parent's memory at the fork.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
