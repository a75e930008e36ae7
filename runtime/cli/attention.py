"""``--attention``: what each word of one text looks at in one picture, drawn."""

from __future__ import annotations

import argparse
from typing import Any, Dict, Optional, Sequence

from ..errors import InputError
from ..preprocessing.images import load_image
from ..tasks.attention import attention_maps
from .commands import line_of
from .drawing import check_writable, draw_attention
from .inputs import WorkItem, image_paths, image_source
from .options import targets, task_arguments
from .reports import Columns, Report


def attend(
    kind: Any,
    options: argparse.Namespace,
    texts: Sequence[Optional[str]],
    generation: Optional[Dict[str, Any]] = None,
) -> int:
    """Answers one text about one image, and draws its attention; returns the exit code.

    A caption's words are its own, a question's or description's are those given.
    """
    path, images = options.attention, image_paths(options.images)
    if len(images) != 1 or len(texts) != 1 or options.csv is not None:
        raise InputError("--attention: draws one image and one text; name one of each")
    if options.compare is not None or options.show is not None:
        raise InputError("--attention: does nothing beside --compare or --show; leave it out")
    check_writable(path, options.font, "--attention")
    (target,), (image,), (text,) = targets(options), images, texts
    source = image_source(image)
    report = Report(as_json=options.json, columns=Columns.of([image], filter(None, texts)))
    with kind.from_artifacts(options.artifacts, **task_arguments(options, target)) as task:
        report.domain = task.manifest.domain
        result = task(source, text, **(generation or {}))
        report.add(line_of(WorkItem(image), text, task, result))
        shown = text if task.asks and text is not None else result.text
        found = attention_maps(task, source, shown)
        picture = load_image(source, maximum_pixels=options.max_pixels)
        draw_attention(picture, found.words, found.maps, path, options.font)
    report.conclude()
    return 0
