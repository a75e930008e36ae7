"""The stages of each goal, one after the other, each in a process of its own."""

from __future__ import annotations

import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pipeline.goals.options import GOALS, ROOT, SWITCHES, OptionError

PYTHON = Path(".venv") / "bin" / "python"
_SELECT = ("CONFIG", "TASK", "COMPONENT")
_TARGETS = ("TARGET", "PRECISION")
#: goal -> backend of all that it builds
_BACKENDS = {"ir": ("--backend", "openvino"), "bmodel": ("--backend", "sophon")}
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
        "ir": (_EXPORT, (("compile", *_BACKENDS["ir"]), _BUILD)),
        "bmodel": (_EXPORT, (("compile", *_BACKENDS["bmodel"]), _BUILD)),
    }
)
#: What a stage calls an option, where that is not the variable's name.
_OPTIONS = {"VERIFY": "--full"}
#: Stages that do something only when it is meant: a dry run prints their commands.
_PRINTED = ("verify",)


def option(name: str) -> str:
    """A variable as an option of stages and of ``python -m pipeline``."""
    return _OPTIONS.get(name, "--" + name.lower().replace("_", "-"))


def commands(goal: str, values: dict[str, str]) -> Iterator[list[str]]:
    """Arguments behind ``python -m`` of every stage that a goal runs, in their order."""
    given = dict(values)
    if goal == "ir":
        given.setdefault("TARGET", "openvino")
    stages = STAGES[goal]
    if len(stages) > 1 and "PRECISION" in given:
        # Whether every target has it, only their files say; they say it before the export.
        selected = ("pipeline.goals.selected", *_BACKENDS.get(goal, ()))
        stages = ((selected, (*_SELECT, *_TARGETS)), *stages)
    for stage, names in stages:
        command = list(stage)
        for name in names:
            if name not in given:
                continue
            alone = name in SWITCHES or name == "VERIFY"
            command += [option(name)] if alone else [option(name), given[name]]
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
    running: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def end(number: int, _frame: object) -> None:
        asked.append(number)
        for process in running:
            process.terminate()

    actions = {signal.SIGTERM: end, signal.SIGINT: _nothing, signal.SIGHUP: _nothing}
    before = {number: signal.signal(number, action) for number, action in actions.items()}
    try:
        process = subprocess.Popen(command, cwd=ROOT)
        running.append(process)
        if asked:
            process.terminate()
        status = process.wait()
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
    return status if status >= 0 else 128 - status


def _nothing(_number: int, _frame: object) -> None:
    """The stage gets this signal from the terminal as well, and says what there is to say."""
