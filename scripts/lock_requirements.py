"""Writes the lock files of both environments: every package with the digests of its files.

Run as ``python -m scripts.lock_requirements`` after a change in ``requirements/``, with a network.
Versions that still fit stay as they are; ``--upgrade`` takes the newest ones that fit.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts import setup_environment, setup_tpu

REQUIREMENTS = setup_environment.ROOT / "requirements"
HEADER = """\
# {what}: exactly these files, by their SHA-256.
# Written by: python -m scripts.lock_requirements
"""
#: torch, and what only its CUDA build needs.
_CUDA = re.compile(r"(nvidia|cuda)-|triton==|torch==")
#: PyTorch's CPU build, from its own index: 0.2 GB, where PyPI's build takes 4 GB.
_CPU_BUILD = """\
torch==2.13.0+cpu \\
    --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"""


def resolve(requirements: Path, lock: Sequence[Path], python: str, *, upgrade: bool) -> list[str]:
    """Requirements of a file with everything that they need, each with the digests of its files."""
    uv = Path(sys.executable).with_name("uv")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "lock.txt")
        # What is in the file that uv writes to stays, where it fits.
        made.write_text("\n".join(p.read_text(encoding="utf-8") for p in lock if p.is_file()))
        command = [str(uv), "pip", "compile", "--quiet", "--no-config", "--generate-hashes"]
        command += ["--no-header", "--no-annotate", "--no-emit-index-url"]
        command += ["--python-version", python, "--python-platform", "x86_64-unknown-linux-gnu"]
        command += [*(["--upgrade"] if upgrade else []), "--output-file", str(made)]
        subprocess.run([*command, str(requirements)], check=True)
        text = made.read_text(encoding="utf-8")
    return [entry for entry in re.split(r"\n(?=\S)", text.strip()) if "==" in entry]


def write(lock: Path, what: str, entries: Sequence[str]) -> None:
    """Writes a lock file."""
    lock.write_text(HEADER.format(what=what) + "\n".join(entries) + "\n", encoding="utf-8")
    print(f"{lock.name}: {len(entries)} packages")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.lock_requirements", description=__doc__
    )
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    upgrade = parser.parse_args(arguments).upgrade
    own, cuda, cpu = (
        setup_environment.LOCK,
        setup_environment.CUDA_LOCK,
        setup_environment.CPU_LOCK,
    )
    try:
        entries = resolve(REQUIREMENTS / "development.txt", (own, cuda), "3.11", upgrade=upgrade)
        tools = resolve(REQUIREMENTS / "tpu.txt", (setup_tpu.LOCK,), "3.10", upgrade=upgrade)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: uv could not resolve the requirements ({error})", file=sys.stderr)
        return 1
    write(own, "Every package of .venv but torch", [e for e in entries if not _CUDA.match(e)])
    cuda_only = [entry for entry in entries if _CUDA.match(entry)]
    write(cuda, "torch as PyPI has it, and what only it needs", cuda_only)
    write(cpu, "torch's CPU build, taken where an index or a folder of wheels has it", [_CPU_BUILD])
    write(setup_tpu.LOCK, "Every package of .venv-tpu", tools)
    return 0


if __name__ == "__main__":
    sys.exit(main())
