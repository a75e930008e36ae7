"""Graph rewrites that a chip may need: one file each, named as in ``configs/targets/*.yaml``.

A rewrite module has a ``REASON`` and ``rewrite(model, folder) -> Rewritten``, which changes the
graph in place. Each one is checked against the plain graph under onnxruntime
(compile/bmodel/prepare.py).
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from configs.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from compile.graphs.graph import Array


@dataclass(frozen=True)
class Lookup:
    """A table lookup that moved from the graph to the host."""

    #: graph input that holds the row numbers
    indices: str
    #: new graph input that takes the rows, ``[..., hidden]`` float32
    input: str
    #: ``[rows, hidden]`` float32
    table: Array


@dataclass(frozen=True)
class Rewritten:
    """What a rewrite did."""

    #: places that were changed; 0 means that the graph is as before
    sites: int
    lookups: tuple[Lookup, ...] = ()


class RewriteModule(Protocol):
    """The interface of a module in this package."""

    REASON: str

    def rewrite(self, model: onnx.ModelProto, folder: Path) -> Rewritten:
        """Changes ``model`` in place; its external weights lie in ``folder``."""


def names() -> tuple[str, ...]:
    """All rewrites there are."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def check_names(wanted: tuple[str, ...], where: str) -> None:
    """Rejects a rewrite that does not exist, without loading any.

    Raises:
        ConfigError: an unknown name.
    """
    for name in wanted:
        if name not in names():
            raise ConfigError(
                f"{where}: rewrites: unknown rewrite {name!r}; choose from: {', '.join(names())}"
            )


def load(name: str) -> RewriteModule:
    """The module of one rewrite."""
    return cast("RewriteModule", import_module(f"{__name__}.{name}"))
