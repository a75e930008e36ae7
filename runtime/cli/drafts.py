"""The command ``drafts``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..files.manifests import TASK_MANIFEST, read_task_manifest
from ..preprocessing.processor import TextTokenizer
from ..tasks.artifacts import task_folder
from .inputs import text_lines
from .reports import say


def drafts(options: argparse.Namespace) -> int:
    """Runs ``blip-edge drafts``; returns the exit code."""
    from ..generation.draft_table import make_table

    manifest = read_task_manifest(task_folder(options.artifacts, options.task) / TASK_MANIFEST)
    tokenizer = TextTokenizer(manifest.folder / "processor" / "tokenizer.json", manifest.text)
    texts = [text for _, text in text_lines(Path(options.texts))]
    made = make_table(manifest, tokenizer, texts)
    say(f"{made.path}: {made.entries} entries from {made.texts} texts")
    return 0
