"""``python -m verify report``: writes the page and says where it lies, or prints its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from configs.load import load_pipeline, shown
from pipeline.command import exit_codes
from pipeline.console import messages, output

_COLOURS = {"passed": "green", "failed": "red", "incomplete": "yellow"}


@exit_codes
def report(
    config: Annotated[Path, typer.Option(help="Pipeline file.")] = Path("configs/reference.yaml"),
    force: Annotated[
        bool, typer.Option("--force", help="Write the page even if nothing changed.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables as Markdown instead.")
    ] = False,
) -> None:
    """Writes report.html: one self-contained page about everything built and verified."""
    from verify.page import markdown as tables
    from verify.page.figures import file_size
    from verify.page.page import write_report

    if markdown:
        output.print(tables.markdown(load_pipeline(config)), markup=False, soft_wrap=True)
        return
    written = write_report(load_pipeline(config), Path(shown(config)), force=force)
    colour = _COLOURS[written.state]
    what = "unchanged" if written.unchanged else file_size(written.size_bytes)
    messages.print(
        f"report: {shown(written.path)} ({what}), [{colour}]{written.headline.lower()}[/]",
    )
