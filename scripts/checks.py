"""What the doctor looks at: every finding carries its own cure."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from configs.errors import BlipEdgeError
from configs.layout import REPOSITORY_ROOT, TPU_ENVIRONMENT
from configs.load import load_target
from configs.schema import PipelineConfig
from scripts import setup_tpu
from scripts.glibc_mend import inspect
from scripts.tpu_python import find_python

Status = Literal["ok", "missing", "warning", "absent"]

#: Artifacts of the default pipeline, vendor intermediates and room to replace them.
DISK_BYTES = 4 * 2**30
#: Largest peak of the default pipeline; a full-size BLIP-base needs 6 GiB.
MEMORY_BYTES = 3 * 2**30
FULL_SIZE_MEMORY_BYTES = 6 * 2**30
#: Chromium's names on Debian, Ubuntu and Fedora, and Google's own.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MINIMUM_PYTHON = (3, 11)


@dataclass(frozen=True)
class Check:
    """One finding. ``missing`` blocks the default pipeline, ``warning`` and ``absent`` do not."""

    name: str
    status: Status
    found: str
    cure: str = ""
    #: checks of one group are shown as one line while all of them are ok
    group: str = ""


@dataclass(frozen=True)
class TargetReport:
    """What this machine can do for one target."""

    name: str
    build: bool
    #: where its artifacts can be run here, e.g. ``simulator``
    verify: tuple[str, ...]
    precisions: tuple[str, ...]
    cure: str = ""


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def check_python() -> Check:
    """The interpreter of the pipeline's own environment."""
    version = platform.python_version()
    if tuple(map(int, platform.python_version_tuple()[:2])) >= MINIMUM_PYTHON:
        return Check("Python", "ok", version)
    return Check("Python", "missing", version, "make setup with Python 3.11 or newer")


def check_packages() -> Iterator[Check]:
    """Packages of requirements/pipeline.txt, each in its pinned version."""
    for line in (REPOSITORY_ROOT / "requirements" / "pipeline.txt").read_text().splitlines():
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)==(\S+)", line.strip())
        if not match:
            continue
        name, wanted = match[1], match[2]
        try:
            found = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            yield Check(name, "missing", "not installed", "make setup")
            continue
        if found == wanted:
            yield Check(name, "ok", found, group="Python packages")
        else:
            yield Check(name, "missing", f"{found}, pinned is {wanted}", "rm -r .venv; make setup")


def check_compilers() -> Check:
    """Programs with which TPU-MLIR compiles kernels for the nets with attention masks."""
    missing = [name for name in setup_tpu.COMPILERS if shutil.which(name) is None]
    if missing:
        cure = "apt-get install build-essential cmake"
        return Check("compilers", "missing", f"no {', '.join(missing)}", cure)
    return Check("compilers", "ok", ", ".join(setup_tpu.COMPILERS))


def check_tpu_environment() -> Iterator[Check]:
    """TPU-MLIR, its Python 3.10 and its glibc mend."""
    package = setup_tpu.package_folder(TPU_ENVIRONMENT)
    if not setup_tpu.environment_python(TPU_ENVIRONMENT).exists() or not package.is_dir():
        try:
            cure = f"make setup-tpu (will use {find_python()})"
        except BlipEdgeError as error:
            cure = str(error)
        yield Check("tpu_mlir", "missing", f"no {TPU_ENVIRONMENT.name}", cure)
        return
    site = str(package.parent)
    version = next(
        (found.version for found in metadata.distributions(name="tpu_mlir", path=[site])), "unknown"
    )
    if setup_tpu.is_current(TPU_ENVIRONMENT):
        yield Check("tpu_mlir", "ok", f"{version}, Python 3.10")
    else:
        found = f"{version}, set-up incomplete or out of date"
        yield Check("tpu_mlir", "missing", found, "make setup-tpu")
    try:
        state = inspect(package)
    except BlipEdgeError as error:
        yield Check("glibc mend", "missing", "cannot tell", str(error))
        return
    cure = "python -m scripts.setup_tpu" if state.state == "unmended" else ""
    yield Check("glibc mend", "missing" if cure else "ok", str(state), cure)


