"""``python -m benchmarks``: how fast everything runs here, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from configs.errors import ConfigError
from configs.layout import Layout
from configs.load import shown
from pipeline.command import exit_codes, select
from pipeline.console import messages, output


@exit_codes
def bench(
    config: Annotated[
        Path, typer.Option(help="Pipeline file; a random checkpoint it names is made here.")
    ] = Path("configs/random-base.yaml"),
    task: Annotated[str | None, typer.Option(help="Only these tasks, comma-separated.")] = None,
    variants: Annotated[
        str | None, typer.Option(help="Only these, comma-separated (default: all; quick: five).")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Default: 9; quick: 5.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Batch 1 only, fewer variants and rounds.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of every variant (default: all cores).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of benchmark.json and .svg (default: beside the artifacts)."),
    ] = None,
) -> None:
    """Measures torch, onnxruntime, the notebook's design and our modes; writes benchmark.json."""
    selection = select(config, task=task)
    chosen = chosen_variants(variants, quick=quick)
    # Heavy imports wait until options are known to be good.
    from benchmarks.machine import available_cores
    from benchmarks.results import RESULT_FILE
    from benchmarks.run import BenchOptions, run_benchmark
    from benchmarks.table import markdown

    folder = out or Layout(selection.pipeline).root
    options = BenchOptions(
        config=config,
        tasks=selection.tasks,
        variants=chosen,
        rounds=rounds or (5 if quick else 9),
        quick=quick,
        threads=threads or available_cores(),
        out=folder,
    )
    output.print(markdown(run_benchmark(selection.pipeline, options)), markup=False, soft_wrap=True)
    messages.print(f"bench: {shown(folder / RESULT_FILE)}")


def chosen_variants(text: str | None, *, quick: bool) -> tuple[str, ...]:
    """The variants asked for, in the table's order.

    Raises:
        ConfigError: an unknown name, or none.
    """
    from benchmarks.variants.base import VARIANTS

    if text is None:
        return ("torch_f32", "notebook", "exact", "fast", "int8") if quick else VARIANTS
    names = text.replace(",", " ").split()
    unknown = [name for name in names if name not in VARIANTS]
    if unknown or not names:
        given = unknown[0] if unknown else "''"
        raise ConfigError(f"--variants {given}: unknown; choose from: {', '.join(VARIANTS)}")
    return tuple(name for name in VARIANTS if name in names)


if __name__ == "__main__":
    typer.run(bench)
