"""Whether a board's figures can be: against the folder's own reference, and against each other.

They are sums that the board made itself. A figure that was mistyped, or made smaller to pass, is
found where it contradicts the others; a whole set of invented figures that agree is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import InputError
from configs.load import shown
from pipeline.manifest import file_sha256
from runtime.board_test import figures as figures_of
from verify.board.results import Figures

#: The board sums in float64, in another order than this machine.
_ROUNDING = 1e-6
#: What is left where large sums cancel, relative to them.
_CANCELLED = 1e-11


def references(folder: Path, expected: Mapping[str, Any]) -> list[dict[str, dict[str, Any]]]:
    """Per case and output of a component, the figures of a perfect answer.

    Args:
        folder: the board-test folder that was kept here.
        expected: the component's entry in its description.

    Raises:
        InputError: the recorded cases are missing or were changed.
    """
    path = folder / expected["file"]
    if not path.is_file() or file_sha256(path) != expected["sha256"]:
        raise InputError(f"{shown(path)}: missing or changed; run: make board-test, and the board")
    with np.load(path, allow_pickle=False) as arrays:
        return [
            {
                name: figures_of(outputs := arrays[f"{index}/outputs/{name}"], outputs, rows)
                for name, rows in case["outputs"].items()
            }
            for index, case in enumerate(expected["cases"])
        ]


def contradiction(found: Figures, reference: Mapping[str, Any]) -> str | None:
    """What cannot be in the figures of one output, or None."""
    if found.elements != reference["elements"]:
        return f"{found.elements} elements, the folder has {reference['elements']}"
    for name in ("scale", "reference_square"):
        given, right = getattr(found, name), reference[name]
        if abs(given - right) > _ROUNDING * right:
            return f"{name} {given:.6g}, the folder's reference has {right:.6g}"
    # The squared distance, which lies between the largest element's and that of all as large.
    residual = found.square + found.reference_square - 2 * found.product
    slack = _CANCELLED * (found.square + found.reference_square)
    least = found.max_abs**2 * (1 - _ROUNDING) - slack
    most = found.elements * found.max_abs**2 * (1 + _ROUNDING) + slack
    if not least <= residual <= most:
        return f"largest error {found.max_abs:.3g} contradicts the sums"
    return None
