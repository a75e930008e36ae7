"""Refuses what a pipeline file and its targets cannot give, before a long export begins."""

from __future__ import annotations

from pathlib import Path

import typer

from pipeline.command import exit_codes, select


@exit_codes
def main(
    config: Path = Path("configs/reference.yaml"),
    task: str | None = None,
    component: str | None = None,
    target: str | None = None,
    precision: str | None = None,
    backend: str | None = None,
) -> None:
    """Resolves a selection and does nothing else."""
    select(
        config,
        task=task,
        component=component,
        target=target,
        precision=precision,
        backend=backend,
    )


if __name__ == "__main__":
    typer.run(main)
