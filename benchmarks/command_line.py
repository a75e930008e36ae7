"""What users of the command line meet: a fresh process's first caption, a folder of images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.results import CommandLineResult
from benchmarks.rounds import rotated
from benchmarks.summary import summarise
from benchmarks.variants.artifacts import opened_as
from benchmarks.variants.base import NEW_TOKENS
from configs.errors import ToolError
from configs.layout import REPOSITORY_ROOT
from pipeline.scenes import draw, make_scene

#: A camera's smaller format: decoding and resizing cost what they usually cost.
PHOTO_SIZE = (640, 480)


@dataclass
class _Figures:
    first_s: list[float] = field(default_factory=list)
    images_per_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def command_line(
    modes: Sequence[str],
    artifacts: Path,
    work: Path,
    *,
    threads: int,
    images: int,
    rounds: int,
    report: Callable[[str], None],
) -> dict[str, CommandLineResult]:
    """Measures ``blip-edge caption`` of one photo and of a folder, modes in turn.

    The first round fills the cache of compiled models and is thrown away.

    Raises:
        ToolError: the command failed.
    """
    folder = _photos(work / f"photos-{images}", images)
    found = {mode: _Figures() for mode in modes}
    for turn in range(rounds + 1):
        report(f"command line, round {turn} of {rounds}")
        for mode in rotated(modes, turn):
            cache = work / "started" / mode
            first_s, _, _ = _run(_command(mode, folder / "0000.jpg", artifacts, cache, threads))
            _, last_s, peak = _run(_command(mode, folder, artifacts, cache, threads))
            if turn:
                figures = found[mode]
                figures.first_s.append(first_s)
                figures.images_per_s.append(images / last_s)
                figures.peak_bytes = max(figures.peak_bytes, peak)
    return {
        mode: CommandLineResult(
            first_caption_s=summarise(figures.first_s),
            images_per_s=summarise(figures.images_per_s),
            images=images,
            peak_bytes=figures.peak_bytes,
        )
        for mode, figures in found.items()
    }


def _command(mode: str, images: Path, artifacts: Path, cache: Path, threads: int) -> list[str]:
    options = {"artifacts": artifacts, "cache": cache, "threads": threads, **opened_as(mode)}
    options |= {"max-new-tokens": NEW_TOKENS, "min-new-tokens": NEW_TOKENS}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "runtime", "caption", str(images), "--json", *words]


def _run(command: list[str]) -> tuple[float, float, int]:
    """Seconds from the start of the process to its first and last result, and its peak bytes."""
    begin = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=REPOSITORY_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None  # noqa: S101, PT018
        arrived, problem = [], ""
        for line in process.stdout:
            arrived.append(time.perf_counter() - begin)
            problem = problem or json.loads(line).get("error", "")
        problem = problem or process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not arrived:
        reason = " ".join(problem.split())[-300:]
        raise ToolError(f"{' '.join(command)} failed (exit {process.returncode}): {reason}")
    return arrived[0], arrived[-1], 1024 * usage.ru_maxrss


def _photos(folder: Path, count: int) -> Path:
    """JPEG photos, drawn now unless they are there."""
    if not (folder / f"{count - 1:04}.jpg").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            path = folder / f"{index:04}.jpg"
            draw(make_scene(index)).resize(PHOTO_SIZE).save(path, quality=92)
    return folder
