"""Creates ``.venv-tpu``: TPU-MLIR in its own Python 3.10 environment, pinned and mended.

Run as ``python -m scripts.setup_tpu``. A second run finds its stamp and returns at once. With
``--config`` nothing is set up unless the pipeline, or ``--target`` of it, has a chip.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from configs.errors import BlipEdgeError, ToolError
from scripts.glibc_mend import GlibcState, inspect, mend
from scripts.setup_environment import STAMP_NAME, made_from, pip_install, stamp_of, with_pauses
from scripts.tpu_python import OVERRIDE_VARIABLE, clean_environment, find_or_fetch, probe

# configs.layout is not imported: it brings pydantic, and an up-to-date set-up must cost nothing.
REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = REPOSITORY_ROOT / ".venv-tpu"
LOCK = REPOSITORY_ROOT / "requirements" / "tpu-lock.txt"
LOG = REPOSITORY_ROOT / ".cache" / "logs" / "setup_tpu.log"
#: What TPU-MLIR compiles kernels with.
COMPILERS = ("gcc", "g++", "cmake", "make")
#: Installed size is 3 GiB; pip unpacks wheels beside it.
NEEDED_BYTES = 5 * 2**30

_PIP_PACKAGE = re.compile(r"(?:Collecting|Requirement already satisfied:) (\S+)")


def environment_python(environment: Path) -> Path:
    """The environment's interpreter."""
    return environment / "bin" / "python"


def package_folder(environment: Path) -> Path:
    """Where pip puts the ``tpu_mlir`` package."""
    return environment / "lib" / "python3.10" / "site-packages" / "tpu_mlir"


def wanted_stamp(environment: Path) -> dict[str, str]:
    """What the environment must have been made from to be up to date."""
    interpreter = str(environment_python(environment).resolve())
    return {**made_from(environment, LOCK), "interpreter": interpreter}


def is_current(environment: Path) -> bool:
    """Whether the environment is complete, made here from today's lock, and mended."""
    stamp = stamp_of(environment)
    asked_for = stamp.pop("asked_for", None)
    if stamp != wanted_stamp(environment) or not environment_python(environment).exists():
        return False
    # An environment that exists is good enough, unless another interpreter is asked for by name.
    if os.environ.get(OVERRIDE_VARIABLE, asked_for) != asked_for:
        return False
    package = package_folder(environment)
    return package.is_dir() and inspect(package).state != "unmended"


def _check_machine() -> None:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise ToolError(
            f"TPU-MLIR is built for x86-64 Linux only, this is {platform.system()} "
            f"{platform.machine()}; build SOPHON targets elsewhere"
        )
    free = shutil.disk_usage(REPOSITORY_ROOT).free
    if not ENVIRONMENT.exists() and free < NEEDED_BYTES:
        raise ToolError(
            f"{REPOSITORY_ROOT}: {free / 2**30:.1f} GiB free, TPU-MLIR's environment needs "
            f"{NEEDED_BYTES / 2**30:.0f} GiB; free some space"
        )


def _run_logged(command: list[str], title: str, expected_packages: int = 0) -> None:
    """Runs a command with its output in the log and a progress bar on the terminal."""
    from pipeline.console import steps

    LOG.parent.mkdir(parents=True, exist_ok=True)
    with (
        LOG.open("a", buffering=1) as log,
        steps("set-up of TPU-MLIR", max(expected_packages, 1)) as progress,
    ):
        progress.start(title)
        print("$", *command, file=log, flush=True)
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=clean_environment(),
        )
        assert process.stdout is not None  # noqa: S101 - PIPE was asked for
        errors: list[str] = []
        for line in process.stdout:
            log.write(line)
            package = _PIP_PACKAGE.match(line)
            if package:
                progress.start(f"{title}: {package[1]}")
                progress.done()
            if "error" in line.lower():
                errors.append(line.strip())
        code = process.wait()
    if code != 0:
        reason = errors[0] if errors else "no error line"
        raise ToolError(f"{title} failed (exit code {code}): {reason}; log: {LOG}")