def free_bytes(folder: Path) -> int:
    """Free space of the disk that a folder lies on, or will lie on once it is made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_machine(artifacts: Path) -> Iterator[Check]:
    """Cores, memory, and the disk that artifacts go to."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("processor cores", "ok", f"{usable} ({platform.machine()})")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < MEMORY_BYTES:
        cure = f"use a machine with {_size(MEMORY_BYTES)}"
        yield Check("memory", "missing", _size(memory), cure)
    elif memory < FULL_SIZE_MEMORY_BYTES:
        cure = f"full-size checkpoints need {_size(FULL_SIZE_MEMORY_BYTES)}"
        yield Check("memory", "warning", _size(memory), cure)
    else:
        yield Check("memory", "ok", _size(memory))
    free = free_bytes(artifacts)
    if free < DISK_BYTES:
        cure = f"free {_size(DISK_BYTES)}; make clean removes artifacts"
        yield Check("free disk", "missing", _size(free), cure)
    else:
        yield Check("free disk", "ok", _size(free))


def check_checkpoints(pipeline: PipelineConfig) -> Iterator[Check]:
    """The checkpoints that a pipeline names; of those on the hub, whether they can be had."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from export.checkpoint import find

    for task, config in pipeline.tasks.items():
        name = f"checkpoint ({task})"
        try:
            missing = sum(find(task, config).missing.values())
        except BlipEdgeError as error:
            yield Check(name, "missing", config.checkpoint, str(error))
            continue
        found = (
            f"{config.checkpoint}, {_size(missing)} to download" if missing else config.checkpoint
        )
        if missing > free_bytes(Path(HF_HUB_CACHE)):
            yield Check(name, "missing", found, f"free {_size(missing)} of disk")
        else:
            yield Check(name, "ok", found)


def check_devices() -> Iterator[Check]:
    """SOPHON hardware and its Python library: optional, artifacts are verified on the simulator."""
    if importlib.util.find_spec("sophon") is None:
        cure = "only for running on a SOPHON board or card: docs/boards.md"
        yield Check("sophon-sail", "absent", "not installed", cure)
    else:
        yield Check("sophon-sail", "ok", "installed")
    nodes = sorted(path.name for path in Path("/dev").glob("bm-sophon*"))
    found = ", ".join(nodes) if nodes else "no card or SoC here"
    yield Check("SOPHON device", "ok" if nodes else "absent", found)


def browser_path() -> str | None:
    """An installed Chromium: the environment's ``BROWSER_PATH``, or the first on the path."""
    if given := os.environ.get("BROWSER_PATH"):
        return given
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def check_browser() -> Check:
    """Chromium, which only the tests of the report need."""
    if path := browser_path():
        return Check("browser", "ok", path)
    cure = "only for make test-browser: apt-get install chromium"
    return Check("browser", "absent", "no Chromium", cure)


def openvino_devices() -> tuple[str, ...]:
    """Devices that OpenVINO can run on here."""
    if importlib.util.find_spec("openvino") is None:
        return ()
    import openvino

    return tuple(openvino.Core().available_devices)


def report_target(name: str, tpu_ready: bool) -> TargetReport:
    """Whether a target can be built and verified here, and what is in the way."""
    target = load_target(name)
    if target.backend == "openvino":
        devices = openvino_devices()
        cure = "" if devices else "make setup"
        return TargetReport(name, bool(devices), devices, target.precisions, cure)
    library = setup_tpu.package_folder(TPU_ENVIRONMENT) / "lib" / f"libcmodel_{name}.so"
    compilers = check_compilers()
    build = (
        tpu_ready and library.with_name(f"libbackend_{name}.so").is_file() and not compilers.cure
    )
    verify: tuple[str, ...] = ("simulator",) if tpu_ready and library.is_file() else ()
    if importlib.util.find_spec("sophon") and any(Path("/dev").glob("bm-sophon*")):
        verify += ("device",)
    cure = "" if build and verify else (tpu_ready and compilers.cure) or "make setup-tpu"
    return TargetReport(name, build, verify, target.precisions, cure)
