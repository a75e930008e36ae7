"""What is installed, what can be built and verified here, and what to do about the rest.

Run as ``python -m scripts.doctor``; exit code 0 if the pipeline of ``--config`` can run, else 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import BlipEdgeError

if TYPE_CHECKING:
    from scripts.checks import Check, TargetReport

_MARKS = {
    "ok": "[green]ok[/]",
    "missing": "[red]missing[/]",
    "warning": "[yellow]note[/]",
    "absent": "[dim]absent[/]",
}


@dataclass(frozen=True)
class Diagnosis:
    """Everything the doctor found."""

    checks: tuple[Check, ...]
    targets: tuple[TargetReport, ...]
    #: the pipeline's name and the targets that it builds
    pipeline: str
    needed: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether the pipeline can run here."""
        blocked = any(check.status == "missing" for check in self.checks)
        able = {target.name for target in self.targets if target.build and target.verify}
        return not blocked and set(self.needed) <= able


def diagnose(config: Path | None = None) -> Diagnosis:
    """Looks at this machine, and asks the hub for checkpoints that the pipeline has there.

    Raises:
        ConfigError: the pipeline's files are invalid.
    """
    from configs.layout import CONFIGS_FOLDER, REPOSITORY_ROOT
    from configs.load import load_pipeline, load_target, target_names
    from scripts import checks

    pipeline = load_pipeline(config or CONFIGS_FOLDER / "reference.yaml")
    tpu = tuple(checks.check_tpu_environment())
    tpu_ready = all(check.status == "ok" for check in tpu)
    chips = (*tpu, checks.check_compilers())
    if all(load_target(name).backend == "openvino" for name in pipeline.targets):
        chips = tuple(
            replace(check, status="absent") if check.status == "missing" else check
            for check in chips
        )
    found = (
        checks.check_python(),
        *checks.check_packages(),
        *chips,
        *checks.check_machine(REPOSITORY_ROOT / pipeline.artifacts),
        *checks.check_checkpoints(pipeline),
        *checks.check_devices(),
        checks.check_browser(),
    )
    targets = tuple(checks.report_target(name, tpu_ready) for name in target_names())
    return Diagnosis(found, targets, pipeline.name, tuple(pipeline.targets))


def show(diagnosis: Diagnosis) -> None:
    """Prints what was found, what can be built, and a line of advice for each thing amiss."""
    from rich.markup import escape
    from rich.table import Table

    from pipeline.console import output

    groups: set[str] = set()
    table = Table("this machine", "status", "found", box=None, header_style="bold")
    for check in diagnosis.checks:
        if not check.group:
            table.add_row(check.name, _MARKS[check.status], escape(check.found))
        elif check.group not in groups:
            groups.add(check.group)
            count = sum(other.group == check.group for other in diagnosis.checks)
            table.add_row(check.group, _MARKS["ok"], f"{count} in their pinned versions")
    output.print(table)
    table = Table("target", "build", "verify", "precisions", box=None, header_style="bold")
    for target in diagnosis.targets:
        build = "[green]yes[/]" if target.build else "[red]no[/]"
        verify = ", ".join(target.verify) or "[red]no[/]"
        table.add_row(target.name, build, verify, " ".join(target.precisions))
    output.print()
    output.print(table)
    output.print()
    for check in diagnosis.checks:
        if check.cure:
            output.print(f" {_MARKS[check.status]} {check.name}: {escape(check.cure)}")
    for target in diagnosis.targets:
        if target.cure:
            output.print(f" {_MARKS['missing']} {target.name}: {escape(target.cure)}")
    state = "[green]ready[/]" if diagnosis.ready else "[red]not ready[/]"
    output.print(f" {state} for the pipeline {diagnosis.pipeline}")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--config", type=Path, help="pipeline file (default: the reference)")
    options = parser.parse_args(arguments)
    try:
        diagnosis = diagnose(options.config)
    except ModuleNotFoundError as error:
        print(f"error: .venv has no {error.name}; run: rm -r .venv; make setup", file=sys.stderr)
        return 1
    except BlipEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"ready": diagnosis.ready, **asdict(diagnosis)}, indent=2))
    else:
        show(diagnosis)
    return 0 if diagnosis.ready else 1


if __name__ == "__main__":
    sys.exit(main())
