"""``blip-edge vqa IMAGE``: questions that are typed, or piped, line by line."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Dict, Iterator

from ..decoding.batching import Timings
from ..errors import InputError
from ..tasks.answering import QuestionAnswerer
from .commands import INPUT_PROBLEM, line_of
from .inputs import STANDARD_INPUT, WorkItem, image_paths
from .options import targets, task_arguments
from .reports import Report, say


def ask_interactively(options: argparse.Namespace, generation: Dict[str, Any]) -> int:
    """Answers questions about one image, read line by line; returns the exit code."""
    paths = image_paths(options.images)
    if len(paths) != 1:
        raise InputError("vqa: without --question pass one image, to be asked line by line")
    if paths[0] == STANDARD_INPUT:
        raise InputError(
            "vqa: - is the image, so questions cannot come from there; give --question"
        )
    if options.compare is not None or options.show is not None:
        raise InputError("vqa: --compare and --show need --question")
    report = Report(as_json=options.json)
    timings = Timings()
    (target,) = targets(options)
    arguments = task_arguments(options, target)
    with QuestionAnswerer.from_artifacts(options.artifacts, load_ahead=True, **arguments) as task:
        report.domain = task.manifest.domain
        embeds = task.encode([paths[0]], timings=timings)
        for question in _questions():
            try:
                result = task.answer(embeds, [question], timings=timings, **generation)[0]
            except InputError as error:
                report.problem(str(error), image=str(paths[0]), target=target, question=question)
                continue
            report.add(line_of(WorkItem(paths[0]), question, task, result))
            if not options.json:
                say(result.text)
    report.conclude()
    if options.timing:
        report.print_timings({target: timings}, {})
    return INPUT_PROBLEM if report.problems else 0


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
