"""Options of ``make`` and ``python -m pipeline``, checked before anything is set up.

This package and ``pipeline.__main__`` run on a bare Python 3.8: on the standard library alone.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from configs.names import TASK_COMPONENTS
from configs.precisions import PRECISIONS

ROOT = Path(__file__).resolve().parent.parent.parent
TARGETS = ROOT / "configs" / "targets"
DEFAULT_CONFIG = "configs/reference.yaml"

#: Variables that are on or off.
SWITCHES = ("DRY_RUN", "FORCE", "QUICK", "UNVERIFIED")
LISTS = ("TASK", "COMPONENT", "TARGET", "PRECISION")
COUNTS = ("TOKENS", "ANSWER_TOKENS", "ITEMS", "WORKERS", "RERANK")
#: Variables that name files; relative ones are of the folder in which make was called.
PATHS = ("CONFIG", "JUNIT", "IMAGES", "QUESTIONS", "ANSWERS", "SIGN_KEY")
#: Variables of make itself and of the Makefile that a command line may set.
FREE = ("SHELL", "MAKEFLAGS", "MAKE", "CALLER")
_ON, _OFF = ("1", "yes", "true", "on"), ("0", "no", "false", "off")
#: goal -> backend of the targets that it builds
BACKENDS = {"ir": "openvino", "bmodel": "sophon", "estimate": "sophon"}

_CHOICE = ("CONFIG", "TASK", "TARGET", "PRECISION")
_BUILD = (*_CHOICE, "COMPONENT", "DRY_RUN", "FORCE")
_DATA = ("DATASET", "QUESTIONS", "IMAGES", "SPLIT")
_EVALUATED = (*_DATA, "ANSWERS", "ITEMS", "MODE", "RERANK", "WORKERS")
#: goal -> variables that it takes
GOALS = {
    "all": (*_BUILD, "VERIFY", "JUNIT"),
    "export": ("CONFIG", "TASK", "COMPONENT", "DRY_RUN", "FORCE"),
    "ir": _BUILD,
    "bmodel": _BUILD,
    "compile": _BUILD,
    "verify": (*_CHOICE, "COMPONENT", "VERIFY", "JUNIT", "DRY_RUN"),
    "report": ("CONFIG", "FORCE", "DRY_RUN"),
    "bundle": (*_CHOICE, "WHEELS", "UNVERIFIED", "SIGN_KEY"),
    "evaluate": (*_CHOICE, *_EVALUATED, "VERIFY"),
    "bisect": (*_CHOICE, "COMPONENT", "MODE"),
    "estimate": ("CONFIG", "TASK", "TARGET", "TOKENS", "ANSWER_TOKENS"),
    "board-test": _CHOICE,
    "bench": ("CONFIG", "TASK", "QUICK"),
    "doctor": ("CONFIG",),
    "setup": ("CONFIG", "TARGET", "DRY_RUN"),
}
KNOWN = tuple(dict.fromkeys(name for names in GOALS.values() for name in names))


class OptionError(Exception):
    """What is wrong with an option, and what to write instead; exit code 2."""


@dataclass(frozen=True)
class Given:
    """Variables as they were given."""

    #: variable -> value; what is not given is not there
    values: dict[str, str]
    #: those that come from the environment, not from the command line
    inherited: tuple[str, ...] = ()


def from_make(goal: str, environment: os._Environ[str] | dict[str, str]) -> Given:
    """What make was called with: make hands every variable on in the environment, unchanged.

    Raises:
        OptionError: a variable that nothing reads, or that this goal does not.
    """
    written = overrides(environment.get("MAKEFLAGS", ""))
    goals = [name for name in environment.get("MAKECMDGOALS", "").split() if name in GOALS]
    taken = dict.fromkeys(name for one in (goals or [goal]) for name in GOALS.get(one, ()))
    for name in written:
        if name in FREE or name in taken:
            continue
        if name in KNOWN:
            takes = ", ".join(taken) or "no options"
            raise OptionError(f"{name}=: make {' '.join(goals) or goal} takes {takes}; remove it")
        close = difflib.get_close_matches(name.upper(), KNOWN, 1, 0.7)
        hint = f"write {close[0]}=" if close else f"there are: {', '.join(KNOWN)}"
        raise OptionError(f"{name}=: no option; {hint}")
    wanted = GOALS.get(goal, ())
    values = {name: environment[name] for name in wanted if environment.get(name, "").strip()}
    inherited = tuple(name for name in values if name not in written)
    caller = environment.get("CALLER")
    for name in PATHS:
        if name in values and caller:
            values[name] = _of_caller(values[name], Path(caller))
    return Given(values, inherited)


def overrides(flags: str) -> list[str]:
    """Names of the variables on make's command line, as MAKEFLAGS has them behind ``--``."""
    words = re.findall(r"(?:\\.|[^\s\\])+", flags)
    behind = words[words.index("--") + 1 :] if "--" in words else []
    return [
        found[1] for word in behind for found in [re.match(r"([^:+?!=]+)[:+?!]*=", word)] if found
    ]


