"""Our artifacts through the runtime's own task classes: the ONNX and every OpenVINO mode."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.variants.base import MODES, NEW_TOKENS, Call, Variant, VariantOptions, Workload
from runtime.decoding.batching import Timings
from runtime.preprocessing.images import PreparedImage
from runtime.tasks.registry import TASKS


def opened_as(variant: str) -> dict[str, str]:
    """Arguments of ``from_artifacts``, and options of the command line."""
    if variant == "onnxruntime":
        return {"target": "onnx"}
    precision, mode = MODES[variant]
    return {"target": "openvino", "precision": precision, "mode": mode}


class ArtifactsVariant(Variant):
    """One target, precision and mode, opened as users do."""

    def __init__(self, options: VariantOptions) -> None:
        named: dict[str, Any] = dict(opened_as(options.variant))
        if named["target"] == "openvino":
            named["cache_folder"] = options.work / "compiled" / options.variant
        self._name, self._inputs = options.task, options.inputs
        self._task: Any = TASKS[options.task].from_artifacts(
            options.artifacts, threads=options.threads, **named
        )
        self._task.artifacts.load()
        sessions = [self._task.session(name) for name in self._task.manifest.components]
        # One model may compute several components.
        manifests = {session.manifest.path: session.manifest for session in sessions}.values()
        files = [item.folder / name for item in manifests for name in item.files]
        self.disk_bytes = sum(path.stat().st_size for path in files)

    def run(self, workload: Workload) -> Call:
        """One call on preprocessed images, as the other variants get them."""
        rows = slice(0, workload.batch)
        pixels, ids = self._inputs.pixel_values[rows], self._inputs.input_ids[rows]
        timings = Timings()
        tokens: list[list[int]] = []
        begin = time.perf_counter()
        if self._name == "itm":
            texts = [self._task.tokenizer.decode(row[1:-1]) for row in ids]
            self._task.batch([PreparedImage(row) for row in pixels], texts, timings=timings)
        else:
            name = "generate_caption" if self._name == "caption" else "generate_answer"
            tokens = getattr(self._task, name)(
                pixels,
                ids,
                timings=timings,
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                num_beams=workload.beams,
            ).tolist()
        seconds = time.perf_counter() - begin
        stages = {name: value for name, value in timings.seconds.items() if name != "step"}
        steps = timings.calls.get("step")
        return Call(seconds, stages, timings.seconds["step"] / steps if steps else None, tokens)
