"""The commands that go on until they are stopped: ``serve`` and ``watch``."""

from __future__ import annotations

import argparse
import json
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ContextManager, Dict, List, Mapping, Optional, TextIO, Tuple

from ..errors import BackendError, InputError
from ..files.image_names import image_files
from .options import generation_arguments, targets, task_arguments
from .reports import say_json

_SERVER_NEEDS = ("starlette", "uvicorn", "prometheus_client")
#: Size and time of last change in nanoseconds: a file that keeps both is written to no more.
Look = Tuple[int, int]


def serve(options: argparse.Namespace) -> int:
    """Runs ``blip-edge serve``; returns the exit code."""
    try:
        from ..server import command
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] not in _SERVER_NEEDS:
            raise
        raise BackendError(
            f"serve: {error.name} is not installed; pip install {' '.join(_SERVER_NEEDS)}"
        ) from None
    return command.serve(options)


def watch(options: argparse.Namespace) -> int:
    """Runs ``blip-edge watch``; returns the exit code."""
    from ..generation.settings import GenerationSettings
    from ..tasks.generating import Captioner

    if not options.folder.is_dir():
        raise InputError(f"{options.folder}: no such folder; name one that exists")
    if not 0 < options.interval <= 3600:
        raise InputError(f"--interval {options.interval}: must be above 0 and at most 3600 seconds")
    generation = generation_arguments(options)
    GenerationSettings.from_arguments(**generation)
    (target,) = targets(options) if options.compare is None else _one_target()
    watched = _Watched(options.folder, options.recursive, _written(options.output))
    arguments = task_arguments(options, target)
    with _opened(options.output) as output, Captioner.from_artifacts(
        options.artifacts, load_ahead=True, **arguments
    ) as captioner:
        captioner.read_text(options.prompt)
        while True:
            settled = watched.settled()
            stream = captioner.stream(settled, options.prompt, **generation)
            for path, (_, outcome) in zip(settled, stream):
                if isinstance(outcome, InputError):
                    found: Dict[str, Any] = {"error": str(outcome)}
                else:
                    found = outcome.record()
                look = watched.look(path)
                _write({"image": str(path), "target": target, "changed": look, **found}, output)
            if options.once and not watched.unsettled and not settled:
                return 0
            time.sleep(options.interval)


class _Watched:
    """The images of a folder: which are whole, and which have their caption."""

    def __init__(self, folder: Path, recursive: bool, done: Mapping[str, Look]) -> None:
        self._folder = folder
        self._recursive = recursive
        self._done = dict(done)
        self._seen: Dict[Path, Look] = {}
        self.unsettled = True

    def settled(self) -> List[Path]:
        """Images without a caption that are as they were at the last look; the oldest first."""
        now = dict(self._looks())
        fresh = {path: look for path, look in now.items() if self._done.get(str(path)) != look}
        settled = [path for path, look in fresh.items() if self._seen.get(path) == look]
        self.unsettled = len(settled) < len(fresh)
        self._seen = now
        self._done = {str(path): now[path] for path in now if path not in fresh}
        self._done.update({str(path): now[path] for path in settled})
        return sorted(settled, key=lambda path: (now[path][1], path))

    def look(self, path: Path) -> Look:
        """How an image was when it was found to be whole."""
        return self._seen[path]

    def _looks(self) -> List[Tuple[Path, Look]]:
        found = []
        try:
            inside = self._folder.rglob("*") if self._recursive else self._folder.iterdir()
            paths = image_files(inside)
        except OSError as error:
            raise InputError(f"{self._folder}: cannot be read ({error})") from None
        for path in paths:
            try:
                status = path.stat()
            except OSError:
                continue  # gone since
            if status.st_size:
                found.append((path, (status.st_size, status.st_mtime_ns)))
        return found


def _one_target() -> List[str]:
    raise InputError("--compare: watch takes one --target; leave it out")


def _written(output: Optional[Path]) -> Dict[str, Look]:
    """The images that an earlier run wrote of, as they were then."""
    done: Dict[str, Look] = {}
    if output is None or not output.exists():
        return done
    with output.open("rb") as lines:
        for line in lines:
            try:
                found = json.loads(line)
                size, changed = found["changed"]
                done[found["image"]] = (size, changed)
            except (ValueError, KeyError, TypeError):
                continue  # the end of a run that was killed
    return done


def _opened(output: Optional[Path]) -> ContextManager[Optional[TextIO]]:
    if output is None:
        return nullcontext()
    try:
        stream = output.open("a", encoding="utf-8")
        with output.open("rb") as written:
            size = written.seek(0, os.SEEK_END)
            written.seek(max(0, size - 1))
            # A run that was killed may have left half a line.
            stream.write("" if written.read() in (b"", b"\n") else "\n")
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written ({error})") from None
    return stream


def _write(record: Dict[str, Any], output: Optional[TextIO]) -> None:
    if output is None:
        say_json(record)
        return
    output.write(json.dumps(record, allow_nan=False) + "\n")
    output.flush()
    os.fsync(output.fileno())
