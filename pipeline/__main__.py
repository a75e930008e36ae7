"""``python -m pipeline GOAL``: what make calls; exit code 0, 1 or 2, where make has 2 for all.

It checks the options, and then runs the stages one after the other, each in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.goals.annotations import annotate
from pipeline.goals.options import GOALS, ROOT, SWITCHES, Given, OptionError, checked, from_make

PYTHON = Path(".venv") / "bin" / "python"
_SELECT = ("CONFIG", "TASK", "COMPONENT")
_TARGETS = ("TARGET", "PRECISION")
#: goal -> stages with the variables that they take
STAGES: dict[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = {
    "setup": ((("scripts.setup_tpu",), ("CONFIG", "TARGET")),),
    "export": ((("export",), (*_SELECT, "DRY_RUN", "FORCE")),),
    "compile": ((("compile",), (*_SELECT, *_TARGETS, "DRY_RUN", "FORCE")),),
    "verify": ((("verify",), (*_SELECT, *_TARGETS, "VERIFY", "JUNIT")),),
    "report": ((("verify", "report"), ("CONFIG", "FORCE")),),
    "bundle": ((("bundle",), GOALS["bundle"]),),
    "evaluate": ((("verify", "evaluate"), GOALS["evaluate"]),),
    "bisect": ((("verify", "bisect"), GOALS["bisect"]),),
    "estimate": ((("compile", "estimate"), GOALS["estimate"]),),
    "board-test": ((("verify", "board-test"), GOALS["board-test"]),),
    "bench": ((("benchmarks",), GOALS["bench"]),),
    "doctor": ((("scripts.doctor",), GOALS["doctor"]),),
}
_EXPORT, _COMPILE = STAGES["export"][0], STAGES["compile"][0]
_BUILD = (*_SELECT, *_TARGETS, "DRY_RUN", "FORCE")
STAGES.update(
    {
        "all": (_EXPORT, _COMPILE, *STAGES["verify"], *STAGES["report"]),
        "compile": (_EXPORT, _COMPILE),
        "ir": (_EXPORT, (("compile", "--backend", "openvino"), _BUILD)),
        "bmodel": (_EXPORT, (("compile", "--backend", "sophon"), _BUILD)),
    }
)
#: What a stage calls an option, where that is not the variable's name.
_OPTIONS = {"VERIFY": "--full"}
#: Stages that do something only when it is meant: a dry run prints their commands.
_PRINTED = ("verify",)


def commands(goal: str, values: dict[str, str]) -> Iterator[list[str]]:
    """Arguments behind ``python -m`` of every stage that a goal runs, in their order."""
    for stage, names in STAGES[goal]:
        command = list(stage)
        given = dict(values)
        if goal == "ir":
            given.setdefault("TARGET", "openvino")
        for name in names:
            if name not in given:
                continue
            option = _OPTIONS.get(name, "--" + name.lower().replace("_", "-"))
            command += [option] if name in SWITCHES or name == "VERIFY" else [option, given[name]]
        yield command


def run(goal: str, values: dict[str, str]) -> int:
    """Runs a goal's stages; the exit code of the first one that fails.

    The report is written of a failed verification, too.
    """
    python = ROOT / PYTHON
    dry = "DRY_RUN" in values
    if not dry and not python.exists():
        raise OptionError("no .venv here; run: make setup")
    if dry and not python.exists():
        print("# Nothing is set up here; these are the commands.\nmake setup")
    status = 0
    for command in commands(goal, values):
        line = shlex.join([str(PYTHON), "-m", *command])
        if dry and (command[0] in _PRINTED or not python.exists()):
            print(line.replace(" --dry-run", ""), flush=True)
            continue
        if status and command[:2] != ["verify", "report"]:
            break
        found = _call([str(python), "-m", *command])
        status = status or found
        if status not in (0, 1):
            break
    return status


def _call(command: list[str]) -> int:
    """Runs a stage; a request to end is handed on, and Ctrl-C reaches both by itself."""
    process = subprocess.Popen(command, cwd=ROOT)
    before = {
        number: signal.signal(number, action)
        for number, action in (
            (signal.SIGINT, lambda *_: None),
            (signal.SIGHUP, lambda *_: None),
            (signal.SIGTERM, lambda *_: process.terminate()),
        )
    }
    try:
        status = process.wait()
    finally:
        for number, action in before.items():
            signal.signal(number, action)
    return status if status >= 0 else 128 - status


def _parsed(arguments: list[str]) -> tuple[str, Given]:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    parser.add_argument("goal", choices=sorted(STAGES))
    known, rest = parser.parse_known_args(arguments)
    one = argparse.ArgumentParser(prog=f"python -m pipeline {known.goal}", allow_abbrev=False)
    for name in GOALS[known.goal]:
        option = _OPTIONS.get(name, "--" + name.lower().replace("_", "-"))
        if name in SWITCHES or name == "VERIFY":
            one.add_argument(option, dest=name, action="store_const", const="1", default="")
        else:
            one.add_argument(option, dest=name, default="")
    values = {name: text for name, text in vars(one.parse_args(rest)).items() if text}
    if "VERIFY" in values:
        values["VERIFY"] = "full"
    return known.goal, Given(values)


def main(arguments: list[str]) -> int:
    """Command line; ``--make GOAL`` takes the options from make's variables.

    ``--make check`` only checks them: what make does before it sets anything up.
    """
    try:
        if arguments[:1] != ["--make"]:
            goal, given = _parsed(arguments)
            return run(goal, checked(goal, given))
        goal = arguments[1]
        if goal == "check":
            for one in os.environ.get("MAKECMDGOALS", "").split() or ["help"]:
                checked(one, from_make(one, os.environ))
            return 0
        given = from_make(goal, os.environ)
        for name in given.inherited:
            note = f"note: {name}={given.values[name]} comes from the environment"
            print(note, file=sys.stderr, flush=True)
        return run(goal, checked(goal, given))
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        annotate(str(error))
        return 2


if __name__ == "__main__":
    if sys.version_info < (3, 8):  # noqa: UP036 - the system's python3 may be any
        sys.exit("error: python3 is older than 3.8; put a newer one first on the PATH")
    sys.exit(main(sys.argv[1:]))