def checked(goal: str, given: Given) -> dict[str, str]:
    """The variables with their values in one form; switches that are off are left out.

    Raises:
        OptionError: a value that means nothing, before anything starts.
    """
    values: dict[str, str] = {}
    for name, text in given.values.items():
        try:
            value = _value(goal, name, text.strip())
        except OptionError as error:
            if name not in given.inherited:
                raise
            raise OptionError(f"{error} (it comes from the environment: unset {name})") from None
        if value:
            values[name] = value
    _check_precisions(values)
    return values


def _value(goal: str, name: str, text: str) -> str:
    if name in SWITCHES:
        if text.lower() not in (*_ON, *_OFF):
            raise OptionError(f"{name}={text}: write 1 or 0")
        return "1" if text.lower() in _ON else ""
    if name == "VERIFY":
        if text.lower() not in ("full", *_OFF):
            raise OptionError(f"VERIFY={text}: its one value is full")
        return "full" if text.lower() == "full" else ""
    if name == "CONFIG" and not (ROOT / text).is_file():
        raise OptionError(
            f"CONFIG={text}: no such file; name a pipeline file, e.g. {DEFAULT_CONFIG}"
        )
    if name in COUNTS and not (text.isdigit() and int(text) > 0):
        raise OptionError(f"{name}={text}: write a whole number above 0")
    if name in LISTS:
        return ",".join(_chosen(goal, name, text))
    return text


def _chosen(goal: str, name: str, text: str) -> list[str]:
    """A list, with commas or spaces between; names in any case."""
    offered = {
        "TASK": tuple(TASK_COMPONENTS),
        "COMPONENT": tuple(dict.fromkeys(c for some in TASK_COMPONENTS.values() for c in some)),
        "TARGET": _targets(BACKENDS.get(goal), also=("onnx",) if goal == "bisect" else ()),
        "PRECISION": tuple(PRECISIONS),
    }[name]
    names = [part.lower() for part in re.split(r"[,\s]+", text) if part]
    for part in names:
        if part not in offered:
            what = name.lower()
            if name == "TARGET" and part in _targets(None):
                what = f"target that make {goal} builds"
            close = difflib.get_close_matches(part, offered, 1)
            hint = f"write {close[0]}" if close else f"choose from: {', '.join(offered)}"
            raise OptionError(f"{name}={text}: {part} is no {what}; {hint}")
    return list(dict.fromkeys(names))


def _targets(backend: str | None, also: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of all targets of a backend: one YAML file each."""
    names = {path.stem: _line(path, "backend") for path in sorted(TARGETS.glob("*.yaml"))}
    return (*also, *(name for name, one in names.items() if backend in (None, one)))


def _check_precisions(values: dict[str, str]) -> None:
    if "TARGET" not in values or "PRECISION" not in values:
        return
    for target in values["TARGET"].split(","):
        found = re.findall(r"\w+", _line(TARGETS / f"{target}.yaml", "precisions"))
        for precision in values["PRECISION"].split(","):
            if found and precision not in found:
                raise OptionError(
                    f"PRECISION={precision}: {target} cannot be built in it; "
                    f"choose from: {', '.join(found)}"
                )


def _line(path: Path, key: str) -> str:
    """What stands behind a key at the start of a line."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(rf"^{key}:\s*([^#\n]*)", text, re.M)
    return found[1].strip() if found else ""


def _of_caller(text: str, caller: Path) -> str:
    """A path as make's caller means it: of where they stand, or else of the checkout."""
    path = caller / text
    if Path(text).is_absolute() or caller.resolve() == ROOT:
        return text
    return str(path.resolve()) if path.exists() or not (ROOT / text).exists() else text
