"""The commands ``caption``, ``vqa`` and ``match``."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

from ..decoding.batching import StopSignal, Timings, fixed_batch
from ..errors import InputError
from ..generation.settings import GenerationSettings
from ..preprocessing.images import PreparedImage
from ..tasks.task import Result, Task
from .inputs import WorkItem, image_paths, text_lines, work_items
from .options import generation_arguments, targets, task_arguments
from .reports import Columns, Line, Problem, Progress, Report, say

#: Images that ``--show`` draws.
_SHOWN = 60
_INPUT_PROBLEM = 2

Loaded = Tuple[WorkItem, PreparedImage]
Found = Union[Line, Problem]
#: A task, loaded images, where to count time and when to stop, to the results of every image.
Work = Callable[[Any, Sequence[Loaded], Timings, Optional[StopSignal]], List[List[Found]]]
#: The texts given for every image that a task can use, to the work on them.
MakeWork = Callable[[List[Any]], Work]
#: Where a text was given, and the text.
Given = Tuple[str, Optional[str]]


def caption(options: argparse.Namespace) -> int:
    """Runs ``blip-edge caption``; returns the exit code."""
    from ..tasks.generating import Captioner

    generation = _generation(options)
    items = work_items(options.images, None, "", recursive=options.recursive)
    given = [("--prompt", options.prompt)]
    return _run(Captioner, options, items, given, lambda texts: _pairs(texts, generation))


def answer(options: argparse.Namespace) -> int:
    """Runs ``blip-edge vqa``; returns the exit code."""
    from ..tasks.generating import QuestionAnswerer

    generation = _generation(options)
    if not options.question and options.csv is None:
        return _ask_interactively(options, generation)
    items = work_items(options.images, options.csv, "question", recursive=options.recursive)
    given = [("--question", question) for question in options.question]
    return _run(QuestionAnswerer, options, items, given, lambda texts: _pairs(texts, generation))


def _pairs(texts: Sequence[Optional[str]], options: Dict[str, Any]) -> Work:
    """Work on each image with its own texts and these ones."""

    def work(
        task: Task[Any], group: Sequence[Loaded], timings: Timings, stop: Optional[StopSignal]
    ) -> List[List[Found]]:
        images = [image for _, image in group]
        problems = [_problems(task, item) for item, _ in group]
        asked = [
            [*(text for text, bad in zip(item.texts, mine) if bad is None), *texts]
            for (item, _), mine in zip(group, problems)
        ]
        answers = task.pairs(images, asked, timings=timings, stop=stop, **options)
        found: List[List[Found]] = []
        for (item, _), mine, results in zip(group, problems, answers):
            rest = iter(results)
            every = [*zip(item.texts, mine), *((text, None) for text in texts)]
            found.append([bad or _line(item, text, task, next(rest)) for text, bad in every])
        return found

    return work


def _problems(task: Task[Any], item: WorkItem) -> List[Optional[Problem]]:
    """What is wrong with each of an item's own texts."""
    found: List[Optional[Problem]] = []
    for place, text in zip(item.places, item.texts):
        try:
            task.read_text(text)
            found.append(None)
        except InputError as error:
            found.append(Problem(f"{place}: {error}", {task.asks: text}))
    return found


def _generation(options: argparse.Namespace) -> Dict[str, Any]:
    """The generation arguments given, which are checked before anything is loaded."""
    generation = generation_arguments(options)
    GenerationSettings.from_arguments(**generation)
    return generation


def match(options: argparse.Namespace) -> int:
    """Runs ``blip-edge match``; returns the exit code."""
    from ..tasks.matching import Matcher

    if options.csv is not None:
        return _match_pairs(options)
    items = work_items(options.images, None, "text", recursive=options.recursive)
    given = _texts(options)
    make_work = partial(_ranked, asked_top_k=options.top_k)
    return _run(Matcher, options, items, given, make_work, by_score=len(given) == 1)