def _install(command: list[str], packages: int) -> None:
    """Runs pip, and again after a pause where it failed."""
    from pipeline.console import messages

    def attempt() -> str | None:
        try:
            _run_logged(command, "installing packages", packages)
        except ToolError as error:
            return str(error)
        return None

    if why := with_pauses(attempt, lambda line: messages.print(line.strip())):
        raise ToolError(why)


def _create(environment: Path, python: Path) -> None:
    usable = environment_python(environment)
    here = str(environment.resolve())
    moved = stamp_of(environment).get("place", here) != here
    if moved:
        print(f"{environment.name} was made elsewhere and moved: it is made anew", file=sys.stderr)
    elif usable.exists() and usable.resolve() == python and not isinstance(probe(str(usable)), str):
        return
    command = [str(python), "-m", "venv", "--clear", str(environment)]
    _run_logged(command, "creating the environment")


def _smoke_test(environment: Path) -> None:
    """Imports what the tools import and runs one of the wheel's own programs."""
    python = str(environment_python(environment))
    program = str(environment / "bin" / "model_tool")
    checks = ([python, "-c", "import tpu_mlir, torch, onnx, onnxruntime, psutil"], [program])
    for command in checks:
        result = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
        text = result.stdout + result.stderr
        if "GLIBC_" in text or (command[0] == python and result.returncode != 0):
            last = text.strip().splitlines()[-1:] or ["no output"]
            raise ToolError(
                f"TPU-MLIR is installed and does not start: {last[0]}; "
                f"delete {environment.name} and run make setup; log: {LOG}"
            )


def set_up(environment: Path = ENVIRONMENT) -> GlibcState:
    """Creates or completes the environment; safe to repeat and to interrupt.

    Raises:
        ConfigError: ``$TPU_MLIR_PYTHON`` is not a Python 3.10.
        ToolError: no Python 3.10, wrong kind of machine, too little disk space, or pip failed.
    """
    from pipeline.atomic import artifact_lock

    _check_machine()
    with artifact_lock(REPOSITORY_ROOT / ".cache", "setup_tpu"):
        if is_current(environment):
            return inspect(package_folder(environment))
        python = find_or_fetch()
        stamp = environment / STAMP_NAME
        _create(environment, python)
        stamp.unlink(missing_ok=True)
        command = [*pip_install(environment_python(environment), LOCK), "--progress-bar", "off"]
        _install(command, LOCK.read_text(encoding="utf-8").count("=="))
        state = mend(package_folder(environment))
        _smoke_test(environment)
        made_from = wanted_stamp(environment)
        made_from["asked_for"] = os.environ.get(OVERRIDE_VARIABLE, "")
        stamp.write_text(json.dumps(made_from, indent=2) + "\n")
        return state


def needed(config: Path, targets: str | None) -> bool:
    """Whether a pipeline, or a choice of its targets, has a chip.

    A pipeline file or a target that is wrong needs none: the stage that reads it next says so.
    """
    # Here, not above: an up-to-date set-up must cost nothing.
    from configs.load import load_pipeline, load_target

    try:
        names = targets.split(",") if targets else load_pipeline(config).targets
        return any(load_target(name.strip()).backend == "sophon" for name in names)
    except BlipEdgeError:
        return False


def _arguments(arguments: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="python -m scripts.setup_tpu", description=__doc__)
    parser.add_argument("--config", type=Path, help="set up only if this pipeline has a chip")
    parser.add_argument("--target", help="the targets of it that are asked for")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = _arguments(arguments)
    try:
        if is_current(ENVIRONMENT):
            return 0
        if options.config and not needed(options.config, options.target):
            return 0
        state = set_up()
    except BlipEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"TPU-MLIR is ready in {ENVIRONMENT.name}; glibc mend: {state}", file=sys.stderr)
    if state.moved:
        names = ", ".join(state.moved)
        print(f"moved aside within {ENVIRONMENT.name} alone: {names}", file=sys.stderr)
    if missing := [name for name in COMPILERS if shutil.which(name) is None]:
        cure = "apt-get install build-essential cmake"
        print(f"TPU-MLIR compiles kernels: no {', '.join(missing)}; {cure}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
