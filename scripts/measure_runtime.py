"""Measures the runtime: a whole process to its first caption, and its own share of a caption.

    python -m scripts.measure_runtime --artifacts models/artifacts/reference [--target openvino]

Everything outside the backend's own calls counts as overhead: decoding and resizing the image,
tokenisation, the cache, the search. Printed as JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from configs.layout import REPOSITORY_ROOT
from pipeline.scenes import draw, make_scene
from runtime import Captioner
from runtime.decoding.batching import Timings

_PHASES = """
import sys, time
started = float(sys.argv[1])
laps = [("python", time.time() - started)]
def lap(name):
    laps.append((name, time.time() - started - sum(seconds for _, seconds in laps)))
sys.modules["openvino.tools.ovc"] = None
import runtime.commands
lap("imports")
from runtime import Captioner
captioner = Captioner.from_artifacts(sys.argv[2], target=sys.argv[3], mode=sys.argv[4])
lap("manifests and tokenizer")
captioner.artifacts.load()
lap("backend and nets")
captioner(sys.argv[5])
lap("first caption")
captioner(sys.argv[5])
lap("second caption")
for _ in range(8):
    captioner(sys.argv[5])
import json
resident = [line for line in open("/proc/self/status") if line.startswith("VmRSS")][0].split()[1]
print(json.dumps({"phases_s": {n: round(s, 3) for n, s in laps}, "steady_memory_mib":
    round(int(resident) / 1024, 1)}))
"""


def first_caption(
    artifacts: Path, target: str, mode: str, image: Path, repeats: int
) -> dict[str, Any]:
    """From process start to first caption: the command's wall time in s, its phases, memory."""
    options = ["--artifacts", str(artifacts), "--target", target, "--mode", mode]
    command = [sys.executable, "-m", "runtime", "caption", str(image), *options]
    phases = [sys.executable, "-c", _PHASES]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "BLIP_EDGE_CACHE": cache}
        seconds = [_seconds(command, environment) for _ in range(repeats + 1)]
        details = []
        for _ in range(max(1, repeats // 2)):
            arguments = [str(artifacts), target, mode, str(image)]
            output = _run([*phases, str(time.time()), *arguments], environment)
            details.append(json.loads(output))
    cold, warm = seconds[0], seconds[1:]
    best = min(details, key=lambda item: sum(item["phases_s"].values()))
    return {
        "cold_start_to_first_caption_s": round(cold, 3),
        "warm_start_to_first_caption_s": round(statistics.median(warm), 3),
        "fastest_warm_start_s": round(min(warm), 3),
        **best,
    }


def _seconds(command: list[str], environment: dict[str, str]) -> float:
    begin = time.perf_counter()
    _run(command, environment)
    return time.perf_counter() - begin


def _run(command: list[str], environment: dict[str, str]) -> str:
    result = subprocess.run(
        command, cwd=REPOSITORY_ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return result.stdout


def overhead(artifacts: Path, target: str, mode: str, image: Path, repeats: int) -> dict[str, Any]:
    """Median caption time in ms, and the share of it spent outside the backend."""
    with Captioner.from_artifacts(artifacts, target=target, mode=mode) as captioner:
        # One session may compute several components.
        sessions = {captioner.session(name) for name in captioner.manifest.components}
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
            found |= first_caption(artifacts.resolve(), target, mode, image, starts)
        found |= overhead(artifacts.resolve(), target, mode, image, repeats)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
