"""The command ``match``: texts ranked for images, images for texts, features kept and searched."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from ..decoding.batching import StopSignal, Timings
from ..errors import InputError
from ..tasks.image_index import ImageIndex
from ..tasks.matching import Match, Matcher
from .commands import INPUT_PROBLEM, Found, Given, Loaded, Work, line_of, pairs, run, usable_texts
from .inputs import WorkItem, text_lines, work_items
from .options import targets, task_arguments
from .reports import Columns, Line, Problem, Progress, Report, say


def match(options: argparse.Namespace) -> int:
    """Runs ``blip-edge match``; returns the exit code."""
    _check(options)
    if options.attention is not None:
        from .attention import attend

        return attend(Matcher, options, [text for _, text in _texts(options)])
    if options.save is not None:
        return _save(options)
    if options.load is not None:
        return _search(options)
    if options.csv is not None:
        items = work_items(options.images, options.csv, "text", recursive=options.recursive)
        work = partial(_judged, options=options)
        return run(Matcher, options, items, [], lambda texts: work(pairs(texts, {})))
    items = work_items(options.images, None, "text", recursive=options.recursive)
    given = _texts(options)
    per_text = len(items) > 1 and (options.per_text or len(given) == 1)
    arrange = partial(_per_text, by=options.rank_by) if per_text else None
    make_work = partial(_ranked, options=options)
    return run(Matcher, options, items, given, make_work, arrange=arrange)


def _check(options: argparse.Namespace) -> None:
    """Refuses options that do nothing together.

    Raises:
        InputError: names two of them.
    """
    texts = bool(options.text) or options.texts is not None
    ranks = {"--top-k": options.top_k is not None, "--per-text": options.per_text}
    idle: Dict[str, bool] = {}
    if options.save is not None:
        idle = {"--text, --texts": texts, "--load": options.load is not None, **ranks}
        idle["--csv"] = options.csv is not None
        idle["--compare"] = options.compare is not None
        idle["--threshold"] = options.threshold is not None
        mode = "--save keeps the images' features"
    elif options.load is not None:
        idle = {"image names": bool(options.images), "--csv": options.csv is not None}
        idle["--compare"] = options.compare is not None
        idle["--rank-by sum"] = options.rank_by == "sum"
        mode = "--load names the images, which are found by cosine"
    elif options.csv is not None:
        idle, mode = {"--text, --texts": texts, **ranks}, "--csv names the pairs"
        idle["--rank-by sum"] = options.rank_by == "sum"
    for name, given in idle.items():
        if given:
            raise InputError(f"match: {mode}; leave out {name}")


def _ranked(texts: Sequence[str], options: argparse.Namespace) -> Work:
    """Work that ranks the texts for each image."""
    # The head need not look where the cosine decides.
    every = 0 if options.rank_by == "itc" else len(texts)
    top_k = every if options.top_k is None else options.top_k
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
                _line(item, texts[column], task, ranking.match(row, column), options, place)
                for place, column in enumerate(ranking.texts_for(row, options.rank_by), start=1)
                if _enough(ranking.match(row, column), options)
            ]
            for row, (item, _) in enumerate(group)
        ]

    return work


def _line(
    item: WorkItem,
    text: str,
    task: Any,
    found: Match,
    options: argparse.Namespace,
    place: int = 0,
) -> Line:
    """One match; what its ranking goes by is said where that is no field of its own."""
    line = line_of(item, text, task, found, place)
    score = found.score(options.rank_by)
    if options.rank_by != "sum":
        return line
    shown = line.text if score is None else f"score {score:.4f}  {line.text}"
    return replace(line, text=shown, fields={**line.fields, "score": score})


def _enough(found: Match, options: argparse.Namespace) -> bool:
    score = found.score(options.rank_by)
    return options.threshold is None or (score is not None and score >= options.threshold)


def _judged(work: Work, options: argparse.Namespace) -> Work:
    """Work without the pairs that score too low."""

    def kept(task: Any, *rest: Any) -> List[List[Found]]:
        return [
            [one for one in found if isinstance(one, Problem) or _is_kept(one, options)]
            for found in work(task, *rest)
        ]

    return kept


def _is_kept(line: Line, options: argparse.Namespace) -> bool:
    if options.threshold is None:
        return True
    return bool(line.fields[_FIELDS[options.rank_by]] >= options.threshold)


def _per_text(lines: List[Line], by: str) -> List[Line]:
    """The images of each text, best first, the texts in the order in which they were given."""
    groups: Dict[Optional[str], List[Line]] = {}
    for line in lines:
        groups.setdefault(line.subject, []).append(line)
    return [
        replace(line, rank=place)
        for mine in groups.values()
        for place, line in enumerate(sorted(mine, key=partial(_badness, by=by)), start=1)
    ]


_FIELDS = {"itm": "probability", "itc": "cosine", "sum": "score"}


def _badness(line: Line, by: str) -> Any:
    score = line.fields[_FIELDS[by]]
    return (np.inf if score is None else -score), -line.fields["cosine"]


def _texts(options: argparse.Namespace) -> List[Given]:
    texts: List[Given] = [("--text", text) for text in options.text]
    if options.texts is not None:
        texts += text_lines(options.texts)
    if not texts:
        raise InputError(
            "match: give at least one --text, a file --texts, pairs --csv, or --save FILE"
        )
    return texts


def _save(options: argparse.Namespace) -> int:
    """Embeds images, and keeps their features in a file."""
    items = work_items(options.images, None, "text", recursive=options.recursive)
    if not options.save.parent.is_dir():
        raise InputError(f"--save {options.save}: name a file in a folder that exists")
    report, timings = Report(as_json=options.json), Timings()
    (target,) = targets(options)
    parts: List[ImageIndex] = []
    progress = Progress(len(items), target)
    with Matcher.from_artifacts(
        options.artifacts, load_ahead=True, **task_arguments(options, target)
    ) as task:
        report.domain = task.manifest.domain

        def embed(group: List[Any], stop: StopSignal) -> List[ImageIndex]:
            whole = task.embed_images(
                [image for _, image in group],
                [str(item.image) for item, _ in group],
                timings=timings,
                stop=stop,
            )
            return [
                ImageIndex((name,), whole.features[row : row + 1], whole.made_by)
                for row, name in enumerate(whole.names)
            ]

        for item, found in task.stream_batches(items, lambda one: one.source, embed, timings):
            progress.clear()
            if isinstance(found, InputError):
                report.problem(str(found), image=str(item.image), target=target)
            else:
                parts.append(found)
            progress.advance()
        progress.clear()
    if parts:
        names = tuple(name for part in parts for name in part.names)
        features = np.concatenate([part.features for part in parts])
        ImageIndex(names, features, parts[0].made_by).save(options.save)
        say(f"note: {len(parts)} images in {options.save}", sys.stderr)
    report.conclude()
    if options.timing:
        report.print_timings({target: timings}, {})
    return INPUT_PROBLEM if report.problems else 0


def _search(options: argparse.Namespace) -> int:
    """Finds the images of a file of features that fit each text best."""
    index = ImageIndex.load(options.load)
    (target,) = targets(options)
    timings = Timings()
    given = _texts(options)
    with Matcher.from_artifacts(options.artifacts, **task_arguments(options, target)) as task:
        report = Report(as_json=options.json)
        report.domain = task.manifest.domain
        texts = [text for text in usable_texts(task, given, [], report) if text is not None]
        report.columns = Columns.of([Path(name) for name in index.names], texts)
        found = task.search(
            index,
            texts,
            top_k=options.top_k,
            same_artifacts=not options.no_verify_digest,
            timings=timings,
        )
        unknown = float("nan")
        for text, mine in zip(texts, found):
            for place, (name, cosine) in enumerate(mine, start=1):
                one = Match(unknown, cosine, (unknown, unknown))
                if options.threshold is None or cosine >= options.threshold:
                    report.add(line_of(WorkItem(Path(name)), text, task, one, place))
    report.conclude()
    if options.timing:
        report.print_timings({target: timings}, {})
    return INPUT_PROBLEM if report.problems else 0
