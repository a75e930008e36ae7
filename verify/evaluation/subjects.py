"""Who answers: the checkpoint, or one target in one precision and mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from configs.schema import EvaluateConfig, PipelineConfig
from pipeline.build import tool_versions
from pipeline.command import Selection
from pipeline.manifest import key_of, manifest_data
from pipeline.sources import source_digest
from verify.answers.cases import new_tokens
from verify.artifacts import ONNX, TargetArtifacts, TaskArtifacts
from verify.opened import simulator_version
from verify.plan import processor, simulated_by_default

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Subject:
    """One answerer of one task; small enough to send to another process."""

    pipeline: PipelineConfig
    task: TaskArtifacts
    #: None: the checkpoint itself
    artifacts: TargetArtifacts | None = None
    #: OpenVINO's arithmetic, else ``""``
    mode: str = ""
    #: answers to choose from, and how many of them to score whole; none: generate
    answers: tuple[str, ...] = ()
    candidates: int = 0

    @property
    def name(self) -> str:
        """How messages and tables call it."""
        if self.artifacts is None:
            return CHECKPOINT
        parts = (self.artifacts.name, self.artifacts.precision, self.mode)
        return " ".join(part for part in parts if part)

    @property
    def simulated(self) -> bool:
        """Whether it runs on a chip's simulator."""
        return self.artifacts is not None and self.artifacts.simulated

    @property
    def new_tokens(self) -> int:
        """Most tokens generated per item, the same for every subject."""
        manifest = self.task.manifest
        return new_tokens(
            self.task.task,
            manifest.shapes.past_tokens,
            manifest.shapes.text_tokens,
            manifest.text.maximum_positions,
        )

    @property
    def key(self) -> str:
        """Digest of everything that decides its answers, besides the items."""
        manifest = self.task.manifest
        decides: dict[str, Any] = {
            "new_tokens": self.new_tokens,
            "task_manifest": manifest_data(manifest),
        }
        if self.answers:
            decides |= {"answers": self.answers, "candidates": self.candidates}
        if self.artifacts is None:
            decides["sources"] = _sources("runtime", "verify.opened")
            decides["tools"] = tool_versions("transformers", "torch", "pillow", "tokenizers")
            return key_of(decides)
        decides |= {
            "artifacts": self.artifacts.identities,
            "mode": self.mode,
            # Simulators have a version of their own.
            "sources": _sources(
                "runtime.sessions.simulated_session", "runtime.simulator", "verify.checkpoint"
            ),
            "tools": tool_versions("numpy", "pillow", "tokenizers"),
        }
        if self.simulated:
            decides["simulator"] = simulator_version()
        elif self.artifacts.name == ONNX:
            decides["backend"] = tool_versions("onnxruntime")
        else:
            decides["backend"] = tool_versions("openvino")
            # The device's default arithmetic depends on the processor.
            decides["processor"] = processor()
        return key_of(decides)


def _sources(*unused: str) -> str:
    # Neither which subjects there are nor what is verified decides an answer.
    return source_digest("verify.evaluation.answering", without=("verify.plan", *unused))


def subjects(
    selection: Selection,
    config: EvaluateConfig,
    task: TaskArtifacts,
    *,
    full: bool,
    modes: Sequence[str] | None = None,
) -> tuple[list[Subject], list[str]]:
    """The targets to evaluate, and names of those whose simulation takes too long unasked."""
    found, left_out = [], []
    for artifacts in task.targets:
        if artifacts.simulated:
            subject = Subject(selection.pipeline, task, artifacts)
            if full or simulated_by_default(selection, artifacts):
                found.append(subject)
            else:
                left_out.append(f"{task.task} {subject.name}")
            continue
        for mode in modes or config.modes:
            found.append(Subject(selection.pipeline, task, artifacts, mode))
    return found, left_out
