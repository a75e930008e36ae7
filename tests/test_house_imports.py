"""Data flows one way: which package may import which, without circles, in rooms of a dozen."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "configs": {"configs"},
    "pipeline": {"configs", "pipeline"},
    "export": {"configs", "pipeline", "export"},
    "compile": {"configs", "pipeline", "compile"},
    "runtime": {"runtime"},
    "verify": {"configs", "pipeline", "runtime", "verify"},
    "bundle": {"configs", "pipeline", "runtime", "verify", "bundle"},
    "benchmarks": {"configs", "pipeline", "runtime", "verify", "benchmarks"},
}
#: Folders that may import more: nets are calibrated with inputs that the runtime's functions made.
ALSO_ALLOWED = {"compile/calibration": {"runtime"}}
#: Modules that ``pipeline`` may import: a manifest's format is the one contract between stages.
CONTRACT = ("runtime.errors", "runtime.files")
TORCH_FREE = ("configs", "pipeline", "compile", "runtime")
#: Modules of one folder, ``__init__.py`` not counted, that still read as one list.
MOST_MODULES = 14


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> frozenset[str]:
    return frozenset(module_name(path) for package in ALLOWED for path in files(package))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imported(path: Path, *, at_start: bool = False, types: bool = True) -> set[str]:
    """Full names of every module that a file imports; ``at_start``: those it needs to load.

    ``types`` says whether those for the type checker alone count.
    """
    found: set[str] = set()
    here = module_name(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            inside = {f"{module}.{alias.name}" for alias in node.names} & modules()
            found.update(inside or {module})
        for child in ast.iter_child_nodes(node):
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            for_types = is_type_checking(child) and (at_start or not types)
            if not (for_types or (at_start and inner)):
                visit(child)

    visit(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_stages_import_only_what_lies_upstream(package: str) -> None:
    assert files(package)
    for path in files(package):
        names = imported(path)
        if package == "pipeline":
            names = {name for name in names if not name.startswith(CONTRACT)}
        others = {name.split(".")[0] for name in names} & set(ALLOWED)
        more = ALSO_ALLOWED.get(path.parent.relative_to(ROOT).as_posix(), set())
        assert others <= ALLOWED[package] | more, f"{path.relative_to(ROOT)} imports {others}"


def test_runtime_is_one_folder_under_any_name() -> None:
    for path in files("runtime"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] != "runtime", path
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] != "runtime" for alias in node.names), path


@pytest.mark.parametrize("package", TORCH_FREE)
def test_no_torch_outside_export_and_verify(package: str) -> None:
    for path in files(package):
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & {"torch", "transformers"}, path.relative_to(ROOT)


def test_no_circle() -> None:
    """Modules that need each other to load can be neither read nor tested apart."""
    needs = {
        module_name(path): imported(path, at_start=True) & modules()
        for package in ALLOWED
        for path in files(package)
    }
    settled: set[str] = set()
    open_now: list[str] = []

    def visit(name: str) -> None:
        if name in settled:
            return
        assert name not in open_now, " -> ".join([*open_now[open_now.index(name) :], name])
        open_now.append(name)
        for other in sorted(needs[name]):
            visit(other)
        open_now.pop()
        settled.add(name)

    for name in sorted(needs):
        visit(name)


def test_every_folder_reads_as_one_list() -> None:
    for package in (*ALLOWED, "scripts"):
        sizes = Counter(path.parent for path in files(package) if path.name != "__init__.py")
        for folder, count in sizes.items():
            assert count <= MOST_MODULES, f"{folder.relative_to(ROOT)} has {count} modules"


def test_nothing_imports_the_builtin_shadowing_way() -> None:
    for package in (*ALLOWED, "scripts", "tests"):
        for path in files(package):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    assert all(alias.name != "compile" for alias in node.names), path


def test_no_module_is_named_after_a_library_it_would_hide() -> None:
    taken = {"onnx", "openvino", "onnxruntime", "torch", "numpy", "yaml", "utils", "tools"}
    for package in ALLOWED:
        assert not {path.stem for path in files(package)} & taken
