"""The runtime's errors as the pipeline's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import runtime.errors
from configs.errors import BlipEdgeError, InputError, ToolError


@contextmanager
def runtime_failures() -> Iterator[None]:
    """Turns the runtime's errors into the pipeline's, with the same text and exit code."""
    try:
        yield
    except runtime.errors.BlipEdgeError as error:
        kind: type[BlipEdgeError] = InputError if error.exit_code == 2 else ToolError
        raise kind(str(error)) from error
