"""Makes a table of drafts from a list of texts: ``blip-edge drafts``."""

from __future__ import annotations

import os
import tempfile
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, DefaultDict, Iterable, List

import numpy as np

from ..errors import ArtifactError, InputError
from ..files.integrity import FileRecord, file_sha256
from ..files.manifests import TaskManifest, manifest_text
from ..preprocessing.processor import TextTokenizer
from .drafts import BITS, CONTEXT, packed
from .settings import DRAFT_TABLE

#: Entries of a table, 8 bytes each: those of the contexts that occur most often.
MOST_ENTRIES = 100_000
#: A token that follows a context more rarely is no draft worth a pass.
LEAST_SHARE = 0.1


@dataclass(frozen=True)
class Made:
    """What a table was made from, and what it has."""

    texts: int
    entries: int
    path: Path


def make_table(manifest: TaskManifest, tokenizer: TextTokenizer, texts: Iterable[str]) -> Made:
    """Puts a table of drafts into a task's folder and lists it in the task's manifest.

    Raises:
        InputError: no texts, or a vocabulary that entries have no room for.
        ArtifactError: the folder cannot be written.
    """
    if manifest.text.vocabulary_size > 1 << BITS:
        raise InputError(
            f"{manifest.path}: text.vocabulary_size {manifest.text.vocabulary_size}: a table of "
            f"drafts holds at most {1 << BITS} tokens"
        )
    rows = [[*tokenizer.prompt(text), manifest.text.end_token_id] for text in texts if text.strip()]
    table = _table(rows)
    if not len(table):
        raise InputError("drafts: no texts; pass a file with one text per line")
    path = manifest.folder / DRAFT_TABLE
    _replaced(path, lambda stream: np.save(stream, table, allow_pickle=False))
    record = FileRecord(sha256=file_sha256(path), size_bytes=path.stat().st_size)
    listed = replace(manifest, files={**manifest.files, DRAFT_TABLE: record})
    _replaced(manifest.path, lambda stream: stream.write(manifest_text(listed).encode()))
    return Made(len(rows), len(table), path)


def _table(rows: Iterable[List[int]]) -> np.ndarray:
    """Sorted entries: a context of up to three tokens, and what follows it most often."""
    following: DefaultDict[int, Counter[int]] = defaultdict(Counter)
    for row in rows:
        for end in range(1, len(row)):
            for length in range(1, min(CONTEXT, end) + 1):
                following[packed(row[end - length : end])][row[end]] += 1
    kept = []
    for context, tokens in following.items():
        token, count = min(tokens.items(), key=lambda item: (-item[1], item[0]))
        total = sum(tokens.values())
        if count >= LEAST_SHARE * total:
            kept.append((-total, context << BITS | token))
    entries = sorted(entry for _, entry in sorted(kept)[:MOST_ENTRIES])
    return np.array(entries, dtype=np.uint64)


def _replaced(path: Path, write: Callable[[Any], object]) -> None:
    """Writes a file whole or not at all."""
    try:
        handle, name = tempfile.mkstemp(dir=str(path.parent), prefix=".")
        try:
            with os.fdopen(handle, "wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        reason = error.strerror or error
        raise ArtifactError(
            f"{path}: cannot be written ({reason}); make room or change its rights"
        ) from None
