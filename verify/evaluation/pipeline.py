"""Runs an evaluation: answers of the checkpoint and of every subject, then metrics and results."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.errors import ConfigError, ParityError
from configs.layout import Layout
from configs.schema import EvaluateConfig
from pipeline.atomic import artifact_lock
from pipeline.command import Selection
from pipeline.console import messages, steps
from pipeline.manifest import key_of
from verify.answers.metrics.bootstrap import Comparison, compare
from verify.answers.metrics.gates import Judgement, judged
from verify.answers.metrics.statistics import Statistic
from verify.answers.quality import named_gate
from verify.artifacts import TaskArtifacts, find_artifacts
from verify.checkpoint.files import check_checkpoint
from verify.evaluation.answer_store import AnswerStore
from verify.evaluation.comparing import compare_answers, worst_records
from verify.evaluation.data_sets import Asked, answer_list, open_data_sets
from verify.evaluation.items import DataSet
from verify.evaluation.measures import MatchingMeasures, Measures, counted, new_measures
from verify.evaluation.results import (
    CONFIDENCE,
    FOLDER,
    result_path,
    result_record,
    subject_record,
    write_result,
)
from verify.evaluation.subjects import Subject, subjects
from verify.evaluation.workers import Job, Workers, jobs_of


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
    tasks = {artifacts.task: artifacts for artifacts in find_artifacts(selection)}
    for task, artifacts in tasks.items():
        check_checkpoint(layout, task, artifacts.manifest)
    with ExitStack() as stack:
        stack.enter_context(artifact_lock(layout.root, "evaluate"))
        found = open_data_sets(selection, options.config, tasks_named=options.tasks_named)
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
        self._answers = answer_list(self._config, artifacts.task)
        self._folder = layout.root / FOLDER

    @property
    def _data_set(self) -> DataSet:
        return self._asked.data_set

    def evaluate(self) -> Evaluation:
        chosen, left_out = subjects(
            self._selection, self._config, self._artifacts, full=self._options.full
        )
        for name in left_out:
            messages.print(f"[yellow]not simulated[/] {name} (add --full)")
        if not chosen:
            raise ConfigError(f"{self._options.file}: no target to evaluate; name one, or --full")
        counts = [self._count(subject) for subject in chosen]
        candidates = self._config.answer_candidates if self._answers else 0
        chosen = [replace(one, answers=self._answers, candidates=candidates) for one in chosen]
        checkpoint = Subject(
            self._selection.pipeline,
            self._artifacts,
            answers=self._answers,
            candidates=candidates,
        )
        self._items = list(self._data_set.first(max(counts)))
        # Also finds missing images before any work is done.
        self._stamps = [item.picture.stamp() for item in self._items]
        # Of all that was asked for, also where only a simulator answers to a few.
        self._cider = counted(self._data_set.first(self._asked.items))
        expected, _ = self._answered(checkpoint, max(counts))
        reference = self._measured(checkpoint, expected, max(counts))
        records = [
            self._record(subject, items, expected, reference)
            for subject, items in zip(chosen, counts, strict=True)
        ]
        of_checkpoint = reference.statistics(max(counts))
        figures = {
            name: found.target for name, found in self._compared(of_checkpoint, of_checkpoint)
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

    def _count(self, subject: Subject) -> int:
        if subject.simulated:
            return min(self._asked.items, self._config.simulated_items)
        return self._asked.items

    def _answered(self, subject: Subject, count: int) -> tuple[AnswerStore, float]:
        """An answer to each of the first items, and the seconds it took."""
        started = time.perf_counter()
        store = AnswerStore(self._store_path(subject), self._stamps[:count])
        jobs = jobs_of(subject, [(number, self._items[number]) for number in store.missing])
        self._run(jobs, store, count, subject.name)
        return store, time.perf_counter() - started

    def _run(self, jobs: list[Job], store: AnswerStore, count: int, what: str) -> None:
        if not jobs:
            return
        with steps("evaluate", count, remaining=True) as progress:
            progress.start(f"{self._artifacts.task} {self._data_set.name}: {what}")
            progress.advance(count - sum(len(job.items) for job in jobs))
            for answered in self._workers.run(jobs):
                store.add(answered)
                progress.advance(len(answered))

    def _measured(self, subject: Subject, answers: AnswerStore, count: int) -> Measures:
        measures = new_measures(self._artifacts.task, self._cider)
        for number, item in enumerate(self._items[:count]):
            measures.add(item, answers[number])
        if self._config.rerank and isinstance(measures, MatchingMeasures):
            self._rerank(measures, subject, count)
        return measures

    def _rerank(self, measures: MatchingMeasures, subject: Subject, count: int) -> None:
        """Lets the matching head judge the best candidates of every image and every text."""
        path = self._store_path(subject, f"rerank{self._config.rerank}-{count}")
        store = AnswerStore(path, self._stamps[:count])
        texts = measures.candidates(count, self._config.rerank)
        todo = [number for number in store.missing if texts[number]]
        items = [(number, self._items[number]) for number in todo]
        jobs = jobs_of(subject, items, [texts[number] for number in todo])
        self._run(jobs, store, count, f"{subject.name}, matching head")
        measures.reranked = [
            dict(zip(own, store[number]["scores"], strict=True)) if own else {}
            for number, own in enumerate(texts)
        ]

    def _compared(
        self, mine: Mapping[str, Statistic], theirs: Mapping[str, Statistic]
    ) -> Iterator[tuple[str, Comparison]]:
        for name, statistic in theirs.items():
            yield (
                name,
                compare(
                    mine[name],
                    statistic,
                    replicates=self._config.bootstrap,
                    confidence=CONFIDENCE,
                    seed=self._config.seed,
                ),
            )

    def _record(
        self, subject: Subject, count: int, expected: AnswerStore, reference: Measures
    ) -> dict[str, Any]:
        answers, seconds = self._answered(subject, count)
        measures = self._measured(subject, answers, count)
        found = dict(self._compared(measures.statistics(count), reference.statistics(count)))
        items = self._items[:count]
        beside = compare_answers(items, answers, expected, measures, reference)
        worst = worst_records(beside.worst, items, answers, expected, self._folder)
        gates = self._judged(subject, beside.rate, {n: c.drop.value for n, c in found.items()})
        return subject_record(subject, count, found, beside, gates, worst, seconds)

    def _judged(
        self, subject: Subject, agreement: float, drops: dict[str, float]
    ) -> list[Judgement]:
        if subject.artifacts is None:
            return []
        named = named_gate(
            self._selection.pipeline,
            self._artifacts.task,
            subject.artifacts,
            subject.mode,
            self._options.file,
        )
        return judged(named.gate, named.source, agreement, drops) if named else []

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
