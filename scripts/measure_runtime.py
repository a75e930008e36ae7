"""Measures the runtime: time and memory to the first caption, and its share of a caption's time.

    python -m scripts.measure_runtime --artifacts models/artifacts/reference [--target openvino]

Everything outside the backend's own calls counts as overhead: decoding and resizing the image,
tokenisation, the cache, the search. Printed as JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from configs.layout import REPOSITORY_ROOT
from configs.scenes import draw, make_scene
from runtime.tasks import Captioner
from runtime.timing import Timings

_FIRST_CAPTION = """
import resource, sys, time
begin = time.perf_counter()
from runtime.tasks import Captioner
captioner = Captioner.from_artifacts(sys.argv[1], target=sys.argv[2])
text = captioner(sys.argv[3]).text
print(time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def first_caption(artifacts: Path, target: str, image: Path, repeats: int) -> dict[str, float]:
    """Wall time in s and largest resident memory in MiB from import to the first caption."""
    seconds, memory = [], []
    for _ in range(repeats):
        result = subprocess.run(
            [sys.executable, "-c", _FIRST_CAPTION, str(artifacts), target, str(image)],
            cwd=REPOSITORY_ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        elapsed, resident_kib = result.stdout.split()
        seconds.append(float(elapsed))
        memory.append(int(resident_kib) / 1024)
    return {
        "first_caption_s": round(statistics.median(seconds), 3),
        "fastest_first_caption_s": round(min(seconds), 3),
        "peak_memory_mib": round(max(memory), 1),
    }


def overhead(artifacts: Path, target: str, mode: str, image: Path, repeats: int) -> dict[str, Any]:
    """Median caption time in ms, and the share of it spent outside the backend."""
    with Captioner.from_artifacts(artifacts, target=target, mode=mode) as captioner:
        sessions = [captioner.session(name) for name in captioner.manifest.components]
        for _ in range(3):
            captioner(image)
        totals, shares = [], []
        timings = Timings()
        for _ in range(repeats):
            before = sum(session.backend_seconds for session in sessions)
            begin = time.perf_counter()
            caption = captioner.batch([image], timings=timings)[0]
            total = time.perf_counter() - begin
            inside = sum(session.backend_seconds for session in sessions) - before
            totals.append(total)
            shares.append((total - inside) / total)
    return {
        "caption_ms": round(1000 * statistics.median(totals), 2),
        "tokens": len(caption.token_ids),
        "overhead_percent": round(100 * statistics.median(shares), 2),
        "stages_ms": {
            stage: round(timings.milliseconds_per_row(stage), 3) for stage in timings.seconds
        },
    }


def main(
    artifacts: Annotated[Path, typer.Option(help="pipeline or task folder")] = Path(
        "models/artifacts/reference"
    ),
    target: Annotated[str, typer.Option(help="target to measure")] = "openvino",
    mode: Annotated[str, typer.Option(help="OpenVINO arithmetic: exact or fast")] = "exact",
    repeats: Annotated[int, typer.Option(help="captions to take the median of")] = 20,
    starts: Annotated[int, typer.Option(help="fresh processes to take the median of")] = 5,
) -> None:
    """Measures and prints one JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "scene.jpg"
        draw(make_scene(0, "heldout")).resize((640, 480)).save(image)
        found: dict[str, Any] = {"artifacts": str(artifacts), "target": target, "mode": mode}
        if starts:
            found |= first_caption(artifacts.resolve(), target, image, starts)
        found |= overhead(artifacts.resolve(), target, mode, image, repeats)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
