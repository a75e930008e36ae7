"""Measures many images at once: batches, a folder against pure inference, and a long run.

    python -m scripts.measure_throughput --artifacts models/artifacts/reference [--mode fast]

Everything is interleaved: a round measures each variant once, and ratios are taken within a round,
so that a machine whose speed drifts does not decide the result. Printed as JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.scenes import draw, make_scene
from runtime import Captioner

_PHOTO = (640, 480)
#: Images before a long run counts: caches of shapes fill, allocators settle.
_SETTLE_IMAGES = 500


def photos(folder: Path, count: int) -> list[Path]:
    """JPEG files of a common size, a few different ones under many names."""
    made = []
    for index in range(min(count, 32)):
        path = folder / f"{index:05}.jpg"
        draw(make_scene(index, "heldout")).resize(_PHOTO).save(path, quality=90)
        made.append(path)
    for index in range(len(made), count):
        path = folder / f"{index:05}.jpg"
        path.symlink_to(made[index % len(made)])
        made.append(path)
    return made


def resident_mib() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def pure(
    captioner: Captioner, prepared: list[Any], batch: int, generation: dict[str, Any]
) -> float:
    """Images per second with every image prepared before."""
    begin = time.perf_counter()
    for start in range(0, len(prepared), batch):
        captioner.batch(prepared[start : start + batch], **generation)
    return len(prepared) / (time.perf_counter() - begin)


def streamed(captioner: Captioner, paths: list[Path], generation: dict[str, Any]) -> float:
    """Images per second from files to captions."""
    begin = time.perf_counter()
    count = sum(1 for _ in captioner.stream(paths, **generation))
    return count / (time.perf_counter() - begin)


def rates(
    options: dict[str, Any], paths: list[Path], batches: list[int], rounds: int, tokens: int
) -> dict[str, Any]:
    """Medians of images per second, and of ratios within a round."""
    generation = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    captioners = {
        batch: Captioner.from_artifacts(**options, batch=batch) for batch in sorted(set(batches))
    }
    found: dict[str, list[float]] = {}
    for round_number in range(rounds + 1):
        for batch, captioner in captioners.items():
            prepared = [captioner.preprocessor.prepare(path) for path in paths]
            pure_rate = pure(captioner, prepared, batch, generation)
            folder_rate = streamed(captioner, paths, generation)
            if round_number == 0:
                # The first round compiles for every shape.
                continue
            found.setdefault(f"batch_{batch}_images_per_s", []).append(pure_rate)
            found.setdefault(f"batch_{batch}_folder_share", []).append(folder_rate / pure_rate)
            if batch != min(captioners):
                single = found[f"batch_{min(captioners)}_images_per_s"][-1]
                found.setdefault(f"batch_{batch}_speedup", []).append(pure_rate / single)
    for captioner in captioners.values():
        captioner.close()
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


def long_run(options: dict[str, Any], paths: list[Path], images: int) -> dict[str, Any]:
    """Cost per image and memory over a long run, by tenths."""
    part = max(1, images // 10)
    milliseconds, memory = [], []
    with Captioner.from_artifacts(**options) as captioner:
        stream = captioner.stream(itertools.islice(itertools.cycle(paths), images + _SETTLE_IMAGES))
        for _ in itertools.islice(stream, _SETTLE_IMAGES):
            pass
        start = resident_mib()
        begin = time.perf_counter()
        for count, _ in enumerate(stream, start=1):
            if count % part == 0:
                now = time.perf_counter()
                milliseconds.append(round(1000 * (now - begin) / part, 3))
                memory.append(round(resident_mib(), 1))
                begin = now
    return {
        "images": images,
        "ms_per_image": milliseconds,
        "last_over_first": round(milliseconds[-1] / milliseconds[0], 3),
        "resident_mib_after_settling": round(start, 1),
        "resident_mib": memory,
        "growth_percent": round(100 * (memory[-1] / start - 1), 2),
    }


def main(
    artifacts: Annotated[Path, typer.Option(help="pipeline or task folder")] = Path(
        "models/artifacts/reference"
    ),
    target: Annotated[str, typer.Option(help="target to measure")] = "openvino",
    precision: Annotated[str, typer.Option(help="artifact set; empty: what is there")] = "",
    mode: Annotated[str, typer.Option(help="OpenVINO arithmetic: exact or fast")] = "fast",
    images: Annotated[int, typer.Option(help="images per variant and round")] = 32,
    batches: Annotated[str, typer.Option(help="batch sizes")] = "1,4,16",
    rounds: Annotated[int, typer.Option(help="rounds; 0 leaves rates out")] = 3,
    tokens: Annotated[int, typer.Option(help="new tokens per caption")] = 16,
    long: Annotated[int, typer.Option(help="images of a long run; 0 leaves it out")] = 0,
) -> None:
    """Measures and prints one JSON object."""
    options = {
        "folder": artifacts,
        "target": target,
        "precision": precision or None,
        "mode": mode,
    }
    found: dict[str, Any] = {"artifacts": str(artifacts), "target": target, "mode": mode}
    with tempfile.TemporaryDirectory() as folder:
        paths = photos(Path(folder), images)
        if rounds:
            sizes = [int(size) for size in batches.split(",")]
            found |= rates(options, paths, sizes, rounds, tokens)
        if long:
            found["long_run"] = long_run(options, paths, long)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
