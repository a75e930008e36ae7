"""How much of a core other processes took while a worker measured."""

from __future__ import annotations

import os
import time
from pathlib import Path

#: Above this share of one core a sample is disturbed and taken again.
DISTURBED_SHARE = 0.06
#: Kernel ticks are 10 ms: a short sample cannot be told apart from noise below this many seconds.
_RESOLUTION_S = 0.02
_BUSY_FIELDS = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal


class LoadWatch:
    """Counts processor time from its creation on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._busy, self._own = busy_seconds(), process_seconds(pid)
        self._begin = time.monotonic()

    def others_share(self) -> float:
        """Seconds of processor time per second that belonged to no thread of the process.

        Steal counts: to the worker another guest of the same host is another process.
        """
        elapsed = time.monotonic() - self._begin
        others = busy_seconds() - self._busy - (process_seconds(self._pid) - self._own)
        return max(0.0, others - _RESOLUTION_S) / max(elapsed, 1e-9)


def busy_seconds() -> float:
    """Processor time of all cores since boot."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return sum(int(fields[index]) for index in _BUSY_FIELDS) / os.sysconf("SC_CLK_TCK")


def process_seconds(pid: int) -> float:
    """Processor time of a process, all threads; 0 when it has ended."""
    try:
        # The name in brackets may hold anything, spaces too.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def disturbed(share: float) -> bool:
    """Whether a sample with this share of other work should be taken again."""
    return share > DISTURBED_SHARE
