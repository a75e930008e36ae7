"""The commands ``caption``, ``vqa`` and ``match``."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

from ..decoding.batching import StopSignal, Timings, fixed_batch
from ..errors import InputError
from ..generation.settings import GenerationSettings
from ..preprocessing.images import PreparedImage
from ..tasks.task import Result, Task
from .inputs import WorkItem, image_paths, work_items
from .options import generation_arguments, targets, task_arguments
from .reports import Columns, Line, Progress, Report
from .terminal import say

#: Images that ``--show`` draws.
_SHOWN = 60
_INPUT_PROBLEM = 2

Loaded = Tuple[WorkItem, PreparedImage]
#: A task, loaded images, where to count time and when to stop, to the results of every image.
Work = Callable[
    [Any, Sequence[Loaded], Timings, Optional[StopSignal]],
    List[List[Line]],
]


def caption(options: argparse.Namespace) -> int:
    """Runs ``blip-edge caption``; returns the exit code."""
    from ..tasks.generating import Captioner

    generation = _generation(options)
    items = work_items(options.images, None, "", recursive=options.recursive)
    return _run(Captioner, options, items, [], _pairs([options.prompt], generation))


def answer(options: argparse.Namespace) -> int:
    """Runs ``blip-edge vqa``; returns the exit code."""
    from ..tasks.generating import QuestionAnswerer

    generation = _generation(options)
    if not options.question and options.csv is None:
        return _ask_interactively(options, generation)
    items = work_items(options.images, options.csv, "question", recursive=options.recursive)
    work = _pairs(options.question, generation)
    return _run(QuestionAnswerer, options, items, options.question, work)


def _pairs(texts: Sequence[Optional[str]], options: Dict[str, Any]) -> Work:
    """Work on each image with its own texts and these ones."""

    def work(
        task: Task[Any], group: Sequence[Loaded], timings: Timings, stop: Optional[StopSignal]
    ) -> List[List[Line]]:
        images = [image for _, image in group]
        asked = [[*item.texts, *texts] for item, _ in group]
        found = task.pairs(images, asked, timings=timings, stop=stop, **options)
        return [
            [_line(item, text, task, result) for text, result in zip(mine, results)]
            for (item, _), mine, results in zip(group, asked, found)
        ]

    return work


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
    texts = _texts(options)
    top_k = len(texts) if options.top_k is None else options.top_k
    features: Dict[Any, Any] = {}

    def work(
        task: Matcher, group: Sequence[Loaded], timings: Timings, stop: Optional[StopSignal]
    ) -> List[List[Line]]:
        if task not in features:
            features[task] = task.text_features(texts, timings=timings)
        ranking = task.rank(
            [image for _, image in group],
            texts,
            top_k=top_k,
            images_per_text=0,
            text_features=features[task],
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

    items = work_items(options.images, None, "text", recursive=options.recursive)
    return _run(Matcher, options, items, texts, work)


def _match_pairs(options: argparse.Namespace) -> int:
    from ..tasks.matching import Matcher

    if options.text or options.texts is not None or options.top_k is not None:
        raise InputError("match: --csv names the pairs; leave out --text, --texts and --top-k")

    items = work_items(options.images, options.csv, "text", recursive=options.recursive)
    return _run(Matcher, options, items, [], _pairs([], {}))


def _texts(options: argparse.Namespace) -> List[str]:
    texts = list(options.text)
    if options.texts is not None:
        try:
            lines = options.texts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--texts {options.texts}: cannot be read ({error})") from None
        texts += [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError("match: give at least one --text, a file --texts, or pairs --csv")
    return texts


def _line(
    item: WorkItem, text: Optional[str], task: Task[Any], result: Result, place: int = 0
) -> Line:
    """One result for programs and people; a place of 0 is no rank."""
    asked = {task.asks: text} if task.asks else {}
    rank = {"rank": place} if place else {}
    shown = (f"#{place}  " if place else "") + result.shown
    subject = text if task.asks else None
    fields = {**asked, **rank, **result.record()}
    return Line(item.image, subject, task.artifacts.target, shown, fields)


def _run(
    kind: Any,
    options: argparse.Namespace,
    items: Sequence[WorkItem],
    subjects: Sequence[str],
    work: Work,
) -> int:
    names = targets(options)
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
            left = [item for item in items if item not in bad]
            if options.timing:
                _warm_up(task, left, work)
            begin = time.perf_counter()
            done = _stream(task, left, work, measured, report, bad)
            if done:
                rates[target] = done / (time.perf_counter() - begin)
    report.print_table()
    if options.timing:
        report.print_timings(timings, rates)
    if options.show is not None:
        # Drawing needs more of Pillow than captioning does.
        from .drawing import draw_results

        draw_results(report.lines, options.show)
    return _INPUT_PROBLEM if report.problems else 0


def _stream(
    task: Task[Any],
    items: Sequence[WorkItem],
    work: Work,
    timings: Timings,
    report: Report,
    bad: Set[WorkItem],
) -> int:
    """Works through the items and reports them in order; returns how many images were good."""

    stream = task.stream_batches(
        items,
        lambda item: item.image,
        lambda group, stop: work(task, group, timings, stop),
        timings,
    )
    good = 0
    progress = Progress(len(items), task.artifacts.target)
    try:
        for item, outcome in stream:
            progress.clear()
            good += _reported(item, outcome, report, bad)
            progress.advance()
    finally:
        progress.clear()
    return good


def _reported(
    item: WorkItem, outcome: Union[List[Line], InputError], report: Report, bad: Set[WorkItem]
) -> int:
    if isinstance(outcome, InputError):
        bad.add(item)
        report.problem(item.image, str(outcome))
        return 0
    for line in outcome:
        report.add(line)
    return 1


def _warm_up(task: Task[Any], items: Sequence[WorkItem], work: Work) -> None:
    """Loading and first calls are not what a user wants to know per image."""
    for item in items:
        try:
            prepared = task.preprocessor.prepare(item.image)
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
    arguments = task_arguments(options, options.target)
    with QuestionAnswerer.from_artifacts(options.artifacts, load_ahead=True, **arguments) as task:
        embeds = task.encode([paths[0]], timings=timings)
        for question in _questions():
            try:
                result = task.answer(embeds, [question], timings=timings, **generation)[0]
            except InputError as error:
                report.problem(paths[0], str(error))
                continue
            report.add(_line(WorkItem(paths[0]), question, task, result))
            if not options.json:
                say(result.text)
    if options.timing:
        report.print_timings({options.target: timings}, {})
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
