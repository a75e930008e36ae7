"""The public OpenVINO notebook's design of BLIP, run with the notebook's own copies between torch
and numpy.

HuggingFace's ``generate`` is replaced by a bare greedy or beam loop that does less work than it,
so this design is measured at its best.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino
import torch

from benchmarks.variants.base import NEW_TOKENS, Call, Variant, VariantOptions, Workload
from benchmarks.variants.notebook_conversion import converted
from runtime.files.manifests import read_task_manifest


class NotebookVariant(Variant):
    """Vision IR, question encoder IR (vqa), and a decoder IR whose past goes in and out."""

    def __init__(self, options: VariantOptions) -> None:
        if options.task == "itm":
            raise ValueError("the notebook has no image-text matching")
        torch.set_num_threads(options.threads)
        manifest = read_task_manifest(options.artifacts / "manifest.json")
        self._task, self._inputs = options.task, options.inputs
        self._text, self._size = manifest.text, manifest.dimensions
        folder = converted(options)
        self.disk_bytes = sum(path.stat().st_size for path in folder.iterdir())
        core = openvino.Core()
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(options.threads)}
        self._compiled = {
            path.stem: core.compile_model(path, "CPU", settings) for path in folder.glob("*.xml")
        }

    def run(self, workload: Workload) -> Call:
        """One caption or answer per row."""
        rows = slice(0, workload.batch)
        ids = torch.from_numpy(self._inputs.input_ids[rows])
        begin = time.perf_counter()
        states = self._compiled["vision"]([self._inputs.pixel_values[rows]])[0]
        stages = {"vision": time.perf_counter() - begin}
        if self._task == "vqa":
            begun = time.perf_counter()
            mask = torch.ones_like(ids)
            states = self._compiled["text_encoder"]([ids.numpy(), mask.numpy(), states])[0]
            stages["text_encoder"] = time.perf_counter() - begun
            ids = ids[:, :1].clone()
        else:
            ids = ids[:, :-1].clone()
        ids[:, 0] = self._text.start_token_id
        tokens, passes = self._generate(ids, torch.from_numpy(states), workload.beams)
        seconds = time.perf_counter() - begin
        stages["first_pass"] = passes[0]
        return Call(seconds, stages, sum(passes[1:]) / (NEW_TOKENS - 1), tokens.tolist())

    def _generate(self, ids: Any, states: Any, beams: int) -> tuple[Any, list[float]]:
        """Greedy or beam search as HuggingFace scores it: ids, and the seconds of each pass."""
        rows, passes = len(ids), []
        # As HuggingFace expands inputs: each beam has its own copy of the encoder's states.
        ids, states = ids.repeat_interleave(beams, 0), states.repeat_interleave(beams, 0)
        scores = torch.full((rows, beams), -1e9)
        scores[:, 0] = 0.0
        size = self._size
        past = [torch.zeros(len(ids), size.heads, 0, size.head_size)] * (2 * size.layers)
        call = ids
        for _ in range(NEW_TOKENS):
            begin = time.perf_counter()
            mask = torch.ones(len(ids), ids.shape[1], dtype=torch.long)
            feeds = [item.numpy() for item in (call, mask, states, *past)]
            outputs = list(self._compiled["decoder"](feeds).values())
            logits, *past = [torch.from_numpy(item) for item in outputs]
            logits = logits[:, -1]
            passes.append(time.perf_counter() - begin)
            # HuggingFace forbids the end up to and including the last of ``min_new_tokens``.
            logits[:, self._text.end_token_id] = -np.inf
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
        return ids[::beams], passes
