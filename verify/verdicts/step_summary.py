"""A verification as Markdown: the verdict in a sentence, the fidelity table, what failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]
ANSWERS = ("tokens", "scores")
#: Failures that are listed; more are in the report.
MOST_FAILURES = 20


def step_summary(
    pipeline: str, checks: Sequence[Json], *, extent: str, not_simulated: Sequence[str]
) -> str:
    """What a step of a workflow shows of a verification."""
    from verify.page.markdown import fidelity

    failed = [check for check in checks if not check["passed"]]
    state = "not verified" if failed or not checks else "verified in part" if extent else "verified"
    count = (
        f"{len(failed)} of {len(checks)} checks failed"
        if failed
        else f"{len(checks)} checks passed"
    )
    lines = [
        f"### {_plain(pipeline)}: {state}",
        "",
        f"{count}. {extent + '.' if extent else ''}".strip(),
    ]
    shown = [check for check in checks if check["kind"] not in ANSWERS or check["samples"]]
    if any(check["kind"] in ANSWERS for check in shown):
        lines += ["", *fidelity(shown)]
    if not_simulated:
        lines += ["", *(f"- not simulated: {_plain(name)}" for name in not_simulated)]
    if failed:
        lines.append("")
    for check in failed[:MOST_FAILURES]:
        parts = (
            check["task"],
            check["component"] or check["kind"],
            check["target"],
            check["precision"],
        )
        reason = (check["problems"] or ["nothing was compared"])[0]
        lines.append(f"- **failed** {_plain(' '.join(parts))}: {_plain(reason)}")
    if len(failed) > MOST_FAILURES:
        lines.append(f"- and {len(failed) - MOST_FAILURES} more")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text that is neither markup nor HTML of its own."""
    one_line = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in one_line.replace("&", "&amp;"))
