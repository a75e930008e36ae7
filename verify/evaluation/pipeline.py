"""Runs an evaluation: answers of the checkpoint and of every subject, then metrics and results."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from configs.errors import ConfigError, ParityError
from configs.layout import Layout
from configs.schema import EvaluateConfig, QualityGate
from pipeline.atomic import artifact_lock
from pipeline.command import Selection
from pipeline.console import messages, steps
from pipeline.manifest import key_of
from verify.answers.metrics.bootstrap import compare
from verify.answers.metrics.captions import Cider
from verify.answers.metrics.gates import Judgement, gate_of, judged
from verify.artifacts import TaskArtifacts, find_artifacts
from verify.checkpoint.files import check_checkpoint
from verify.evaluation.answer_store import AnswerStore
from verify.evaluation.comparing import compare_answers, worst_records
from verify.evaluation.data_sets import Asked, open_data_sets
from verify.evaluation.items import DataSet, MatchingItem
from verify.evaluation.measures import Measures, counted, new_measures
from verify.evaluation.reranking import rerank
from verify.evaluation.results import (
    CONFIDENCE,
    FOLDER,
    result_path,
    result_record,
    subject_record,
    write_result,
)
from verify.evaluation.subjects import Subject, subjects
from verify.evaluation.workers import Workers, jobs_of


@dataclass(frozen=True)
class Evaluation:
    """One finished task on one data set."""

    path: Path
    record: dict[str, Any]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """What a command line says beyond the pipeline file."""

    config: EvaluateConfig
    #: the pipeline file, as messages name it
    file: str
    workers: int
    full: bool = False
    tasks_named: bool = False


def evaluate(selection: Selection, options: Options) -> Iterator[Evaluation]:
    """Evaluates everything selected, one task on one data set after the other.

    Raises:
        InputError: a data set, an artifact or a checkpoint cannot be used.
        ConfigError: nothing to evaluate.
        ToolError: a backend failed, or results cannot be written.
    """
    layout = Layout(selection.pipeline)
    folder = layout.root / FOLDER
    tasks = {artifacts.task: artifacts for artifacts in find_artifacts(selection)}
    for task, artifacts in tasks.items():
        check_checkpoint(selection.pipeline.tasks[task], artifacts.manifest)
    with ExitStack() as stack:
        stack.enter_context(artifact_lock(layout.root, "evaluate"))
        found = open_data_sets(
            selection, options.config, folder / "index", tasks_named=options.tasks_named
        )
        workers = stack.enter_context(Workers(options.workers))
        for asked in found:
            run = _Run(selection, options, workers, layout, tasks[asked.data_set.task], asked)
            yield run.evaluate()


def failure(found: list[Evaluation]) -> ParityError | None:
    """The one line about gates that were not kept, or None."""
    problems = [problem for evaluation in found for problem in evaluation.problems]
    if not problems:
        return None
    return ParityError(
        f"{len(problems)} gates are not kept: {problems[0]}"
        + (f", and {len(problems) - 1} more" if len(problems) > 1 else "")
    )


class _Run:
    """One task on one data set."""

    def __init__(
        self,
        selection: Selection,
        options: Options,
        workers: Workers,
        layout: Layout,
        artifacts: TaskArtifacts,
        asked: Asked,
    ) -> None:
        self._options = options
        self._config = options.config
        self._workers = workers
        self._layout = layout
        self._artifacts = artifacts
        self._asked = asked
        self._selection = selection
        self._folder = layout.root / FOLDER

    @property
    def _data_set(self) -> DataSet:
        return self._asked.data_set

    @cached_property
    def _cider(self) -> Cider:
        return counted(self._data_set, self._asked.items)

    def evaluate(self) -> Evaluation:
        chosen, left_out = subjects(
            self._selection, self._config, self._artifacts, full=self._options.full
        )
        for name in left_out:
            messages.print(f"[yellow]not simulated[/] {name} (add --full)")
        if not chosen:
            raise ConfigError(f"{self._options.file}: no target to evaluate; name one, or --full")
        counts = [self._items(subject) for subject in chosen]
        checkpoint = Subject(self._selection.pipeline, self._artifacts)
        with ExitStack() as stack:
            expected, _ = self._answered(stack, checkpoint, max(counts))
            reference = self._measured(checkpoint, expected, max(counts))
            records: list[dict[str, Any]] = []
            for subject, items in zip(chosen, counts, strict=True):
                with ExitStack() as inner:
                    answers, seconds = self._answered(inner, subject, items)
                    measures = self._measured(subject, answers, items)
                    records.append(
                        self._record(
                            subject, items, answers, expected, measures, reference, seconds
                        )
                    )
            figures = {
                name: compare(
                    statistic,
                    statistic,
                    replicates=self._config.bootstrap,
                    confidence=CONFIDENCE,
                    seed=self._config.seed,
                ).target
                for name, statistic in reference.statistics(max(counts)).items()
            }
        path = result_path(self._layout, self._asked)
        record = result_record(
            self._asked, self._config, checkpoint, max(counts), figures, records, self._layout
        )
        write_result(path, record, self._layout)
        problems = [
            f"{record['task']} {subject['target']} {subject['precision']} {subject['mode']}: "
            f"{gate['name']} {gate['value']} against {gate['limit']} ({gate['source']})"
            for subject in records
            for gate in subject["gates"]
            if not gate["passed"]
        ]
        return Evaluation(path, record, tuple(problems))

    def _items(self, subject: Subject) -> int:
        if subject.simulated:
            return min(self._asked.items, self._config.simulated_items)
        return self._asked.items

    def _answered(
        self, stack: ExitStack, subject: Subject, items: int
    ) -> tuple[AnswerStore, float]:
        """A store with an answer to each of the first items, and the seconds it took."""
        started = time.perf_counter()
        store = stack.enter_context(AnswerStore(self._store_path(subject), items))
        if self._data_set.kind != "scenes":
            # Also finds missing images before any work is done.
            store.forget_changed(
                (number, item.picture.stamp())
                for number, item in enumerate(self._data_set.items(0, items))
            )
        missing = store.missing()
        todo = sum(len(numbers) for numbers in missing)
        name = f"{self._artifacts.task} {self._data_set.name}: {subject.name}"
        if todo:
            with steps("evaluate", items, remaining=True) as progress:
                progress.start(name)
                progress.advance(items - todo)
                for answered, _ in self._workers.run(jobs_of(subject, self._data_set, missing)):
                    store.add(answered)
                    progress.advance(len(answered))
        return store, time.perf_counter() - started

    def _measured(self, subject: Subject, answers: AnswerStore, items: int) -> Measures:
        measures = new_measures(self._artifacts.task, self._cider)
        for number, item in enumerate(self._data_set.items(0, items)):
            measures.add(item, answers.get(number))
        if self._config.rerank:
            path = self._store_path(subject, f"rerank{self._config.rerank}-{items}")
            rerank(
                measures,
                subject,
                self._data_set,
                items,
                self._config.rerank,
                self._workers,
                path,
            )
        return measures

    def _record(
        self,
        subject: Subject,
        items: int,
        answers: AnswerStore,
        expected: AnswerStore,
        measures: Measures,
        reference: Measures,
        seconds: float,
    ) -> dict[str, Any]:
        mine, theirs = measures.statistics(items), reference.statistics(items)
        comparisons = {
            name: compare(
                mine[name],
                theirs[name],
                replicates=self._config.bootstrap,
                confidence=CONFIDENCE,
                seed=self._config.seed,
            )
            for name in theirs
        }
        matches = []
        if self._artifacts.task == "itm":
            matches = [
                tuple(match for _, match in item.pairs)
                for item in self._data_set.items(0, items)
                if isinstance(item, MatchingItem)
            ]
        beside = compare_answers(
            self._artifacts.task, items, answers, expected, measures, reference, matches
        )
        worst = worst_records(beside.worst, self._data_set, answers, expected, self._folder)
        drops = {name: found.drop.value for name, found in comparisons.items()}
        gates = self._judged(subject, beside.rate, drops)
        return subject_record(subject, items, comparisons, beside, gates, worst, seconds)

    def _judged(
        self, subject: Subject, agreement: float, drops: dict[str, float]
    ) -> list[Judgement]:
        if subject.artifacts is None:
            return []
        gates: dict[str, QualityGate] = self._selection.pipeline.verify.gates.get(
            self._artifacts.task, {}
        )
        named = gate_of(
            gates,
            target=subject.artifacts.name,
            precision=subject.artifacts.precision,
            mode=subject.mode,
        )
        if named is None:
            return []
        name, gate = named
        source = f"{self._options.file}: verify.gates.{self._artifacts.task}.{name}"
        return judged(gate, source, agreement, drops)

    def _store_path(self, subject: Subject, what: str = "") -> Path:
        data_set = self._data_set
        key = key_of(
            {"data": data_set.identity, "subject": subject.key, "prompt": self._config.prompt}
        )[:16]
        parts = (data_set.task, data_set.name, subject.name.replace(" ", "_"), what)
        # The data set's digest keeps apart two of one name, each with its answers.
        stem = "-".join((*(part for part in parts if part), data_set.identity[:8]))
        folder = self._folder / "answers"
        for path in folder.glob("*.jsonl"):
            # Answers of another build serve no one any more.
            if re.fullmatch(re.escape(stem) + r"-[0-9a-f]{16}\.jsonl", path.name) and (
                path.name != f"{stem}-{key}.jsonl"
            ):
                path.unlink(missing_ok=True)
        return folder / f"{stem}-{key}.jsonl"


def default_workers() -> int:
    """One process per processor core that this process may use."""
    return len(os.sched_getaffinity(0))
