"""``python -m verify``: proves every artifact against its source and the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from configs.load import shown
from pipeline.command import exit_codes, select
from verify.bisect.command import bisect
from verify.board.command import board_test
from verify.board.judge import failure as board_failure
from verify.board.judge import judge
from verify.console_table import print_not_simulated, print_table
from verify.evaluation.command import evaluate
from verify.page.command import report
from verify.pipeline import announce, failure, verify

application = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@application.callback(invoke_without_command=True)
@exit_codes
def main(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="Pipeline file.")] = Path("configs/reference.yaml"),
    task: Annotated[str | None, typer.Option(help="Only these tasks, comma-separated.")] = None,
    component: Annotated[
        str | None, typer.Option(help="Only these components, comma-separated; no answers.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Only these targets, comma-separated.")] = None,
    precision: Annotated[str | None, typer.Option(help="Only these precisions.")] = None,
    from_board: Annotated[
        Path | None, typer.Option("--from-board", help="Judge a board's results.json instead.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Also simulate full-size BModels; may take hours.")
    ] = False,
) -> None:
    """Verifies artifacts; writes verify.json beside them. Finished checks are not repeated."""
    if context.invoked_subcommand:
        return
    if from_board is not None:
        checks = judge(config, from_board)
        print_table(tuple(checks))
        if error := board_failure(checks):
            raise error
        return
    selection = select(config, task=task, component=component, target=target, precision=precision)
    result = verify(selection, Path(shown(config)), full=full)
    error = failure(result)
    if result.done_now or error:
        print_table(result.checks)
    print_not_simulated(result.not_simulated)
    if error:
        raise error
    announce(result)


application.command()(evaluate)
application.command()(report)
application.command("board-test")(board_test)
application.command()(bisect)


if __name__ == "__main__":
    application()
