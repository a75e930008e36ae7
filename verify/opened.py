"""Opens what checks need, once: graphs, sessions, samples, the checkpoint's answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from configs.layout import REPOSITORY_ROOT, Layout
from configs.schema import Component, PipelineConfig, Precision, Task
from pipeline.manifest import key_of
from pipeline.sources import source_digest
from runtime.files.manifests import ComponentManifest, component_manifests, read_task_manifest
from runtime.sessions.session import Session, SessionOptions
from runtime.tasks.artifacts import SIMULATOR, Artifacts, open_session
from runtime.tasks.registry import TASKS
from runtime.tasks.task import Task as RuntimeTask
from verify.answers.cases import Case, generation_cases, new_tokens
from verify.artifacts import ONNX, TargetArtifacts, TaskArtifacts, runtime_failures
from verify.checkpoint.answers import Answer, reference_answers
from verify.checkpoint.checkpoint import Checkpoint
from verify.parity.inputs import Graphs, Sample, SampleSource
from verify.parity.padding import padded_nets, padded_pairs
from verify.simulator_answers import RememberedSession, artifact_key, forget_others

#: Cases that one call of a task gets: enough to batch, few enough to keep memory flat.
CASES_AT_ONCE = 40

REFERENCE_ANSWERS = "reference-answers.json"


@dataclass(frozen=True)
class TargetKey:
    """One way of running one task's artifacts: target, precision and, for OpenVINO, the mode."""

    target: str
    precision: Precision
    mode: str = ""


