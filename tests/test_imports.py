"""Data flows one way: which package may import which (docs/data-flow.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("configs", "export", "compile", "runtime", "verify")
ALLOWED = {
    "configs": {"configs"},
    "export": {"configs", "export"},
    "compile": {"configs", "compile"},
    "runtime": {"runtime"},
    "verify": {"configs", "runtime", "verify"},
}
#: Folders that may import more: nets are calibrated with inputs that the runtime's functions made.
ALSO_ALLOWED = {"compile/calibration": {"runtime"}}
TORCH_FREE = ("configs", "compile", "runtime")


def imported(path: Path) -> set[str]:
    """Top-level names of every module a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", STAGES)
def test_stages_import_only_what_lies_upstream(package: str) -> None:
    assert files(package)
    for path in files(package):
        others = imported(path) & set(STAGES)
        more = ALSO_ALLOWED.get(path.parent.relative_to(ROOT).as_posix(), set())
        assert others <= ALLOWED[package] | more, f"{path.relative_to(ROOT)} imports {others}"


@pytest.mark.parametrize("package", TORCH_FREE)
def test_no_torch_outside_export_and_verify(package: str) -> None:
    for path in files(package):
        assert not imported(path) & {"torch", "transformers"}, path.relative_to(ROOT)


def test_nothing_imports_the_builtin_shadowing_way() -> None:
    for package in (*STAGES, "scripts", "tests"):
        for path in files(package):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    assert all(alias.name != "compile" for alias in node.names), path


def test_no_module_is_named_after_a_library_it_would_hide() -> None:
    taken = {"onnx", "openvino", "onnxruntime", "torch", "numpy", "yaml", "utils", "tools"}
    for package in STAGES:
        assert not {path.stem for path in files(package)} & taken
