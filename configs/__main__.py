"""``python -m configs matrix``: what a pipeline file builds, as a build matrix of a CI service."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from configs.errors import ConfigError
from configs.load import load_pipeline, load_target, shown


def matrix(
    config: Path, targets: frozenset[str] = frozenset(), tasks: frozenset[str] = frozenset()
) -> list[dict[str, str]]:
    """One entry per task, target and precision.

    Args:
        config: the pipeline file.
        targets: only these; empty: all of the file.
        tasks: likewise.

    Raises:
        ConfigError: the file is invalid, or lists no such target or task.
    """
    pipeline = load_pipeline(config)
    for kind, wanted, listed in (
        ("targets", targets, frozenset(pipeline.targets)),
        ("tasks", tasks, frozenset(pipeline.tasks)),
    ):
        if unknown := sorted(wanted - listed):
            offered = ", ".join(sorted(listed))
            raise ConfigError(
                f"{shown(config)}: {kind}: has no {', '.join(unknown)}; choose from: {offered}"
            )
    return [
        {
            "task": task,
            "target": target,
            "precision": precision,
            "backend": load_target(target).backend,
            "name": f"{pipeline.name}-{task}-{target}-{precision}",
            "folder": f"{pipeline.artifacts}/{pipeline.name}",
        }
        for task in pipeline.tasks
        if not tasks or task in tasks
        for target, selection in pipeline.targets.items()
        if not targets or target in targets
        for precision in selection.precisions
    ]


def gitlab(entries: list[dict[str, str]]) -> str:
    """A child pipeline of GitLab with a job per entry: JSON, which is YAML as well."""
    variables = [{name.upper(): value for name, value in entry.items()} for entry in entries]
    jobs = {
        "include": [{"local": ".gitlab/artifacts.yml"}],
        "variables": {"FOLDER": entries[0]["folder"]},
        "build": {"extends": ".build", "parallel": {"matrix": variables}},
    }
    return json.dumps(jobs, indent=1)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m configs", description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("matrix", help="print task x target x precision of a pipeline file")
    one.add_argument("--json", action="store_true", help="one line of JSON, for fromJSON()")
    one.add_argument("--gitlab", action="store_true", help="a child pipeline for GitLab")
    one.add_argument("--config", type=Path, default=Path("configs/reference.yaml"))
    one.add_argument("--target", default="", help="only these targets, comma-separated")
    one.add_argument("--task", default="", help="only these tasks, comma-separated")
    options = parser.parse_args(arguments)
    try:
        entries = matrix(options.config, _names(options.target), _names(options.task))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"include": entries}, separators=(",", ":")))
    elif options.gitlab:
        print(gitlab(entries))
    else:
        for entry in entries:
            print(entry["task"], entry["target"], entry["precision"])
    return 0


def _names(text: str) -> frozenset[str]:
    return frozenset(text.replace(",", " ").split())


if __name__ == "__main__":
    sys.exit(main())
