"""``blip-edge caption --sidecar``: each caption in a text file beside its image."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Dict, List, Sequence

from ..errors import InputError
from ..files.image_names import IMAGE_SUFFIXES
from ..files.whole_files import write_whole
from .inputs import STANDARD_INPUT, WorkItem
from .reports import Line, say

_ENDING = re.compile(r"\.?[A-Za-z0-9_-]{1,20}")


class Sidecars:
    """Writes captions beside the images that have none; a run that ended early goes on so."""

    def __init__(self, ending: str, prefix: str, suffix: str, *, overwrite: bool) -> None:
        """Looks at nothing yet.

        Raises:
            InputError: an ending that no text file should have.
        """
        self._ending = "." + ending.lstrip(".")
        if not _ENDING.fullmatch(ending) or self._ending.lower() in IMAGE_SUFFIXES:
            raise InputError(f"--sidecar {ending}: name the ending of a text file, e.g. txt")
        self._prefix, self._suffix = prefix, suffix
        self._overwrite = overwrite

    @classmethod
    def of(cls, options: argparse.Namespace, items: Sequence[WorkItem]) -> "Sidecars":
        """What options ask for, if these images can be served.

        Raises:
            InputError: several captions for one file, or a file outside the table's folder.
        """
        made = cls(
            options.sidecar,
            options.prefix or "",
            options.suffix or "",
            overwrite=options.existing == "overwrite",
        )
        if options.compare is not None or options.score:
            raise InputError("--sidecar: does nothing beside --compare or --score; leave it out")
        owners: Dict[Path, Path] = {}
        for item in items:
            path = made.path(item.image)
            if item.image == STANDARD_INPUT:
                raise InputError("--sidecar: there is nothing beside standard input; leave it out")
            if path in owners or len(item.texts) > 1:
                twice = owners.get(path, item.image)
                raise InputError(
                    f"--sidecar: {path} would get two captions ({twice}, {item.image})"
                )
            if item.problem is None:
                owners[path] = item.image
        if options.csv is not None:
            folder = Path(options.images[0]) if options.images else options.csv.parent
            inside = folder.resolve()
            for path in owners:
                if inside not in path.resolve().parents:
                    raise InputError(f"--sidecar: {path}: outside {folder}, which --csv is about")
        return made

    def path(self, image: Path) -> Path:
        """The file of an image."""
        return image.with_suffix(self._ending)

    def left(self, items: Sequence[WorkItem]) -> List[WorkItem]:
        """The images that are still to be captioned."""
        if self._overwrite:
            return list(items)
        left = [item for item in items if not self.path(item.image).exists()]
        if len(left) < len(items):
            done = f"{len(items) - len(left)} of {len(items)} images have their {self._ending} file"
            say(f"note: {done}; --existing overwrite writes it anew", sys.stderr)
        return left

    def __call__(self, line: Line) -> None:
        """Writes one caption.

        Raises:
            InputError: its file cannot be written.
        """
        caption = line.fields["text"]
        text = f"{self._prefix}{caption}{self._suffix}\n"
        write_whole(self.path(line.image), text.encode("utf-8", "surrogateescape"))
