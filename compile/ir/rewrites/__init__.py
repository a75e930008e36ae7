"""Rewrites of an ``openvino.Model``, one file each; compile/ir/parity.py proves every one.

A module has a ``REASON`` and ``rewrite(model, net) -> Rewritten``: it changes the model in place
and says how the contract's tensors are found in it afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.manifest import Net

if TYPE_CHECKING:
    import openvino


@dataclass(frozen=True)
class Rewritten:
    """What a rewrite did."""

    #: places that were changed; 0 means that the model is as before
    sites: int
    net: Net


class RewriteModule(Protocol):
    """The interface of a module in this package."""

    REASON: str

    def rewrite(self, model: openvino.Model, net: Net) -> Rewritten:
        """Changes ``model`` in place.

        Raises:
            ToolError: not a graph that export writes.
        """
