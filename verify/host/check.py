"""Everything around one task's graphs in one check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from configs.errors import BlipEdgeError
from configs.schema import Component, TaskConfig
from pipeline.manifest import TaskManifest
from runtime.files.manifests import ComponentManifest
from verify.answers.cases import Case
from verify.checkpoint.checkpoint import Checkpoint
from verify.host.batches import compare_batches
from verify.host.calls import compare_host
from verify.host.finding import Finding
from verify.host.preprocessing import compare_preprocessing
from verify.host.search import compare_search
from verify.host.settings import compare_settings
from verify.host.tokenization import compare_tokenization
from verify.parity.inputs import Graphs
from verify.results import Check, Subject

#: Whole answers whose every call is judged.
HOST_CASES = 3


def host_findings(
    manifest: TaskManifest,
    config: TaskConfig,
    checkpoint: Checkpoint,
    graphs: Graphs,
    nets: Mapping[Component, ComponentManifest],
    cases: Sequence[Case],
    new_tokens: int,
    seed: int,
) -> list[Finding]:
    """Everything wrong around the graphs, in the order of data flow."""
    folder: Path = graphs.manifest.folder
    steps: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("settings", lambda: compare_settings(manifest, config, checkpoint, folder)),
        ("preprocessing", lambda: compare_preprocessing(graphs.preprocessor, checkpoint, seed)),
        ("tokenization", lambda: compare_tokenization(graphs.tokenizer, checkpoint, seed)),
        ("host", lambda: compare_host(graphs, nets, checkpoint, cases, new_tokens)),
        ("generation", lambda: compare_batches(graphs, nets, cases, new_tokens)),
        ("generation", lambda: compare_search(graphs, nets, checkpoint, cases[0], new_tokens)),
    ]
    found: list[Finding] = []
    for part, step in steps:
        try:
            found += step()
        except BlipEdgeError as error:
            # Wrong settings make a step fail: that is a finding, and the next one is still taken.
            found.append(Finding(part, "failed", str(error)))
    return found


def host_check(subject: Subject, found: Sequence[Finding], cases: int) -> Check:
    """The verdict over all of them."""
    metrics = {"findings": [finding.__dict__ for finding in found]}
    tolerance = {"source": "the checkpoint's own files and HuggingFace's code: nothing may differ"}
    return Check(subject, cases, metrics, tolerance, tuple(str(finding) for finding in found))
