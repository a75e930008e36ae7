"""The checkpoint in torch through HuggingFace's own ``generate``: eager or compiled."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.runners.base import Measured, Runner, RunnerOptions
from benchmarks.runners.inputs import Inputs
from benchmarks.schedule import Workload
from configs.layout import checkpoint_folder


class TorchRunner(Runner):
    """HuggingFace's model in float32 or bfloat16, optionally through ``torch.compile``."""

    def __init__(self, options: RunnerOptions) -> None:
        super().__init__(options)
        self._calls: list[tuple[str, float]] = []

    def open(self) -> None:
        """Loads the checkpoint and puts clocks around its parts."""
        compiled = self.options.variant == "torch_compile"
        if compiled:
            _require_compiler()
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.options.work / "torch-inductor")
        self._torch, self._model = load_checkpoint(self.options)
        if self.options.variant == "torch_bf16":
            self._model = self._model.to(self._torch.bfloat16)
        self._inputs = Inputs.load(self.options.inputs)
        model = self._model
        parts = {"vision": model.vision_model}
        if self.options.task == "caption":
            parts["decoder"] = model.text_decoder
        elif self.options.task == "vqa":
            parts |= {"text_encoder": model.text_encoder, "decoder": model.text_decoder}
        else:
            parts["text_encoder"] = model.text_encoder
        for stage, part in parts.items():
            forward = part.forward
            if compiled:
                # Caches grow by a token per call: without dynamic shapes every length compiles
                # anew.
                forward = functools.wraps(forward)(
                    self._torch.compile(forward, dynamic=stage != "vision")
                )
            part.forward = self._clocked(stage, forward)

    def run(self, workload: Workload) -> Measured:
        """One ``generate`` (caption, vqa), or both matching scores of each pair (itm)."""
        torch, rows = self._torch, slice(0, workload.batch)
        dtype = next(self._model.parameters()).dtype
        pixels = torch.from_numpy(self._inputs.pixel_values[rows]).to(dtype)
        ids = torch.from_numpy(self._inputs.input_ids[rows].copy())
        self._calls = []
        begin = time.perf_counter()
        tokens: list[list[int]] = []
        with torch.inference_mode():
            if self.options.task == "itm":
                self._scores(pixels, ids)
            else:
                tokens = self._model.generate(
                    pixel_values=pixels,
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=workload.new_tokens,
                    min_new_tokens=workload.new_tokens,
                    num_beams=workload.beams,
                    do_sample=False,
                ).tolist()
        seconds = time.perf_counter() - begin
        return Measured(seconds, *self._split(), tokens=tokens)

    def _scores(self, pixels: Any, ids: Any) -> None:
        """What ``Matcher`` computes: the matching head and the cosine, one vision pass for both."""
        torch, model = self._torch, self._model
        mask = torch.ones_like(ids)
        embeds = model.vision_model(pixel_values=pixels).last_hidden_state
        attended = torch.ones(embeds.shape[:-1], dtype=torch.long)
        hidden = model.text_encoder(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=embeds,
            encoder_attention_mask=attended,
        ).last_hidden_state
        model.itm_head(hidden[:, 0]).softmax(-1)
        alone = model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        normalize = torch.nn.functional.normalize
        image = normalize(model.vision_proj(embeds[:, 0]), dim=-1)
        text = normalize(model.text_proj(alone[:, 0]), dim=-1)
        (image * text).sum(-1)

    def _clocked(self, stage: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def clocked(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            result = forward(*arguments, **named)
            self._calls.append((stage, time.perf_counter() - begin))
            return result

        return clocked

    def _split(self) -> tuple[dict[str, float], list[float]]:
        decoder = [seconds for stage, seconds in self._calls if stage == "decoder"]
        stages: dict[str, float] = {}
        for stage, seconds in self._calls:
            if stage != "decoder":
                stages[stage] = stages.get(stage, 0.0) + seconds
        if decoder:
            stages["first_pass"] = decoder[0]
        return stages, decoder[1:]


def load_checkpoint(options: RunnerOptions) -> tuple[Any, Any]:
    """torch, limited to the bench's threads, and the checkpoint's model in float32."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch
    from transformers import (
        BlipForConditionalGeneration,
        BlipForImageTextRetrieval,
        BlipForQuestionAnswering,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    kind = {
        "caption": BlipForConditionalGeneration,
        "vqa": BlipForQuestionAnswering,
        "itm": BlipForImageTextRetrieval,
    }[options.task]
    folder = checkpoint_folder(options.checkpoint)
    source = str(folder) if folder is not None else options.checkpoint
    named = {"revision": options.revision} if options.revision and folder is None else {}
    return torch, kind.from_pretrained(source, dtype=torch.float32, **named).eval()


def _require_compiler() -> None:
    """``torch.compile`` writes C++; without a compiler it fails deep inside its first call.

    Raises:
        RuntimeError: no C++ compiler here.
    """
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([named] if named else ["g++", "clang++"])):
        raise RuntimeError("torch.compile needs a C++ compiler; install g++")


def checkpoint_bytes(options: RunnerOptions) -> int | None:
    """Size of a local checkpoint's weights, or None for one from a hub."""
    folder = checkpoint_folder(options.checkpoint)
    if folder is None:
        return None
    return sum(path.stat().st_size for path in Path(folder).glob("model*.safetensors"))