def _ranked(texts: Sequence[str], asked_top_k: Optional[int]) -> Work:
    """Work that ranks the texts for each image."""
    top_k = len(texts) if asked_top_k is None else asked_top_k
    features: List[Any] = []

    def work(
        task: Any, group: Sequence[Loaded], timings: Timings, stop: Optional[StopSignal]
    ) -> List[List[Found]]:
        if not features:
            features.append(task.text_features(texts, timings=timings))
        ranking = task.rank(
            [image for _, image in group],
            texts,
            top_k=top_k,
            images_per_text=0,
            text_features=features[0],
            timings=timings,
            stop=stop,
        )
        return [
            [
                _line(item, texts[column], task, ranking.match(row, column), place)
                for place, column in enumerate(ranking.texts_for(row), start=1)
            ]
            for row, (item, _) in enumerate(group)
        ]

    return work


def _match_pairs(options: argparse.Namespace) -> int:
    from ..tasks.matching import Matcher

    if options.text or options.texts is not None or options.top_k is not None:
        raise InputError("match: --csv names the pairs; leave out --text, --texts and --top-k")

    items = work_items(options.images, options.csv, "text", recursive=options.recursive)
    return _run(Matcher, options, items, [], lambda texts: _pairs(texts, {}))


def _texts(options: argparse.Namespace) -> List[Given]:
    texts: List[Given] = [("--text", text) for text in options.text]
    if options.texts is not None:
        texts += text_lines(options.texts)
    if not texts:
        raise InputError("match: give at least one --text, a file --texts, or pairs --csv")
    return texts


def _line(
    item: WorkItem, text: Optional[str], task: Task[Any], result: Result, place: int = 0
) -> Line:
    """One result for programs and people; a place of 0 is no rank."""
    asked = {task.asks: text} if task.asks else {}
    subject = text if task.asks else None
    fields = {**asked, **result.record()}
    warning = task.read_text(text).warning
    return Line(item.image, subject, task.artifacts.target, result.shown, fields, place, warning)


def _run(
    kind: Any,
    options: argparse.Namespace,
    items: Sequence[WorkItem],
    given: Sequence[Given],
    make_work: MakeWork,
    *,
    by_score: bool = False,
) -> int:
    """Works on items, and on what is given for all of them, on every target.

    ``by_score`` ranks the images of all items for the one text given.
    """
    names = targets(options)
    if options.show is not None:
        # Drawing needs more of Pillow than captioning does.
        from .drawing import check_writable, draw_results

        check_writable(options.show)
    subjects = [text for _, text in given if text is not None] if kind.asks else []
    asked = [*subjects, *(text for item in items for text in item.texts)]
    paths = [item.image for item in items]
    columns = Columns.of(paths, asked, several_targets=len(names) > 1)
    keep = 0 if options.show is None else _SHOWN
    report = Report(as_json=options.json, columns=columns, keep_images=keep)
    timings: Dict[str, Timings] = {}
    rates: Dict[str, float] = {}
    bad: Set[WorkItem] = set()
    for target in names:
        measured = timings[target] = Timings()
        arguments = task_arguments(options, target)
        with kind.from_artifacts(options.artifacts, load_ahead=True, **arguments) as task:
            report.note_domain(task.manifest.domain)
            left = [item for item in items if item not in bad]
            work = make_work(_usable(task, given, left, report))
            if options.timing:
                _warm_up(task, left, work)
            begin = time.perf_counter()
            held: Optional[List[Line]] = [] if by_score and len(left) > 1 else None
            done = _stream(task, left, work, measured, report, bad, held)
            if done:
                rates[target] = done / (time.perf_counter() - begin)
            for place, line in enumerate(sorted(held or [], key=_by_score), start=1):
                report.add(replace(line, rank=place))
            report.begin_target()
    report.print_table()
    report.note_cuts()
    if options.timing:
        report.print_timings(timings, rates)
    if options.show is not None:
        draw_results(report.lines, options.show, options.max_pixels)
    return _INPUT_PROBLEM if report.problems else 0


