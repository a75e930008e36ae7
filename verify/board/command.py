"""``python -m verify board-test``: a folder that proves artifacts on a board in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from configs.errors import ConfigError
from configs.load import shown
from pipeline.command import exit_codes, select
from pipeline.console import messages
from verify.board.bundle import write_bundles


@exit_codes
def board_test(
    config: Annotated[Path, typer.Option(help="Pipeline file.")] = Path("configs/reference.yaml"),
    target: Annotated[str | None, typer.Option(help="Chips, comma-separated.")] = None,
    precision: Annotated[str | None, typer.Option(help="Precisions, comma-separated.")] = None,
    task: Annotated[str | None, typer.Option(help="Tasks, comma-separated.")] = None,
) -> None:
    """Writes a folder to copy to a board; judge its results with verify --from-board."""
    if target is None:
        raise ConfigError("board-test: name the chip: make board-test TARGET=bm1684x")
    selection = select(config, task=task, target=target, precision=precision, backend="sophon")
    for folder in write_bundles(selection, Path(shown(config))):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        messages.print(f"{shown(folder)}: {size / 1e6:.0f} MB; copy it and run: sh run.sh")