class TaskBench:
    """Everything that the checks of one task share; opened on demand, closed by ``close``."""

    def __init__(
        self, artifacts: TaskArtifacts, pipeline: PipelineConfig, *, threads: int | None = None
    ) -> None:
        """``threads`` bounds OpenVINO's processor threads per call; None leaves it the choice."""
        self.artifacts = artifacts
        self.pipeline = pipeline
        self._threads = threads
        self._layout = Layout(pipeline)
        self._graphs: Graphs | None = None
        self._samples: dict[str, SampleSource] = {}
        self._opened: dict[TargetKey, dict[Component, Session]] = {}
        self._checkpoint: Checkpoint | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint in HuggingFace's own classes."""
        if self._checkpoint is None:
            revision = self.artifacts.manifest.checkpoint.revision
            self._checkpoint = Checkpoint(self._layout, self.task, revision)
        return self._checkpoint

    def forget_checkpoint(self) -> None:
        """Frees the checkpoint's memory; it is loaded again when it is needed again."""
        self._checkpoint = None

    @property
    def task(self) -> Task:
        """The task's name."""
        return self.artifacts.task

    @property
    def graphs(self) -> Graphs:
        """The exported graphs under onnxruntime."""
        if self._graphs is None:
            with runtime_failures():
                manifest = read_task_manifest(self._layout.task_manifest(self.task))
                self._graphs = Graphs(manifest, self.artifacts.onnx.components)
        return self._graphs

    def samples(self, artifacts: TargetArtifacts, component: Component) -> list[Sample]:
        """Samples of one component for a target: of its fixed lengths, or without padding."""
        if not artifacts.fixed_shapes:
            return self._source(ONNX, self.artifacts.onnx.components, few=False).samples(component)
        return self._source(artifacts.name, artifacts.components, few=True).samples(component)

    def padded_pairs(self, component: Component) -> list[tuple[Sample, Sample]]:
        """(bare, padded) samples of the exported graph, padded to the lengths of chips."""
        nets = self.artifacts.onnx.components
        bare = self._source(ONNX, nets, few=False)
        padded = self._source("padded", padded_nets(self.graphs.manifest, nets), few=False)
        with runtime_failures():
            return padded_pairs(
                self.graphs.sessions[component], bare.samples(component), padded.samples(component)
            )

    def _source(
        self, name: str, nets: Mapping[Component, ComponentManifest], *, few: bool
    ) -> SampleSource:
        if name not in self._samples:
            verify = self.pipeline.verify
            self._samples[name] = SampleSource(
                self.graphs,
                nets,
                scenes=verify.component_scenes,
                seed=verify.seed,
                past_tokens=self.artifacts.manifest.shapes.past_tokens,
                few=few,
            )
        return self._samples[name]

    def session(self, artifacts: TargetArtifacts, component: Component, mode: str = "") -> Session:
        """The session that users get for this artifact; simulated answers are kept on the disk."""
        return self._sessions(artifacts, mode)[component]

    def runtime_task(self, artifacts: TargetArtifacts, mode: str = "") -> RuntimeTask[Any]:
        """The runtime's own task class on these artifacts."""
        sessions = self._sessions(artifacts, mode)
        opened = Artifacts(
            self.graphs.manifest,
            {str(name): session for name, session in sessions.items()},
            artifacts.name,
            artifacts.precision,
        )
        with runtime_failures():
            return TASKS[self.task](opened)

    def cases(self, count: int) -> list[Case]:
        """The first cases of this task."""
        return generation_cases(self.task, count, self.pipeline.verify.seed)

    def new_tokens(self) -> int:
        """Most tokens generated per case."""
        manifest = self.artifacts.manifest
        return new_tokens(
            self.task,
            manifest.shapes.past_tokens,
            manifest.shapes.text_tokens,
            manifest.text.maximum_positions,
        )

    def expected(self, count: int) -> list[Answer]:
        """The checkpoint's answers to the first cases; computed for the largest gate once."""
        largest = max(gate.scenes for gate in self.pipeline.verify.tokens.values())
        answers = reference_answers(
            self._layout.task(self.task) / REFERENCE_ANSWERS,
            self.artifacts.manifest,
            self.pipeline.tasks[self.task].question_start,
            self.cases(largest),
            self.new_tokens(),
            lambda: self.checkpoint,
        )
        return answers[:count]

    def release(self, artifacts: TargetArtifacts) -> None:
        """Closes a target's sessions: simulators are processes, and some tolerate no other one."""
        for key in [k for k in self._opened if k.target == artifacts.name]:
            for session in self._opened.pop(key).values():
                session.close()
        if artifacts.name != ONNX:
            self._samples.pop(artifacts.name, None)

    def close(self) -> None:
        """Closes everything."""
        for artifacts in (self.artifacts.onnx, *self.artifacts.targets):
            self.release(artifacts)
        self._samples = {}
        self._checkpoint = None
        if self._graphs is not None:
            self._graphs.close()
            self._graphs = None

    def _sessions(self, artifacts: TargetArtifacts, mode: str) -> dict[Component, Session]:
        if artifacts.target is None:
            return dict(self.graphs.sessions)
        key = TargetKey(artifacts.name, artifacts.precision, mode)
        if key not in self._opened:
            # Digests were checked when the artifacts were found.
            options = SessionOptions(
                device=SIMULATOR if artifacts.simulated else None,
                mode=mode or "exact",
                threads=self._threads,
                verify_digest=False,
            )
            with runtime_failures():
                # One artifact may compute several components.
                opened = {
                    manifest.path: open_session(manifest, options)
                    for manifest in artifacts.components.values()
                }
                sessions = {
                    name: opened[manifest.path] for name, manifest in artifacts.components.items()
                }
            if artifacts.simulated:
                folder, version = simulated_folder(self._layout), simulator_version()
                sessions = {
                    name: RememberedSession(session, folder, version)
                    for name, session in sessions.items()
                }
            self._opened[key] = sessions
        return self._opened[key]


def simulated_folder(layout: Layout) -> Path:
    """Where simulated answers are kept; safe to delete."""
    return layout.work / "simulated"


@cache
def simulator_version() -> str:
    """What decides a simulated answer besides artifact and inputs: simulator and driver."""
    # Every answer kept is of one call, whatever decodes with it.
    sources = source_digest(
        "runtime.sessions.simulated_session", "runtime.simulator", without=["runtime.decoding"]
    )
    environment = REPOSITORY_ROOT / ".venv-tpu"
    releases = sorted(
        p.name for p in environment.glob("lib/python3*/site-packages/tpu_mlir-*.dist-info")
    )
    return key_of({"sources": sources, "releases": releases})


def forget_stale_answers(pipeline: PipelineConfig) -> None:
    """Deletes stored simulator answers of artifacts that were rebuilt or removed since."""
    layout = Layout(pipeline)
    with runtime_failures():
        kept = {
            artifact_key(manifest, simulator_version())
            for task in pipeline.tasks
            for manifest in component_manifests(layout.task(task))
        }
    forget_others(simulated_folder(layout), kept)
