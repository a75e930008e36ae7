"""Where, when and with what a verification ran."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from configs.layout import REPOSITORY_ROOT
from pipeline.build import tool_versions

_TOOLS = ("numpy", "onnxruntime", "openvino", "torch", "transformers", "pillow", "tokenizers")


def run_facts(started: float, selection: dict[str, Any]) -> dict[str, Any]:
    """One run as verify.json lists it; ``started`` is of ``time.monotonic``."""
    return {
        "commit": commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "host": {
            "name": platform.node(),
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
        "tools": {"python": platform.python_version(), **tool_versions(*_TOOLS)},
        "selection": selection,
    }


def commit() -> str | None:
    """The commit of this checkout, with ``+`` where files were changed since; None outside git."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY_ROOT), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=20
    ).stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
