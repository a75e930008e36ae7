"""Runs TPU-MLIR's tools in their own environment, as the build did."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from configs.errors import ToolError
from configs.layout import TPU_ENVIRONMENT
from configs.load import shown

TIMEOUT_S = 1800.0
#: Variables of another Python or tool chain.
_FOREIGN = re.compile(r"^(PYTHON|VIRTUAL_ENV|CONDA|LD_|OMP_)")


def run_tool(argv: Sequence[str], folder: Path) -> None:
    """Runs one tool in ``folder``; what it prints goes to ``<tool>.log`` there.

    Raises:
        ToolError: the tool is missing, failed, or took too long.
    """
    program = TPU_ENVIRONMENT / "bin" / argv[0]
    if not program.is_file():
        raise ToolError(f"{shown(program)}: vendor tool not found; run: make setup-tpu")
    log = folder / f"{argv[0]}.log"
    kept = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    kept["PATH"] = os.pathsep.join([str(program.parent), kept.get("PATH", "")])
    with log.open("ab") as stream:
        try:
            done = subprocess.run(
                [str(program), *argv[1:]],
                cwd=folder,
                env=kept | {"PYTHONNOUSERSITE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ToolError(f"{argv[0]}: did not finish in {TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise ToolError(f"{argv[0]}: exit code {done.returncode}: {' | '.join(last)[:300]}")
