"""The commands ``caption``, ``vqa`` and ``match``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, Sequence, Tuple

import numpy as np
from PIL import Image

from runtime.captioning import Caption
from runtime.drawing import draw_results
from runtime.errors import InputError
from runtime.generation_settings import GenerationSettings
from runtime.images import load_image
from runtime.options import generation_arguments, image_paths, targets, task_arguments
from runtime.reports import Line, Report
from runtime.tables import Progress
from runtime.task import Task
from runtime.tasks import Captioner, Matcher, QuestionAnswerer
from runtime.timing import Timings

#: Images held at a time; each is held at the model's size, not its own.
_GROUP = 64
_INPUT_PROBLEM = 2

Loaded = Tuple[Path, Image.Image]


def caption(options: argparse.Namespace) -> int:
    """Runs ``blip-edge caption``; returns the exit code."""
    generation = generation_arguments(options)
    GenerationSettings.from_arguments(**generation)

    def work(task: Captioner, group: Sequence[Loaded], timings: Timings) -> Iterator[Line]:
        found = task.batch(
            [image for _, image in group], options.prompt, timings=timings, **generation
        )
        for (path, _), result in zip(group, found):
            yield Line(path, None, task.artifacts.target, result.text, _sequence_fields(result))

    return _run(Captioner, options, work)


def answer(options: argparse.Namespace) -> int:
    """Runs ``blip-edge vqa``; returns the exit code."""
    generation = generation_arguments(options)
    GenerationSettings.from_arguments(**generation)
    if not options.question:
        return _ask_interactively(options, generation)

    def work(task: QuestionAnswerer, group: Sequence[Loaded], timings: Timings) -> Iterator[Line]:
        questions = [options.question] * len(group)
        found = task.batch([image for _, image in group], questions, timings=timings, **generation)
        for (path, _), results in zip(group, found):
            for question, result in zip(options.question, results):
                fields = {"question": question, **_sequence_fields(result)}
                yield Line(path, question, task.artifacts.target, result.text, fields)

    return _run(QuestionAnswerer, options, work)


def match(options: argparse.Namespace) -> int:
    """Runs ``blip-edge match``; returns the exit code."""
    texts = list(options.text)
    if options.texts is not None:
        try:
            lines = options.texts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--texts {options.texts}: cannot be read ({error})") from None
        texts += [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError("match: give at least one --text, or a file with --texts")
    top_k = len(texts) if options.top_k is None else options.top_k

    def work(task: Matcher, group: Sequence[Loaded], timings: Timings) -> Iterator[Line]:
        ranking = task.rank([image for _, image in group], texts, top_k=top_k, timings=timings)
        for row, (path, _) in enumerate(group):
            for place, column in enumerate(ranking.texts_for(row), start=1):
                cosine = float(ranking.cosine[row, column])
                known = float(ranking.probability[row, column])
                probability = None if np.isnan(known) else known
                fields = {
                    "text": texts[column],
                    "rank": place,
                    "probability": probability,
                    "cosine": cosine,
                }
                shown = "-" if probability is None else f"{probability:.4f}"
                text = f"#{place}  probability {shown}  cosine {cosine:.4f}"
                yield Line(path, texts[column], task.artifacts.target, text, fields)

    return _run(Matcher, options, work)


def _run(kind: Any, options: argparse.Namespace, work: Any) -> int:
    paths = image_paths(options.images)
    report = Report(as_json=options.json)
    timings: Dict[str, Timings] = {}
    bad: Dict[Path, str] = {}
    for target in targets(options):
        measured = timings[target] = Timings()
        progress = Progress(len(paths), target)
        with kind.from_artifacts(options.artifacts, **task_arguments(options, target)) as task:
            for start in range(0, len(paths), _GROUP):
                group = list(_load(task, paths[start : start + _GROUP], bad, report, measured))
                if group and start == 0 and options.timing:
                    # Loading and first calls are not what a user wants to know per image.
                    list(work(task, group[:1], Timings()))
                if group:
                    for line in work(task, group, measured):
                        report.add(line)
                progress.advance(len(paths[start : start + _GROUP]))
        progress.clear()
    report.print_table()
    if options.timing:
        report.print_timings(timings)
    if options.show is not None:
        draw_results(report.lines, options.show)
    return _INPUT_PROBLEM if report.problems else 0


def _load(
    task: Task, paths: Sequence[Path], bad: Dict[Path, str], report: Report, timings: Timings
) -> Iterator[Loaded]:
    for path in paths:
        if path in bad:
            continue
        try:
            with timings.measure("preprocess", 0):
                image = task.preprocessor.resized(load_image(path))
        except InputError as error:
            bad[path] = str(error)
            report.problem(path, str(error))
            continue
        yield path, image


def _ask_interactively(options: argparse.Namespace, generation: Dict[str, Any]) -> int:
    paths = image_paths(options.images)
    if len(paths) != 1:
        raise InputError("vqa: without --question pass one image, to be asked line by line")
    if options.compare is not None or options.show is not None:
        raise InputError("vqa: --compare and --show need --question")
    report = Report(as_json=options.json)
    timings = Timings()
    arguments = task_arguments(options, options.target)
    with QuestionAnswerer.from_artifacts(options.artifacts, **arguments) as task:
        embeds = task.encode([paths[0]], timings=timings)
        for question in _questions():
            try:
                result = task.answer(embeds, [question], timings=timings, **generation)[0]
            except InputError as error:
                report.problem(paths[0], str(error))
                continue
            fields = {"question": question, **_sequence_fields(result)}
            report.add(Line(paths[0], question, options.target, result.text, fields))
            if not options.json:
                print(result.text, flush=True)
    if options.timing:
        report.print_timings({options.target: timings})
    return _INPUT_PROBLEM if report.problems else 0


def _questions() -> Iterator[str]:
    watched = sys.stdin.isatty()
    while True:
        if watched:
            sys.stderr.write("question (empty line ends)> ")
            sys.stderr.flush()
        try:
            line = sys.stdin.readline()
        except (OSError, ValueError, UnicodeDecodeError):
            return
        question = line.strip()
        if not line or (watched and not question):
            return
        if question:
            yield question


def _sequence_fields(result: Any) -> Dict[str, Any]:
    fields: Dict[str, Any] = {"text": result.text, "token_ids": list(result.token_ids)}
    if result.score is not None:
        fields["score"] = result.score
    if result.alternatives:
        fields["alternatives"] = [_alternative(item) for item in result.alternatives]
    return fields


def _alternative(item: Caption) -> Dict[str, Any]:
    return {"text": item.text, "token_ids": list(item.token_ids), "score": item.score}


COMMANDS: Dict[str, Any] = {"caption": caption, "vqa": answer, "match": match}
