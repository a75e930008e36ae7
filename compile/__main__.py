"""``python -m compile``: exported ONNX -> artifacts for every target of a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compile.bmodel.commands import calibrate, prepare
from compile.bmodel.estimates.command import estimate
from compile.pipeline import jobs, run, show_plan
from configs.errors import ConfigError
from pipeline.command import exit_codes, select
from pipeline.owner import claim

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
@exit_codes
def main(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="pipeline file")] = Path("configs/reference.yaml"),
    target: Annotated[str | None, typer.Option(help="targets, comma-separated")] = None,
    precision: Annotated[str | None, typer.Option(help="precisions, comma-separated")] = None,
    task: Annotated[str | None, typer.Option(help="tasks, comma-separated")] = None,
    component: Annotated[str | None, typer.Option(help="components, comma-separated")] = None,
    backend: Annotated[str | None, typer.Option(help="only targets of: openvino, sophon")] = None,
    dry_run: Annotated[bool, typer.Option(help="print a script, run nothing")] = False,
    force: Annotated[bool, typer.Option(help="build even what is unchanged")] = False,
) -> None:
    """Compile exported graphs to OpenVINO IR and SOPHON BModels."""
    if context.invoked_subcommand:
        return
    if backend not in (None, "openvino", "sophon"):
        raise ConfigError(f"--backend {backend}: unknown; choose from: openvino, sophon")
    selection = select(
        config,
        task=task,
        component=component,
        target=target,
        precision=precision,
        backend=backend,
    )
    claim(selection, force=force, keep=not dry_run)
    selected = jobs(selection)
    if dry_run:
        show_plan(selected, config)
    else:
        run(selected, force=force)


app.command()(estimate)
for step in (prepare, calibrate):
    app.command(hidden=True)(step)


if __name__ == "__main__":
    app()
