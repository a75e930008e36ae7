"""The wheels of a bundle: our own runtime, and on request what it needs on another machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from configs.errors import ConfigError, ToolError
from configs.layout import REPOSITORY_ROOT

REQUIREMENTS = REPOSITORY_ROOT / "requirements"
_SOURCES = ("pyproject.toml", "README.md", "LICENSE")
#: Dates of files in a zip file begin here.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_TAG = re.compile(r"cp3(?P<minor>[0-9]{1,2})-(?P<machine>aarch64|x86_64)")
#: glibc releases whose wheels the machines have: Ubuntu 20.04 and later.
_GLIBC = ("2014", *(f"_2_{minor}" for minor in range(31, 16, -1)))
#: Not for what it needs at run time: docs/runtime.md.
_NEEDED = ("numpy", "pillow", "tokenizers")
_BACKENDS = {"openvino": "openvino", "openvino_npu": "openvino"}


def build_runtime_wheel(work: Path) -> Path:
    """Builds ``blip_edge`` in a temporary folder, so that the same sources give the same bytes.

    Raises:
        ToolError: setuptools cannot build it.
    """
    sources, built = work / "sources", work / "built"
    sources.mkdir(parents=True)
    for name in _SOURCES:
        shutil.copy(REPOSITORY_ROOT / name, sources)
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(REPOSITORY_ROOT / "runtime", sources / "runtime", ignore=ignored)
    built.mkdir()
    program = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    _run("the wheel of runtime/", ["-c", program, str(built)], sources)
    (wheel,) = built.glob("*.whl")
    path = work / wheel.name
    _rewrite(wheel, path)
    return path


def _rewrite(wheel: Path, path: Path) -> None:
    """The same files without dates and rights of this machine; RECORD stays true."""
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        names = sorted(name for name in old.namelist() if not name.endswith("/"))
        names.sort(key=lambda name: name.endswith(".dist-info/RECORD"))
        for name in names:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            new.writestr(entry, old.read(name))


def wheel_version(wheel: Path) -> str:
    """The release that a wheel's name has."""
    return wheel.name.split("-")[1]


def check_tag(tag: str, target: str) -> None:
    """Checks what WHEELS names.

    Raises:
        ConfigError: no Python and processor, or of a target that has no wheels there.
    """
    if _TAG.fullmatch(tag) is None:
        raise ConfigError(f"WHEELS={tag}: must be a Python and a processor, e.g. cp38-aarch64")
    if target in _BACKENDS and _pins(tag, _BACKENDS[target]) == []:
        raise ConfigError(f"WHEELS={tag}: no release of {_BACKENDS[target]} is named for it")


def download_wheels(tag: str, target: str, into: Path) -> list[Path]:
    """Downloads wheels of exactly the releases that ``requirements/`` names.

    Raises:
        ToolError: the package index has none for this machine, or cannot be reached.
    """
    match = _TAG.fullmatch(tag)
    if match is None:
        raise ConfigError(f"WHEELS={tag}: must be a Python and a processor, e.g. cp38-aarch64")
    names = [*_NEEDED, *([_BACKENDS[target]] if target in _BACKENDS else [])]
    pins = [pin for name in names for pin in _pins(tag, name)]
    platforms = [f"--platform=manylinux{glibc}_{match['machine']}" for glibc in _GLIBC]
    options = ["--no-deps", "--only-binary=:all:", "--dest", str(into), "--implementation=cp"]
    pip = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", *options]
    version = f"--python-version=3.{match['minor']}"
    _run(f"wheels for {tag}", [*pip, version, *platforms, *pins], into)
    return sorted(into.glob("*.whl"))


def _pins(tag: str, name: str) -> list[str]:
    """Python 3.8 has releases of its own; every other one gets those of the pipeline."""
    old = tag.startswith("cp38-")
    files = ("runtime.txt", "runtime-openvino.txt") if old else ("pipeline.txt",)
    lines = [line for file in files for line in (REQUIREMENTS / file).read_text().splitlines()]
    wanted = [line.partition(";") for line in lines if line.startswith(f"{name}==")]
    return [pin.strip() for pin, _, marker in wanted if not old or '< "3.9"' in marker]


def _run(what: str, arguments: list[str], folder: Path) -> None:
    """Runs Python in a folder; raises ToolError with the tool's own words."""
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("ERROR")] or lines or ["no output"]
        raise ToolError(f"{what}: exit code {result.returncode}: {said[-1].strip()}")
