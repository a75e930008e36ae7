"""``python -m verify merge``: one verdict of several, e.g. of the jobs of a build matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from configs.errors import InputError, ParityError
from configs.load import shown
from pipeline.atomic import write_atomically
from pipeline.command import exit_codes
from pipeline.console import messages
from pipeline.json_file import WRONG
from verify.verdict import read_verdict, sealed
from verify.verdicts.merging import Joined, join, proven_in, runs_of, tools_of


@exit_codes
def merge(
    files: Annotated[list[Path], typer.Argument(help="verify.json of several runs or machines.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the verdict; else it is printed.")
    ] = None,
) -> None:
    """Joins verdicts of one pipeline; of two about the same artifact, the newer one counts."""
    verdicts = [_read(path) for path in files]
    names = {str(verdict.get("pipeline")) for verdict in verdicts}
    if len(names) > 1:
        raise InputError(f"verdicts of several pipelines: {', '.join(sorted(names))}; name one's")
    joined = join(verdicts)
    text = sealed(joined.verdict)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_atomically(out, text)
    _say(joined, len(files), out)
    if not joined.verdict["passed"]:
        raise ParityError(_reason(joined.verdict))


def _read(path: Path) -> dict[str, Any]:
    try:
        verdict = read_verdict(path)
    except WRONG as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{shown(path)}: no verdict ({reason}); run: make verify") from None
    if verdict["checks"] and "sets" not in verdict:
        raise InputError(
            f"{shown(path)}: of an earlier version, without digests of sets; run: make verify"
        )
    if not verdict["checks"]:
        reason = f"{shown(path)}: {verdict.get('error') or 'nothing was verified'}"
        return {**verdict, "error": reason}
    return verdict


def _say(joined: Joined, count: int, out: Path | None) -> None:
    verdict = joined.verdict
    where = f", {shown(out)}" if out else ""
    proved, artifacts = len(proven_in(verdict)), len(verdict["artifacts"])
    part = "" if proved == artifacts else f"; [yellow]{proved} of {artifacts} artifacts verified[/]"
    checks = len(verdict["checks"])
    messages.print(f"merge: {count} verdicts, {checks} checks, {artifacts} artifacts{where}{part}")
    for name, number in joined.stale.items():
        messages.print(
            f"[yellow]stale[/] {escape(name)}: {number} checks are of other bytes than the newest "
            "verdict's, and left out"
        )
    commits = dict.fromkeys(str(run.get("commit"))[:12] for run in runs_of(verdict))
    if len(commits) > 1:
        messages.print(f"[yellow]commits[/] {escape(', '.join(commits))}")
    for tool, versions in sorted(tools_of(verdict).items()):
        if len(versions) > 1:
            names = ", ".join(sorted(versions))
            messages.print(f"[yellow]versions[/] {escape(f'{tool} {names}')}")


def _reason(verdict: dict[str, Any]) -> str:
    failed = [check for check in verdict["checks"] if not check["passed"]]
    if failed:
        return f"{len(failed)} of {len(verdict['checks'])} checks failed"
    return str(verdict.get("error") or "nothing was verified")
