"""Our artifacts through the runtime's own task classes: the ONNX and every OpenVINO mode."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from benchmarks.runners.base import Measured, Runner, RunnerOptions
from benchmarks.runners.inputs import Inputs
from benchmarks.schedule import Workload
from runtime.decoding.batching import Timings
from runtime.tasks.registry import TASKS

#: Variant -> how ``from_artifacts`` opens it.
OPENED: dict[str, dict[str, str]] = {
    "onnxruntime": {"target": "onnx"},
    "exact": {"target": "openvino", "precision": "f16", "mode": "exact"},
    "fast": {"target": "openvino", "precision": "f16", "mode": "fast"},
    "int8": {"target": "openvino", "precision": "int8", "mode": "fast"},
    "int4": {"target": "openvino", "precision": "int4", "mode": "fast"},
}


class Clock(Timings):
    """Timings that also keep each single step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[float] = []

    @contextmanager
    def measure(self, stage: str, rows: int = 1) -> Iterator[None]:
        """See ``Timings``."""
        before = self.seconds.get(stage, 0.0)
        with super().measure(stage, rows):
            yield
        if stage == "step":
            self.steps.append(self.seconds[stage] - before)


class ArtifactsRunner(Runner):
    """One target, precision and mode."""

    def __init__(self, options: RunnerOptions) -> None:
        super().__init__(options)
        self._task: Any = None

    def open(self) -> None:
        """Opens the artifacts as users do, with a folder of compiled models."""
        named: dict[str, Any] = dict(OPENED[self.options.variant])
        if named["target"] == "openvino":
            named["cache_folder"] = self.options.work / "compiled" / self.options.variant
        self._task = TASKS[self.options.task].from_artifacts(
            self.options.artifacts, threads=self.options.threads, **named
        )
        self._task.artifacts.load()
        self._inputs = Inputs.load(self.options.inputs)

    def run(self, workload: Workload) -> Measured:
        """One call on preprocessed images, as the other variants get them."""
        rows = slice(0, workload.batch)
        pixels, ids = self._inputs.pixel_values[rows], self._inputs.input_ids[rows]
        clock = Clock()
        tokens: list[list[int]] = []
        if self.options.task == "itm":
            return self._match(workload, clock)
        call = (
            self._task.generate_caption
            if self.options.task == "caption"
            else self._task.generate_answer
        )
        begin = time.perf_counter()
        found = call(
            pixels,
            ids,
            timings=clock,
            max_new_tokens=workload.new_tokens,
            min_new_tokens=workload.new_tokens,
            num_beams=workload.beams,
        )
        seconds = time.perf_counter() - begin
        tokens = found.tolist()
        return Measured(seconds, _stages(clock), clock.steps, tokens)

    def facts(self) -> dict[str, Any]:
        """Bytes of the artifacts' files."""
        sessions = [self._task.session(name) for name in self._task.manifest.components]
        # One model may compute several components.
        manifests = list({s.manifest.path: s.manifest for s in sessions}.values())
        return {
            "precision": manifests[0].precision,
            "disk_bytes": sum(
                (item.folder / name).stat().st_size for item in manifests for name in item.files
            ),
        }

    def close(self) -> None:
        """Closes the sessions."""
        if self._task is not None:
            self._task.close()

    def _match(self, workload: Workload, clock: Clock) -> Measured:
        # The matcher has no entry for preprocessed images: images of the model's own size need
        # no resizing, and the time of the rest of the preprocessing is taken off.
        size = self._task.manifest.image
        images = [
            Image.new("RGB", (size.width, size.height), (40 + 10 * row, 90, 160))
            for row in range(workload.batch)
        ]
        texts = [self._task.tokenizer.decode(row[1:-1]) for row in self._inputs.input_ids]
        begin = time.perf_counter()
        self._task.batch(images, texts[: workload.batch], timings=clock)
        seconds = time.perf_counter() - begin - clock.seconds.get("preprocess", 0.0)
        return Measured(seconds, _stages(clock))


def _stages(clock: Clock) -> dict[str, float]:
    return {
        stage: seconds
        for stage, seconds in clock.seconds.items()
        if stage not in ("preprocess", "step")
    }
