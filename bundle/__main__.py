"""``python -m bundle``: verified artifacts as one archive that installs without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bundle.pipeline import Options, make_bundles
from configs.load import shown
from pipeline.command import exit_codes, select
from pipeline.console import messages

application = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@application.command()
@exit_codes
def main(
    config: Annotated[Path, typer.Option(help="Pipeline file.")] = Path("configs/reference.yaml"),
    task: Annotated[str | None, typer.Option(help="Only these tasks, comma-separated.")] = None,
    target: Annotated[str | None, typer.Option(help="Only these targets, comma-separated.")] = None,
    precision: Annotated[str | None, typer.Option(help="Only these precisions.")] = None,
    wheels: Annotated[
        str | None, typer.Option(help="Enclose what a machine needs, e.g. cp38-aarch64.")
    ] = None,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Bundle what was not verified, and say so inside.")
    ] = False,
    sign_key: Annotated[
        Path | None, typer.Option(help="Private key (PEM, elliptic curve) to sign with.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the archives.")] = Options.folder,
) -> None:
    """Writes dist/PIPELINE-TASK-TARGET-PRECISION-VERSION.tar.gz (docs/bundles.md)."""
    selection = select(config, task=task, target=target, precision=precision)
    options = Options(wheels, unverified, sign_key, out)
    for archive in make_bundles(selection, options):
        size = archive.stat().st_size / 1e6
        messages.print(f"{shown(archive)}: {size:.1f} MB; blip-edge verify-bundle checks it")


if __name__ == "__main__":
    application()
