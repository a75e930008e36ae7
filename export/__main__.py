"""``python -m export``: checkpoints -> one verified ONNX per component."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from configs.layout import Layout
from configs.load import shown
from export.checkpoint import Source
from export.pipeline import TaskPlan, find_sources, plan, run
from pipeline.command import Selection, exit_codes, select
from pipeline.console import messages, output
from pipeline.owner import claim

application = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@application.command()
@exit_codes
def main(
    config: Annotated[Path, typer.Option(help="Pipeline file.")] = Path("configs/reference.yaml"),
    task: Annotated[str | None, typer.Option(help="Only these tasks, comma-separated.")] = None,
    component: Annotated[
        str | None, typer.Option(help="Only these components, comma-separated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build even what is unchanged.")] = False,
) -> None:
    """Exports every component of a pipeline's checkpoints to ONNX, checked against the model."""
    selection = select(config, task=task, component=component)
    claim(selection, force=force, keep=False)
    if dry_run:
        sources = find_sources(selection)
        there = [source for source in sources if not source.missing]
        _print_plan(plan(selection, there, force=force))
        _print_downloads(selection, [source for source in sources if source.missing])
        return
    plans = plan(selection, force=force)
    if not any(item.work for item in plans):
        count = sum(len(item.items) for item in plans)
        messages.print(f"export: unchanged, {count} components are up to date")
        return
    built = run(selection, plans, force=force)
    # Last: a checkpoint that cannot be used leaves nothing behind, not even this note.
    claim(selection, force=force)
    messages.print(f"export: {built} artifacts built")


def _print_plan(plans: list[TaskPlan]) -> None:
    """Comment lines: the compile stage's dry run goes on with a shell script."""
    for item in plans:
        identity = item.files.identity
        revision = f" at {identity.revision}" if identity.revision else ""
        name = f"{identity.source}{revision}, {identity.architecture}"
        # A wrapped comment would be a command.
        output.print(f"# {item.task}: {name}", soft_wrap=True)
        state = "unchanged" if item.task_item.reusable else "build"
        path = item.task_item.layout.task_manifest(item.task)
        output.print(f"#   {state:9}  {shown(path)}", soft_wrap=True)
        for entry in item.items:
            state = "unchanged" if entry.reusable else "build"
            output.print(f"#   {state:9}  {shown(entry.location.file('.onnx'))}", soft_wrap=True)


def _print_downloads(selection: Selection, sources: list[Source]) -> None:
    layout = Layout(selection.pipeline)
    for source in sources:
        size = sum(source.missing.values()) / 1e6
        name = f"{source.name} at {source.revision}"
        output.print(f"# {source.task}: {name}, {size:,.0f} MB to download", soft_wrap=True)
        output.print(f"#   build      {shown(layout.task_manifest(source.task))}", soft_wrap=True)
        for component in selection.task_components(source.task):
            path = layout.onnx(source.task, component).file(".onnx")
            output.print(f"#   build      {shown(path)}", soft_wrap=True)


if __name__ == "__main__":
    application()
