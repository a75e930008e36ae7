"""What was built: every artifact with its size, fusions, rewrites, estimates and digests."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

from configs.schema import TASK_COMPONENTS, Component, Task
from pipeline.manifest import ComponentManifest
from verify.page.checks import Row
from verify.page.figures import component_name, file_size, milliseconds, target_name, task_name
from verify.page.overview import status
from verify.page.sources import Sources
from verify.verdicts.merging import tools_of


@dataclass(frozen=True)
class Artifact:
    """One component artifact."""

    path: str
    manifest: ComponentManifest
    status: str
    size_bytes: int

    @property
    def component(self) -> str:
        """Readable component."""
        return component_name(self.manifest.component)

    @property
    def kind(self) -> str:
        """Precision set, and what the component is built as where that differs."""
        built_as = self.manifest.built_as
        return self.manifest.precision + (f" (built as {built_as})" if built_as else "")

    @property
    def size(self) -> str:
        """Files together."""
        return file_size(self.size_bytes)

    @property
    def device_memory(self) -> str:
        """What the vendor's tool says a chip needs."""
        return file_size(self.manifest.device_memory_bytes)

    @property
    def estimates(self) -> list[tuple[str, str]]:
        """(net, latency) as the vendor's compiler estimates it."""
        return [
            (net.name, milliseconds(net.estimate.latency_ms))
            for net in self.manifest.nets
            if net.estimate
        ]

    @property
    def fusions(self) -> list[tuple[str, int]]:
        """(pattern, count) over all nets."""
        total: Counter[str] = Counter()
        for net in self.manifest.nets:
            total.update(net.fusions)
        return sorted(total.items())

    @property
    def commands(self) -> list[str]:
        """Vendor commands as a shell would take them."""
        return [shlex.join(command) for command in self.manifest.commands]


@dataclass(frozen=True)
class Bar:
    """One bar: its share of the longest, in percent."""

    name: str
    value: str
    share: float


@dataclass(frozen=True)
class Group:
    """All artifacts of a task on one target in one precision."""

    name: str
    artifacts: list[Artifact]

    @property
    def size(self) -> str:
        """Files together."""
        return file_size(sum(artifact.size_bytes for artifact in self.artifacts))


@dataclass(frozen=True)
class TaskArtifacts:
    """All artifacts of a task."""

    task: str
    name: str
    groups: list[Group]

    @property
    def sizes(self) -> list[Bar]:
        """Size of every set of artifacts."""
        sizes = [(group.name, sum(a.size_bytes for a in group.artifacts)) for group in self.groups]
        return bars([(name, float(size), file_size(size)) for name, size in sizes])

    @property
    def estimates(self) -> list[Bar]:
        """Latency of every net that its compiler gave an estimate for; one net, all chips."""
        found = [
            (a.component, net.name, group.name, net.estimate.latency_ms)
            for group in self.groups
            for a in group.artifacts
            for net in a.manifest.nets
            if net.estimate
        ]
        nets = list(dict.fromkeys((component, net) for component, net, _, _ in found))
        found.sort(key=lambda item: nets.index((item[0], item[1])))
        return bars(
            [
                (
                    f"{component}{'' if net == 'main' else ', ' + component_name(net)}, {group}",
                    latency_ms,
                    milliseconds(latency_ms),
                )
                for component, net, group, latency_ms in found
            ]
        )


def artifacts(sources: Sources, every: Sequence[Row]) -> list[TaskArtifacts]:
    """Every artifact on the disk: task by task, ONNX first, in data-flow order."""
    targets = ["onnx", *sources.pipeline.targets]

    def order(item: Artifact) -> tuple[int, str, str, int]:
        m = item.manifest
        place = targets.index(m.target) if m.target in targets else len(targets)
        components = TASK_COMPONENTS[cast(Task, m.task)]
        return place, m.target, m.precision, components.index(cast(Component, m.component))

    found = []
    for task in sources.pipeline.tasks:
        mine = sorted(
            (
                Artifact(path, m, status(sources, every, m), _size(m))
                for path, m in sources.components.items()
                if m.task == task
            ),
            key=order,
        )
        grouped = groupby(mine, lambda item: (item.manifest.target, item.manifest.precision))
        groups = [
            Group(f"{target_name(target)} {precision}", list(items))
            for (target, precision), items in grouped
        ]
        found.append(TaskArtifacts(task, task_name(task), groups))
    return [task_artifacts for task_artifacts in found if task_artifacts.groups]


def tool_versions(sources: Sources) -> list[tuple[str, str]]:
    """Every tool that built or verified something, with all versions that did."""
    versions: dict[str, set[str]] = {}
    for manifest in sources.components.values():
        for tool, version in manifest.tools.items():
            versions.setdefault(str(tool), set()).add(str(version))
    for tool, used in tools_of(sources.verdict).items():
        versions.setdefault(tool, set()).update(used)
    return [(tool, ", ".join(sorted(found))) for tool, found in sorted(versions.items())]


def bars(values: list[tuple[str, float, str]]) -> list[Bar]:
    """Bars of (name, value, value in words)."""
    longest = max((value for _, value, _ in values), default=0.0) or 1.0
    return [Bar(name, words, round(100 * value / longest, 2)) for name, value, words in values]


def _size(manifest: ComponentManifest) -> int:
    return sum(record.size_bytes for record in manifest.files.values())
