"""Where the time of a call goes: preprocess, vision, first pass, per token."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterator, Optional

#: Stages in the order of a call, with what a row of that stage is.
STAGES = ("preprocess", "vision", "text_encoder", "cross_key_values", "first_pass", "step")


@dataclass
class Timings:
    """Seconds, calls and rows per stage, added up over everything measured with one object.

    May be shared between threads.
    """

    seconds: Dict[str, float] = field(default_factory=dict)
    calls: Dict[str, int] = field(default_factory=dict)
    rows: Dict[str, int] = field(default_factory=dict)
    #: called before every stage; what it raises ends the work there
    interrupt: Optional[Callable[[], None]] = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def measure(self, stage: str, rows: int = 1) -> Iterator[None]:
        """Adds the time of the block to a stage."""
        if self.interrupt is not None:
            self.interrupt()
        begin = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - begin
            with self._lock:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed
                self.calls[stage] = self.calls.get(stage, 0) + 1
                self.rows[stage] = self.rows.get(stage, 0) + rows

    def milliseconds_per_row(self, stage: str) -> float:
        """Mean time of one row (image, question, token) in a stage, in ms; 0 if never run."""
        rows = self.rows.get(stage, 0)
        return 1000.0 * self.seconds.get(stage, 0.0) / rows if rows else 0.0
