"""A progress bar that is drawn between samples only: redrawing during one would disturb it."""

from __future__ import annotations

from types import TracebackType

from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from pipeline.console import messages


class Progress:
    """Says what is measured now and about how long everything still takes."""

    def __init__(self, title: str, total_s: float) -> None:
        self.total_s = total_s
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("about {task.fields[left]} left"),
            console=messages,
            auto_refresh=False,
            transient=True,
        )
        self._title = title
        self._task = self._bar.add_task(title, total=total_s, left=_clock(total_s))

    def report(self, step: str, left_s: float) -> None:
        """Shows the step at hand and the time that is left."""
        self.total_s = max(self.total_s, left_s)
        self._bar.update(
            self._task,
            description=f"{self._title}: {escape(step)}",
            total=self.total_s,
            completed=max(0.0, self.total_s - left_s),
            left=_clock(left_s),
        )
        self._bar.refresh()

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._bar.console.print(escape(line))

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()


def _clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02}"
