"""Digests of our own source files: of those modules that decide a result, and of no others.

A digest starts at the modules that make the result and follows their imports, those inside
functions too. What is forgotten here rebuilds too much, never too little: everything counts but
what ``DECIDES_NOTHING`` or a caller leaves out (docs/adr/0017-exact-keys.md).
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from configs.errors import ConfigError
from configs.layout import REPOSITORY_ROOT

Names = tuple[str, ...]

#: Modules that decide nothing about the content of any artifact, check or answer, and why.
DECIDES_NOTHING = {
    "compile.calibration.given": "lets a user's files pass or refuses them",
    "configs.errors": "classes of errors",
    "configs.layout": "an artifact of another path is another artifact",
    "configs.load": "keys hold the values that it reads",
    "configs.schema": "keys hold the values that it checks",
    "pipeline.goals.annotations": "messages",
    "pipeline.atomic": "moves finished files and folders into place",
    "pipeline.build": "decides whether to build",
    "pipeline.command": "decides what is asked for",
    "pipeline.console": "progress and messages",
    "pipeline.json_file": "lets files pass or refuses them",
    "pipeline.owner": "refuses another pipeline file",
    "pipeline.runtime_errors": "classes of errors",
    "pipeline.settings": "keys hold the settings",
    "pipeline.sources": "the digests themselves",
    "pipeline.work_cache": "keeps intermediates under keys of their own",
    "runtime": "public names; this project imports from the modules themselves",
    "runtime.errors": "classes of errors",
    "runtime.files.integrity": "lets files pass or refuses them",
    "runtime.files.user_cache": "where digests and compiled models are kept",
}


def source_digest(
    *roots: str, without: Collection[str] = (), by_name: Collection[str] | None = None
) -> str:
    """Digest of what :func:`sources` finds: the version of a stage that no one forgets to raise."""
    return _digest(roots, tuple(without), None if by_name is None else tuple(by_name))


@cache
def _digest(roots: tuple[str, ...], without: tuple[str, ...], by_name: Names | None) -> str:
    digest = hashlib.sha256()
    for name in sorted(sources(*roots, without=without, by_name=by_name)):
        digest.update(f"{name} {_module(name).sha256}\n".encode())
    return digest.hexdigest()[:16]


def sources(
    *roots: str, without: Collection[str] = (), by_name: Collection[str] | None = None
) -> set[str]:
    """Names of the modules that decide what ``roots`` make.

    Args:
        roots: modules, and packages with all of their modules.
        without: modules and packages that this result does not use; their imports do not count.
        by_name: modules that ``import_module`` loads for this result; None for all that it could.

    Raises:
        ConfigError: a root or a module of ``by_name`` does not exist.
    """
    found: set[str] = set()
    waiting = [name for root in (*roots, *(by_name or ())) for name in _below(root)]
    chosen = set(waiting)
    while waiting:
        name = waiting.pop()
        if name in found or (name not in chosen and _left_out(name, without)):
            continue
        found.add(name)
        module = _module(name)
        waiting += module.imports
        if by_name is None:
            waiting += [one for package in module.loads for one in _below(package)]
    return found


def _left_out(name: str, without: Iterable[str]) -> bool:
    return name in DECIDES_NOTHING or any(f"{name}.".startswith(f"{one}.") for one in without)


@cache
def _below(root: str) -> tuple[str, ...]:
    """A module, or every module of a package."""
    path = REPOSITORY_ROOT.joinpath(*root.split("."))
    if path.is_dir():
        files = sorted(path.rglob("*.py"))
        names = (file.relative_to(REPOSITORY_ROOT).with_suffix("").parts for file in files)
        return tuple(".".join(n[:-1] if n[-1] == "__init__" else n) for n in names)
    if not _is_own(root):
        raise ConfigError(f"{root}: no module of this project; correct the name")
    return (root,)


@cache
def _is_own(name: str) -> bool:
    path = REPOSITORY_ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@dataclass(frozen=True)
class _Module:
    sha256: str
    #: our own modules that it imports, the packages around them included
    imports: Names
    #: packages of which it loads modules by name
    loads: Names


@cache
def _module(name: str) -> _Module:
    path = REPOSITORY_ROOT.joinpath(*name.split("."))
    is_package = path.is_dir()
    content = (path / "__init__.py" if is_package else path.with_suffix(".py")).read_bytes()
    imported = set(_imports(content, name if is_package else name.rpartition(".")[0]))
    # Loading a.b.c runs a and a.b before.
    parts = [one.split(".") for one in imported]
    around = {".".join(p[:end]) for p in parts for end in range(1, len(p))}
    own = sorted(one for one in imported | around if _is_own(one))
    loads = tuple(_loads(content.decode(), name))
    return _Module(hashlib.sha256(content).hexdigest(), tuple(own), loads)


#: Import statements, wherever they stand; parsing whole files takes ten times as long.
_STATEMENT = re.compile(
    rb"^[ \t]*(from[ \t]+[\w.]+[ \t]+import[ \t]+(?:\([^)]*\)|[^\n]*)|import[ \t]+[^\n]*)", re.M
)
#: What only the type checker imports does not run.
_TYPES_ALONE = re.compile(rb"^if TYPE_CHECKING:\n(?:[ \t]+[^\n]*\n|\n)+", re.M)
#: ``import_module(f"package.{module}")``, or of anything else.
_BY_NAME = re.compile(r"import_module\(\s*(?:f?\"([^\"]*)\")?")


def _imports(content: bytes, package: str) -> Iterator[str]:
    """Full names of everything that a module imports, be it at its start or in a function."""
    try:
        lines = _STATEMENT.findall(_TYPES_ALONE.sub(b"", content))
        tree = ast.parse(b"\n".join(lines))
    except SyntaxError:
        # A line of a text that begins like an import.
        tree = ast.parse(content)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _loads(text: str, name: str) -> Iterator[str]:
    """Modules and packages that ``import_module`` loads, or loads from."""
    for wanted in _BY_NAME.findall(text):
        start, dynamic, _ = wanted.replace("{__name__}", name).partition("{")
        if _is_own(start.rstrip(".")):
            yield start.rstrip(".")
        elif dynamic or not wanted:
            # Any of its own stage, where that cannot be read off.
            yield name.partition(".")[0]
