"""Names of an IR's operations that are the same in every build."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino


def name_by_position(model: openvino.Model) -> None:
    """Renames operations that OpenVINO named itself, and constants that NNCF made of them.

    OpenVINO numbers them by a counter of the process: by what was built before or beside.
    """
    operations = model.get_ordered_ops()
    names = {}
    for position, operation in enumerate(operations):
        name, kind = operation.get_friendly_name(), operation.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", name):
            names[name] = f"{kind}_{position}"
    for operation in operations:
        own, slash, rest = operation.get_friendly_name().partition("/")
        if own in names:
            operation.set_friendly_name(f"{names[own]}{slash}{rest}")