def _usable(
    task: Task[Any], given: Sequence[Given], items: Sequence[WorkItem], report: Report
) -> List[Optional[str]]:
    """The texts given for all images that the task can use; the others are reported.

    Raises:
        InputError: nothing is left to work on.
    """
    usable, problems = [], []
    for place, text in given:
        try:
            task.read_text(text)
            usable.append(text)
        except InputError as error:
            problems.append((f"{place}: {error}", text))
    if problems and not usable and not any(item.texts for item in items):
        raise InputError(problems[0][0])
    for message, text in problems:
        report.problem(message, **{task.asks: text})
    return usable


def _by_score(line: Line) -> Tuple[float, float]:
    probability = line.fields["probability"]
    return (1.0 if probability is None else -probability), -line.fields["cosine"]


def _stream(
    task: Task[Any],
    items: Sequence[WorkItem],
    work: Work,
    timings: Timings,
    report: Report,
    bad: Set[WorkItem],
    held: Optional[List[Line]],
) -> int:
    """Works through the items and reports them in order; returns how many images were good.

    Results are put to ``held``, if it is a list, rather than reported.
    """

    stream = task.stream_batches(
        items,
        lambda item: item.source,
        lambda group, stop: work(task, group, timings, stop),
        timings,
    )
    good = 0
    progress = Progress(len(items), task.artifacts.target)
    try:
        for item, outcome in stream:
            progress.clear()
            good += _reported(item, outcome, report, bad, held)
            progress.advance()
    finally:
        progress.clear()
    return good


def _reported(
    item: WorkItem,
    outcome: Union[List[Found], InputError],
    report: Report,
    bad: Set[WorkItem],
    held: Optional[List[Line]],
) -> int:
    if isinstance(outcome, InputError):
        bad.add(item)
        report.problem(str(outcome), image=str(item.image))
        return 0
    for found in outcome:
        if isinstance(found, Problem):
            report.problem(found.message, image=str(item.image), **found.fields)
        elif held is not None:
            held.append(found)
        else:
            report.add(found)
    return 1


def _warm_up(task: Task[Any], items: Sequence[WorkItem], work: Work) -> None:
    """Loading and first calls are not what a user wants to know per image."""
    for item in items:
        try:
            prepared = task.prepare(item.source)
        except InputError:
            continue
        # Nets with dynamic shapes prepare themselves for every new batch size.
        fixed = fixed_batch(task.session("vision_encoder").manifest.nets[0]) is not None
        rows = 1 if fixed else min(len(items), task.images_at_once())
        work(task, [(item, prepared)] * rows, Timings(), None)
        return


def _ask_interactively(options: argparse.Namespace, generation: Dict[str, Any]) -> int:
    from ..tasks.generating import QuestionAnswerer

    paths = image_paths(options.images)
    if len(paths) != 1:
        raise InputError("vqa: without --question pass one image, to be asked line by line")
    if options.compare is not None or options.show is not None:
        raise InputError("vqa: --compare and --show need --question")
    report = Report(as_json=options.json)
    timings = Timings()
    (target,) = targets(options)
    arguments = task_arguments(options, target)
    with QuestionAnswerer.from_artifacts(options.artifacts, load_ahead=True, **arguments) as task:
        report.note_domain(task.manifest.domain)
        embeds = task.encode([paths[0]], timings=timings)
        for question in _questions():
            try:
                result = task.answer(embeds, [question], timings=timings, **generation)[0]
            except InputError as error:
                report.problem(str(error), image=str(paths[0]), question=question)
                continue
            report.add(_line(WorkItem(paths[0]), question, task, result))
            if not options.json:
                say(result.text)
    if options.timing:
        report.print_timings({target: timings}, {})
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


COMMANDS: Dict[str, Any] = {"caption": caption, "vqa": answer, "match": match}
