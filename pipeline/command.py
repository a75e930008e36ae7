"""What all stage command lines share: selection of work, and exit codes instead of tracebacks."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import ParamSpec

import typer
from rich.markup import escape

from configs.errors import BlipEdgeError, ConfigError
from configs.load import (
    check_precision,
    load_pipeline,
    load_target,
    pipeline_target,
    shown,
    target_names,
)
from configs.schema import (
    TASK_COMPONENTS,
    Component,
    PipelineConfig,
    Precision,
    TargetConfig,
    Task,
)
from pipeline.console import messages
from pipeline.goals.annotations import annotate

Parameters = ParamSpec("Parameters")

#: Exit code of a command that a signal ended: this and the signal's number, as shells count.
SIGNALLED = 128
#: Set to 1, an unexpected error shows where it came from.
DEBUG = "BLIP_EDGE_DEBUG"


class _EndedError(KeyboardInterrupt):
    """A signal other than Ctrl-C's asks the command to end; it ends like that."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP (a closed terminal) end a command as Ctrl-C does: tidied up, in one line.

    Who ignores a hang-up (nohup) goes on ignoring it.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        raise _EndedError(number)

    wanted = (signal.SIGTERM, signal.SIGHUP)
    before = {one: signal.getsignal(one) for one in wanted}
    ours = [one for one in wanted if before[one] == signal.SIG_DFL]
    for one in ours:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in ours:
            signal.signal(one, before[one])


def _unexpected(error: BaseException) -> str:
    """One line about an error that nobody expected."""
    text = " ".join(str(error).split())[:500]
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or text}; check free space and rights"
    kind = type(error).__name__
    return f"unexpected {kind}: {text}; {DEBUG}=1 shows where; please report it"


def exit_codes(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Turns every error into one line on standard error and its exit code (1, 2, or a signal's)."""

    @wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            with _signals():
                command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter, SystemExit):
            raise
        except BlipEdgeError as error:
            messages.print(f"[red]error:[/] {escape(str(error))}")
            annotate(str(error))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as error:
            with suppress(OSError):  # the terminal may be gone
                messages.print(
                    "[yellow]interrupted[/]; finished artifacts are kept, run again to go on"
                )
            number = error.number if isinstance(error, _EndedError) else signal.SIGINT
            raise typer.Exit(SIGNALLED + number) from None
        except BaseException as error:
            # Base: what panics in Rust (tokenizers, safetensors) arrives as no ``Exception``.
            if os.environ.get(DEBUG):
                raise
            messages.print(f"[red]error:[/] {escape(_unexpected(error))}")
            annotate(_unexpected(error))
            raise typer.Exit(1) from None

    return run


@dataclass(frozen=True)
class Selection:
    """The part of a pipeline that one command works on."""

    pipeline: PipelineConfig
    tasks: tuple[Task, ...]
    #: component filter; empty means all
    components: tuple[Component, ...]
    targets: tuple[tuple[TargetConfig, Precision], ...]
    #: the pipeline file
    file: Path

    def task_components(self, task: Task) -> tuple[Component, ...]:
        """Selected components of a task, in data-flow order."""
        every = TASK_COMPONENTS[task]
        return tuple(c for c in every if not self.components or c in self.components)


def _split(text: str | None) -> list[str]:
    return [part for part in (text or "").replace(",", " ").split() if part]


def _choose(given: Sequence[str], offered: Sequence[str], option: str, where: str) -> list[str]:
    for name in given:
        if name not in offered:
            raise ConfigError(
                f"{option} {name}: not part of {where}; choose from: {', '.join(offered)}"
            )
    return [name for name in offered if name in given] if given else list(offered)


def select(
    config: Path,
    *,
    task: str | None = None,
    component: str | None = None,
    target: str | None = None,
    precision: str | None = None,
    backend: str | None = None,
) -> Selection:
    """Resolves a command's options against a pipeline file. Options take comma-separated lists.

    ``backend`` keeps only targets of that backend, and refuses an asked-for target of another.
    A target that the file does not list may still be asked for by name, in its default precision.

    Raises:
        ConfigError: an unknown name, or a precision that a target does not have.
    """
    pipeline = load_pipeline(config)
    tasks = _choose(_split(task), list(pipeline.tasks), "--task", shown(config))
    known = list(dict.fromkeys(c for name in pipeline.tasks for c in TASK_COMPONENTS[name]))
    components = _choose(_split(component), known, "--component", shown(config))
    wanted = _split(target)
    for name in wanted:
        if name not in target_names():
            raise ConfigError(
                f"--target {name}: unknown target; choose from: {', '.join(target_names())}"
            )
    precisions = _split(precision)
    pairs: list[tuple[TargetConfig, Precision]] = []
    for name in wanted or list(pipeline.targets):
        chosen = pipeline_target(pipeline, name)
        if backend is not None and chosen.backend != backend:
            if not wanted:
                continue
            fitting = [t for t in target_names() if load_target(t).backend == backend]
            raise ConfigError(
                f"--target {name}: not a {backend} target; choose from: {', '.join(fitting)}"
            )
        listed = pipeline.targets.get(name)
        values = precisions or list(listed.precisions if listed else (chosen.default_precision,))
        where = f"--precision {','.join(precisions)}" if precisions else shown(config)
        pairs += [(chosen, check_precision(chosen, value, where)) for value in values]
    if backend is not None and not pairs:
        raise ConfigError(f"{shown(config)}: targets: none uses {backend}; list one, or name it")
    return Selection(
        pipeline=pipeline,
        tasks=tuple(tasks),  # type: ignore[arg-type]
        components=tuple(components) if component else (),  # type: ignore[arg-type]
        targets=tuple(pairs),
        file=config,
    )
