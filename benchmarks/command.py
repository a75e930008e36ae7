"""``python -m benchmarks``: how fast everything runs here, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from configs.errors import ConfigError
from pipeline.command import exit_codes, select

#: Where the tables of the shipped full-size pipelines stand.
DOCUMENT = Path("docs/performance.md")


@exit_codes
def bench(
    config: Annotated[
        Path, typer.Option(help="Pipeline file; a random checkpoint it names is made here.")
    ] = Path("configs/random-base.yaml"),
    task: Annotated[str | None, typer.Option(help="Only these tasks, comma-separated.")] = None,
    variants: Annotated[
        str | None, typer.Option(help="Only these, comma-separated (default: all; quick: five).")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds of the main block; half for the others.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="About two minutes.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of every variant (default: all cores).")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget the rounds of an interrupted run.")
    ] = False,
    command_line: Annotated[
        bool,
        typer.Option(help="Also measure process start and a folder of images."),
    ] = True,
    endurance: Annotated[
        int | None,
        typer.Option(min=100, help="Also caption this many images in a row: does memory grow?"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of benchmark.json and .svg (default: beside the artifacts)."),
    ] = None,
    document: Annotated[
        Path | None,
        typer.Option(help="Document that gets the tables; a quick run writes none by default."),
    ] = None,
) -> None:
    """Measures torch, onnxruntime, the notebook's design and our modes; writes benchmark.json."""
    # Heavy imports wait until options are known to be good.
    from benchmarks.machine import available_cores
    from benchmarks.results import RESULT_FILE
    from benchmarks.run import BenchOptions, run_benchmark
    from benchmarks.table import markdown, write_tables
    from configs.layout import REPOSITORY_ROOT, Layout
    from configs.load import shown
    from pipeline.console import messages, output

    selection = select(config, task=task)
    folder = out or Layout(selection.pipeline).root
    result = run_benchmark(
        selection.pipeline,
        BenchOptions(
            config=config,
            tasks=selection.tasks,
            variants=chosen_variants(variants, quick=quick),
            rounds=rounds,
            quick=quick,
            threads=threads or available_cores(),
            fresh=fresh,
            command_line=command_line,
            out=folder,
            endurance=endurance,
        ),
    )
    output.print(markdown(result), markup=False, soft_wrap=True)
    wanted = document or (None if quick or rounds or variants or task else DOCUMENT)
    path = None if wanted is None else REPOSITORY_ROOT / wanted
    if path is not None and write_tables(path, result):
        messages.print(f"bench: tables in {shown(path)}")
    elif document is not None:
        raise ConfigError(
            f"{shown(REPOSITORY_ROOT / document)}: no markers for pipeline {result.pipeline}; "
            "add the two lines of benchmarks/table.py"
        )
    messages.print(f"bench: {shown(folder / RESULT_FILE)}")


def chosen_variants(text: str | None, *, quick: bool) -> tuple[str, ...]:
    """The variants asked for, in the table's order.

    Raises:
        ConfigError: an unknown name.
    """
    from benchmarks.schedule import VARIANTS

    if text is None:
        return ("torch_f32", "notebook", "exact", "fast", "int8") if quick else VARIANTS
    names = [name for name in text.replace(",", " ").split() if name]
    for name in names:
        if name not in VARIANTS:
            raise ConfigError(f"--variants {name}: unknown; choose from: {', '.join(VARIANTS)}")
    if not names:
        raise ConfigError(f"--variants: name at least one of: {', '.join(VARIANTS)}")
    return tuple(name for name in VARIANTS if name in names)
