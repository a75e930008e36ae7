"""``python -m verify``: proves every artifact against its source and the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from configs.load import shown
from pipeline.atomic import write_atomically
from pipeline.command import exit_codes, select
from pipeline.goals.annotations import annotate, summarise
from verify.bisect.command import bisect
from verify.board.command import board_test
from verify.board.judge import failure as board_failure
from verify.board.judge import judge
from verify.console_table import print_not_simulated, print_table
from verify.evaluation.command import evaluate
from verify.page.command import report
from verify.pipeline import announce, failure, verify
from verify.verdicts.command import merge
from verify.verdicts.junit import junit_text
from verify.verdicts.keys import keys
from verify.verdicts.step_summary import step_summary

#: GitHub shows ten per step.
MOST_ANNOTATIONS = 9

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
    junit: Annotated[
        Path | None, typer.Option("--junit", help="Also write the checks as JUnit XML.")
    ] = None,
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
    if junit is not None:
        write_atomically(junit, junit_text(result.checks, result.not_simulated))
    summarise(
        step_summary(
            selection.pipeline.name,
            [check.record() for check in result.checks],
            extent=result.extent,
            not_simulated=result.not_simulated,
        )
    )
    if result.done_now or error:
        print_table(result.checks)
    print_not_simulated(result.not_simulated)
    if error:
        for check in [check for check in result.checks if not check.passed][:MOST_ANNOTATIONS]:
            problem = check.record()["problems"][0]
            annotate(f"{shown(config)}: {check.subject.name}: {problem}")
        raise error
    announce(result)


application.command()(evaluate)
application.command()(report)
application.command("board-test")(board_test)
application.command()(bisect)
application.command()(merge)
application.command()(keys)


if __name__ == "__main__":
    application()
