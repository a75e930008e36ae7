"""Runs the notebook's design with the notebook's own copies: torch, numpy and torch again.

HuggingFace's ``generate`` is replaced by a bare greedy or beam loop that does less work than it,
so this design is measured at its best.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np

from benchmarks.notebook_design import built
from benchmarks.runners.base import Measured, Runner, RunnerOptions
from benchmarks.runners.inputs import Inputs
from benchmarks.schedule import Workload


class NotebookRunner(Runner):
    """Vision IR, question encoder IR (vqa), and a decoder IR whose past goes in and out."""

    def __init__(self, options: RunnerOptions) -> None:
        super().__init__(options)
        self._compiled: dict[str, Any] = {}

    def open(self) -> None:
        """Converts the checkpoint if needed, and compiles the IRs in the device's default."""
        if self.options.task == "itm":
            raise RuntimeError("the notebook has no image-text matching")
        manifest = json.loads(
            (self.options.artifacts / self.options.task / "manifest.json").read_text()
        )
        self._text = manifest["text"]
        size = manifest["dimensions"]
        self._layers, self._heads, self._head = size["layers"], size["heads"], size["head_size"]
        folder = built(self.options, manifest["checkpoint"]["weights_sha256"])
        self._bytes = sum(path.stat().st_size for path in folder.iterdir())
        import openvino
        import torch

        torch.set_num_threads(self.options.threads)
        self._torch = torch
        core = openvino.Core()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": str(self.options.threads),
        }
        for path in sorted(folder.glob("*.xml")):
            self._compiled[path.stem] = core.compile_model(path, "CPU", settings)
        self._inputs = Inputs.load(self.options.inputs)

    def run(self, workload: Workload) -> Measured:
        """One caption or answer per row."""
        torch, rows = self._torch, slice(0, workload.batch)
        pixels = torch.from_numpy(self._inputs.pixel_values[rows])
        ids = torch.from_numpy(self._inputs.input_ids[rows])
        begin = time.perf_counter()
        states = torch.from_numpy(self._compiled["vision"]([pixels.numpy()])[0])
        stages = {"vision": time.perf_counter() - begin}
        start = self._text["start_token_id"]
        if self.options.task == "vqa":
            begun = time.perf_counter()
            mask = torch.ones_like(ids)
            feeds = [ids.numpy(), mask.numpy(), states.numpy()]
            states = torch.from_numpy(self._compiled["text_encoder"](feeds)[0])
            stages["text_encoder"] = time.perf_counter() - begun
            prompts = torch.full((workload.batch, 1), start)
        else:
            prompts = ids[:, :-1].clone()
            prompts[:, 0] = start
        search = _Search(self, workload, stages)
        tokens = search.run(prompts, states)
        return Measured(time.perf_counter() - begin, stages, search.steps, tokens.tolist())

    def facts(self) -> dict[str, Any]:
        """Bytes of the IRs."""
        return {"precision": "f16", "disk_bytes": self._bytes}

    def decode(self, ids: Any, length: int, states: Any, past: list[Any]) -> tuple[Any, list[Any]]:
        """One call of the decoder: logits of the last position, and the whole new past."""
        torch = self._torch
        if not past:
            empty = torch.zeros(len(ids), self._heads, 0, self._head)
            past = [empty] * (2 * self._layers)
        mask = torch.ones(len(ids), length, dtype=torch.long)
        feeds = [item.numpy() for item in (ids, mask, states, *past)]
        outputs = list(self._compiled["decoder"](feeds).values())
        return torch.from_numpy(outputs[0])[:, -1], [torch.from_numpy(item) for item in outputs[1:]]

    @property
    def torch(self) -> Any:
        """The torch module."""
        return self._torch

    @property
    def end_token_id(self) -> int:
        """Forbidden until the last token, as in every variant."""
        return int(self._text["end_token_id"])


class _Search:
    """Greedy and beam search of a fixed number of tokens, as HuggingFace scores them."""

    def __init__(
        self, runner: NotebookRunner, workload: Workload, stages: dict[str, float]
    ) -> None:
        self._runner, self._workload, self._stages = runner, workload, stages
        self.steps: list[float] = []

    def run(self, ids: Any, states: Any) -> Any:
        torch, beams = self._runner.torch, self._workload.beams
        rows = len(ids)
        # As HuggingFace expands inputs: each beam has its own copy of the encoder's states.
        ids = ids.repeat_interleave(beams, 0)
        states = states.repeat_interleave(beams, 0)
        scores = torch.full((rows, beams), -1e9)
        scores[:, 0] = 0.0
        past: list[Any] = []
        call = ids
        for turn in range(self._workload.new_tokens):
            begin = time.perf_counter()
            logits, past = self._runner.decode(call, ids.shape[1], states, past)
            elapsed = time.perf_counter() - begin
            if turn == 0:
                self._stages["first_pass"] = elapsed
            else:
                self.steps.append(elapsed)
            # HuggingFace forbids the end up to and including the last of ``min_new_tokens``.
            logits[:, self._runner.end_token_id] = -np.inf
            if beams == 1:
                call = logits.argmax(-1, keepdim=True)
            else:
                total = scores.view(-1, 1) + logits.log_softmax(-1)
                scores, flat = total.view(rows, -1).topk(beams, dim=-1)
                parents = (torch.arange(rows)[:, None] * beams + flat // logits.shape[-1]).view(-1)
                call = (flat % logits.shape[-1]).view(-1, 1)
                ids = ids[parents]
                past = [item.index_select(0, parents) for item in past]
            ids = torch.cat([ids, call], dim=1)
        return ids[::beams]
