"""The commands ``caption`` and ``vqa``, and what every command does with items of work."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

from ..decoding.batching import StopSignal, Timings, fixed_batch
from ..errors import InputError
from ..generation.settings import GenerationSettings
from ..preprocessing.images import PreparedImage
from ..tasks.task import Result, Task
from .inputs import WorkItem, prompted, text_lines, work_items
from .options import generation_arguments, targets, task_arguments
from .reports import Columns, Line, Problem, Progress, Report

#: Images that ``--show`` draws.
_SHOWN = 60
#: Exit code where something given could not be used.
INPUT_PROBLEM = 2

Loaded = Tuple[WorkItem, PreparedImage]
Found = Union[Line, Problem]
#: A task, loaded images, where to count time and when to stop, to the results of every image.
Work = Callable[[Any, Sequence[Loaded], Timings, Optional[StopSignal]], List[List[Found]]]
#: The texts given for every image that a task can use, to the work on them.
MakeWork = Callable[[List[Any]], Work]
#: Results in the order in which they come out, with their ranks.
Arrange = Callable[[List[Line]], List[Line]]
#: Options that show people how sure the model is.
_CONFIDENT = ("output_scores", "score", "answers")
#: Where a text was given, and the text.
Given = Tuple[str, Optional[str]]


def caption(options: argparse.Namespace) -> int:
    """Runs ``blip-edge caption``; returns the exit code."""
    from ..tasks.generating import Captioner

    generation = _generation(options)
    if options.attention is not None:
        from .attention import attend

        return attend(Captioner, options, [options.prompt], generation)
    items = work_items(options.images, options.csv, "prompt", recursive=options.recursive)
    if options.prompt_file is not None:
        if options.csv is not None:
            raise InputError("caption: --csv names the prompts; leave out --prompt-file")
        items = prompted(items, options.prompt_file)
    also = None
    if options.sidecar is not None:
        from .sidecars import Sidecars

        also = Sidecars.of(options, items)
        items = also.left(items)
        if not items:
            return 0
    elif options.prefix or options.suffix or options.existing:
        raise InputError("caption: --prefix, --suffix and --existing belong to --sidecar")
    # An image with a prompt of its own gets no free caption beside it.
    own = any(item.texts for item in items) and options.prompt is None
    given = [] if own else [("--prompt", options.prompt)]

    def make_work(texts: List[Any]) -> Work:
        if options.score:
            from .scores import scores

            return scores(texts, options.score)
        return pairs(texts, generation)

    return run(Captioner, options, items, given, make_work, also=also)


def answer(options: argparse.Namespace) -> int:
    """Runs ``blip-edge vqa``; returns the exit code."""
    from ..tasks.answering import QuestionAnswerer

    generation = _generation(options)
    if options.attention is not None:
        from .attention import attend

        return attend(QuestionAnswerer, options, options.question, generation)
    if not options.question and options.csv is None:
        from .asking import ask_interactively

        return ask_interactively(options, generation)
    items = work_items(options.images, options.csv, "question", recursive=options.recursive)
    given = [("--question", question) for question in options.question]
    return run(QuestionAnswerer, options, items, given, lambda texts: pairs(texts, generation))


def pairs(texts: Sequence[Optional[str]], options: Dict[str, Any]) -> Work:
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
            found.append([bad or line_of(item, text, task, next(rest)) for text, bad in every])
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
            found.append(Problem(f"{place}: {error}", {text_key(task): text}))
    return found


def _generation(options: argparse.Namespace) -> Dict[str, Any]:
    """The generation arguments given, which are checked before anything is loaded."""
    generation = generation_arguments(options)
    answers = getattr(options, "answers", None)
    if answers is not None:
        texts = [text for _, text in text_lines(answers, "--answers")]
        return {**generation, "answers": texts, "answer_candidates": options.answer_candidates}
    if getattr(options, "answer_candidates", None) is not None:
        raise InputError("--answer-candidates: does nothing without --answers; leave it out")
    GenerationSettings.from_arguments(**generation)
    return generation


def text_key(task: Any) -> str:
    """What a record calls the text of a task."""
    return task.asks or "prompt"


def line_of(
    item: WorkItem, text: Optional[str], task: Task[Any], result: Result, place: int = 0
) -> Line:
    """One result for programs and people; a place of 0 is no rank."""
    asked = {} if text is None else {text_key(task): text}
    subject = text if task.asks else None
    fields = {**asked, **result.record()}
    warning = task.read_text(text).warning
    return Line(item.image, subject, task.artifacts.target, result.shown, fields, place, warning)


def run(
    kind: Any,
    options: argparse.Namespace,
    items: Sequence[WorkItem],
    given: Sequence[Given],
    make_work: MakeWork,
    *,
    arrange: Optional[Arrange] = None,
    also: Optional[Callable[[Line], None]] = None,
) -> int:
    """Works on items, and on what is given for all of them, on every target.

    ``arrange`` orders the results of all items, which then come out together; ``also`` is called
    with each result.
    """
    names = targets(options)
    if options.show is not None:
        # Drawing needs more of Pillow than captioning does.
        from .drawing import check_writable, draw_results

        check_writable(options.show, options.font)
    elif options.font is not None:
        raise InputError("--font: does nothing without --show; leave it out")
    subjects = [text for _, text in given if text is not None] if kind.asks else []
    asked = [*subjects, *(text for item in items for text in item.texts if kind.asks)]
    paths = [item.image for item in items]
    columns = Columns.of(paths, asked, several_targets=len(names) > 1)
    keep = 0 if options.show is None else _SHOWN
    report = Report(as_json=options.json, columns=columns, keep_images=keep)
    report.also = also
    confident = any(getattr(options, name, None) for name in _CONFIDENT)
    timings: Dict[str, Timings] = {}
    rates: Dict[str, float] = {}
    bad: Set[WorkItem] = set()
    for target in names:
        measured = timings[target] = Timings()
        arguments = task_arguments(options, target)
        with kind.from_artifacts(options.artifacts, load_ahead=True, **arguments) as task:
            report.domain = task.manifest.domain
            left = [item for item in items if item not in bad]
            usable = usable_texts(task, given, left, report)
            work = make_work(usable)
            if options.timing:
                _warm_up(task, left, work)
            begin = time.perf_counter()
            held: List[Line] = []
            done = 0
            for item, outcome in _stream(task, left, work, measured):
                done += not isinstance(outcome, InputError)
                for line in _results(item, outcome, task, usable, report, bad):
                    shown = replace(line, confident=confident)
                    held.append(shown) if arrange else report.add(shown)
            if done:
                rates[target] = done / (time.perf_counter() - begin)
            for line in arrange(held) if arrange else ():
                report.add(line)
            report.begin_target()
    report.print_table()
    report.conclude()
    if options.timing:
        report.print_timings(timings, rates)
    if options.show is not None:
        draw_results(report.lines, options.show, options.max_pixels, options.font)
    return INPUT_PROBLEM if report.problems else 0


def usable_texts(
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
        report.problem(message, [{text_key(task): text}], target=task.artifacts.target)
    return usable


def _stream(
    task: Task[Any], items: Sequence[WorkItem], work: Work, timings: Timings
) -> Iterator[Tuple[WorkItem, Union[List[Found], InputError]]]:
    """Works through the items; yields each in order, with what came of it."""
    stream = task.stream_batches(
        items,
        lambda item: item.source,
        lambda group, stop: work(task, group, timings, stop),
        timings,
    )
    progress = Progress(len(items), task.artifacts.target)
    try:
        for item, outcome in stream:
            progress.clear()
            yield item, outcome
            progress.advance()
    finally:
        progress.clear()


def _results(
    item: WorkItem,
    outcome: Union[List[Found], InputError],
    task: Task[Any],
    given: Sequence[Optional[str]],
    report: Report,
    bad: Set[WorkItem],
) -> Iterator[Line]:
    """The results of an item; what is wrong with it is reported."""
    about: Dict[str, Any] = {"image": str(item.image), "target": task.artifacts.target}
    if isinstance(outcome, InputError):
        bad.add(item)
        texts = [text for text in (*item.texts, *given) if text is not None]
        report.problem(str(outcome), [{text_key(task): text} for text in texts] or ({},), **about)
        return
    for found in outcome:
        if isinstance(found, Problem):
            report.problem(found.message, **about, **found.fields)
        else:
            yield found


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


COMMANDS: Dict[str, Any] = {"caption": caption, "vqa": answer}
