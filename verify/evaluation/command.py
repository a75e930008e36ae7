"""``python -m verify evaluate``: the command line of the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from configs.command import exit_codes, select
from configs.errors import ConfigError


@exit_codes
def evaluate(
    config: Annotated[Path, typer.Option(help="Pipeline file.")] = Path("configs/reference.yaml"),
    task: Annotated[str | None, typer.Option(help="Only these tasks, comma-separated.")] = None,
    target: Annotated[str | None, typer.Option(help="Only these targets, comma-separated.")] = None,
    precision: Annotated[str | None, typer.Option(help="Only these precisions.")] = None,
) -> None:
    """Answers of targets over a data set, side by side with the checkpoint's."""
    select(config, task=task, target=target, precision=precision)
    raise ConfigError("verify evaluate: in preparation; see docs/evaluation.md")
