"""``python -m pipeline GOAL``: what make calls; exit code 0, 1 or 2, where make has 2 for all.

It checks the options, and then runs the stages one after the other, each in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import sys

from pipeline.goals.annotations import annotate
from pipeline.goals.options import GOALS, SWITCHES, Given, OptionError, checked, from_make
from pipeline.goals.stages import STAGES, option, run


def _parsed(arguments: list[str]) -> tuple[str, Given]:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    parser.add_argument("goal", choices=sorted(STAGES))
    known, rest = parser.parse_known_args(arguments)
    one = argparse.ArgumentParser(prog=f"python -m pipeline {known.goal}", allow_abbrev=False)
    for name in GOALS[known.goal]:
        if name in SWITCHES or name == "VERIFY":
            one.add_argument(option(name), dest=name, action="store_const", const="1", default="")
        else:
            one.add_argument(option(name), dest=name, default="")
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
            notes: dict[str, None] = {}
            for one in os.environ.get("MAKECMDGOALS", "").split() or ["help"]:
                given = from_make(one, os.environ)
                checked(one, given)
                notes.update(dict.fromkeys(f"{n}={given.values[n]}" for n in given.inherited))
            for note in notes:
                print(f"note: {note} comes from the environment", file=sys.stderr)
            return 0
        return run(goal, checked(goal, from_make(goal, os.environ)))
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        annotate(str(error))
        return 2


if __name__ == "__main__":
    if sys.version_info < (3, 8):  # noqa: UP036 - the system's python3 may be any
        sys.exit("error: python3 is older than 3.8; put a newer one first on the PATH")
    sys.exit(main(sys.argv[1:]))
