"""What a user sees: one console, stage progress, one line per finished artifact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

#: Messages go to standard error; standard output is for tables and data.
messages = Console(stderr=True, highlight=False, soft_wrap=True)
output = Console(highlight=False)
#: Wider than any table.
_UNLIMITED = 10_000
#: How often a log hears that work goes on.
PLAIN_LINES_S = 30.0
#: The bar on the screen: a terminal has room for one, and a step's own bar is drawn below it.
_shown: list[Progress] = []


def print_table(table: Table) -> None:
    """Prints a table in its full width on standard output, whatever that is connected to.

    A pipe or a narrow terminal would otherwise shorten cells to a letter or two; too long lines
    are the terminal's to wrap.
    """
    unlimited = output.options.update(max_width=_UNLIMITED)
    width = Measurement.get(output, unlimited, table).maximum
    Console(file=output.file, width=width, highlight=False).print(table)


class Steps:
    """A stage's progress bar: names the step at hand, prints a line for each finished one."""

    def __init__(self, progress: Progress, total: int, stage: str) -> None:
        self._progress = progress
        self._stage = stage
        self._task = progress.add_task(stage, total=total)

    def start(self, step: str) -> None:
        """Shows which step runs now."""
        self._progress.update(self._task, description=f"{self._stage}: {step}")

    def advance(self, count: int) -> None:
        """Advances by several steps."""
        self._progress.advance(self._task, count)

    def extend(self, count: int) -> None:
        """More steps than was known before."""
        task = next(one for one in self._progress.tasks if one.id == self._task)
        self._progress.update(self._task, total=(task.total or 0) + count)

    def close(self) -> None:
        """Takes the bar away."""
        self._progress.remove_task(self._task)

    def done(self, line: str | None = None) -> None:
        """Advances by one step, and prints its line above the bar."""
        if line:
            self._progress.console.print(line)
        self._progress.advance(self._task)


@contextmanager
def steps(stage: str, total: int, *, remaining: bool = False) -> Iterator[Steps]:
    """A progress bar with ``total`` steps on standard error, removed when done.

    ``remaining`` adds the time left, for steps of about equal length. Within another bar it is
    drawn below that one.
    """
    if _shown:
        inner = Steps(_shown[0], total, stage)
        try:
            yield inner
        finally:
            inner.close()
        return
    left = (TextColumn("left"), TimeRemainingColumn()) if remaining else ()
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *left,
        console=messages,
        transient=True,
    )
    with progress, _plain_lines(progress):
        _shown.append(progress)
        try:
            yield Steps(progress, total, stage)
        finally:
            _shown.remove(progress)


@contextmanager
def _plain_lines(progress: Progress) -> Iterator[None]:
    """Where no terminal shows the bar: a line now and then, so that a log tells that work goes on.

    Each line is about the innermost bar and those around it.
    """
    if messages.is_terminal:
        yield
        return
    ended = Event()

    def say() -> None:
        while not ended.wait(PLAIN_LINES_S):
            bars = [
                f"{one.description} ({one.completed:g}/{one.total:g})" for one in progress.tasks
            ]
            elapsed = max((one.elapsed or 0 for one in progress.tasks), default=0)
            messages.print(f"{'; '.join(bars)}, {elapsed:.0f} s", markup=False)

    thread = Thread(target=say, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
