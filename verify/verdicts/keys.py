"""``python -m verify keys``: one digest of the keys of everything built and checked.

A CI service's cache is named by it: the same keys, the same artifacts and finished checks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from configs.layout import MANIFEST_SUFFIX, Layout
from configs.load import load_pipeline, shown
from pipeline.command import exit_codes
from pipeline.json_file import read_lines, stored
from pipeline.manifest import key_of
from verify.results import STORE_FILE


@exit_codes
def keys(
    config: Annotated[Path, typer.Option(help="Pipeline file.")] = Path("configs/reference.yaml"),
) -> None:
    """Prints one digest of the keys of everything built and checked."""
    layout = Layout(load_pipeline(config))
    found = {
        shown(path): stored(path, lambda manifest: str(manifest["key"]))
        for path in sorted(layout.root.glob(f"*/**/*{MANIFEST_SUFFIX}"))
    }
    done = sorted({str(line.get("key")) for line in read_lines(layout.root / STORE_FILE)})
    typer.echo(key_of({"artifacts": found, "checks": done})[:16])
