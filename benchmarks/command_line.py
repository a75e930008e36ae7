"""What users of the command line meet: a fresh process's first caption, a folder of images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.results import Folder, Start
from benchmarks.runners.artifacts import OPENED
from benchmarks.schedule import NEW_TOKENS
from benchmarks.summaries import summarise
from benchmarks.worker_process import WorkerError
from configs.layout import REPOSITORY_ROOT
from pipeline.scenes import draw, make_scene

#: A camera's smaller format: decoding and resizing cost what they usually cost.
PHOTO_SIZE = (640, 480)
_TIMEOUT_S = 600


@dataclass(frozen=True)
class CommandLine:
    """``blip-edge caption`` on one mode's artifacts."""

    mode: str
    artifacts: Path
    threads: int
    cache: Path

    def arguments(self, images: Path) -> list[str]:
        """The command, results one by one as JSON."""
        opened = OPENED[self.mode]
        return [
            *(sys.executable, "-m", "runtime", "caption", str(images), "--json"),
            *("--artifacts", str(self.artifacts), "--cache", str(self.cache)),
            *(word for name, value in opened.items() for word in (f"--{name}", value)),
            *("--threads", str(self.threads)),
            *("--max-new-tokens", str(NEW_TOKENS), "--min-new-tokens", str(NEW_TOKENS)),
        ]

    def run(self, images: Path) -> tuple[list[float], int]:
        """Seconds from the start of the process to each result, and its peak resident bytes.

        Raises:
            WorkerError: the command failed.
        """
        begin = time.perf_counter()
        with subprocess.Popen(
            self.arguments(images),
            cwd=REPOSITORY_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            if process.stdout is None or process.stderr is None:
                raise WorkerError("the command has no output")
            arrived, problem = [], ""
            for line in process.stdout:
                arrived.append(time.perf_counter() - begin)
                problem = problem or json.loads(line).get("error", "")
            problem = problem or process.stderr.read().strip()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or not arrived:
            reason = " ".join(problem.split())[-300:]
            raise WorkerError(f"blip-edge caption failed (exit {process.returncode}): {reason}")
        return arrived, 1024 * usage.ru_maxrss


def photos(folder: Path, count: int) -> Path:
    """A folder of ``count`` JPEG photos, drawn now unless it is there."""
    target = folder / f"photos-{count}"
    if not (target / f"{count - 1:04}.jpg").is_file():
        target.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image = draw(make_scene(index)).resize(PHOTO_SIZE)
            image.save(target / f"{index:04}.jpg", quality=92)
    return target


def starts(
    lines: list[CommandLine], image: Path, rounds: int, report: Callable[[str], None]
) -> tuple[dict[str, Start], dict[str, str]]:
    """First captions of fresh processes, modes in turn, after one run each that fills the cache.

    Returns:
        results and failures by mode.
    """
    seconds: dict[str, list[float]] = {line.mode: [] for line in lines}
    memory: dict[str, list[int]] = {line.mode: [] for line in lines}
    failures: dict[str, str] = {}
    for turn in range(rounds + 1):
        for line in lines:
            if line.mode in failures:
                continue
            report(f"process start {turn}/{rounds}: {line.mode}")
            try:
                arrived, peak = line.run(image)
            except WorkerError as error:
                failures[line.mode] = str(error)
                continue
            if turn:
                seconds[line.mode].append(arrived[0])
                memory[line.mode].append(peak)
    found = {
        mode: Start(first_caption_s=summarise(values), peak_bytes=max(memory[mode]))
        for mode, values in seconds.items()
        if values and mode not in failures
    }
    return found, failures


def folder_share(
    line: CommandLine,
    images: int,
    work: Path,
    inference_images_per_s: Callable[[], float],
    rounds: int,
) -> Folder:
    """Images per second of a folder, from the first result to the last, over inference alone.

    Inference is measured before and after each run, so that a drift of the machine cancels.

    Raises:
        WorkerError: the command failed.
    """
    folder = photos(work, images)
    shares, rates, alone = [], [], []
    before = inference_images_per_s()
    for _ in range(rounds):
        rate = steady_rate(line.run(folder)[0])
        after = inference_images_per_s()
        pure, before = (before + after) / 2, after
        shares.append(rate / pure)
        rates.append(rate)
        alone.append(pure)
    return Folder(
        images=images,
        images_per_s=sorted(rates)[len(rates) // 2],
        inference_images_per_s=sorted(alone)[len(alone) // 2],
        share=summarise(shares),
    )


def steady_rate(arrived: list[float]) -> float:
    """Results per second once they flow, from their times of arrival.

    Results may come in bursts of a batch. So what counts is the time from the end of the first
    burst to the last result, and the results in between; a burst ends where the next result takes
    more than half the mean distance. Where the first burst holds most of them, the start of the
    process counts as well: a lower bound.
    """
    span = arrived[-1] - arrived[0]
    gaps = [two - one for one, two in pairwise(arrived)]
    first = next((index for index, gap in enumerate(gaps) if gap > span / len(gaps) / 2), len(gaps))
    left = len(arrived) - 1 - first
    if 2 * left < len(arrived):
        return len(arrived) / arrived[-1]
    return left / (arrived[-1] - arrived[first])
