"""Errors that a user of the runtime can act on, and the exit code each one means."""

from __future__ import annotations


class BlipEdgeError(Exception):
    """Base of all expected failures: one line saying what, where, and what to do.

    Exit code 1: a backend or device failure.
    """

    exit_code = 1


class InputError(BlipEdgeError):
    """An image, text or argument that cannot be used."""

    exit_code = 2


class ArtifactError(BlipEdgeError):
    """An artifact folder that is missing, incomplete, damaged or too new."""

    exit_code = 2


class BackendError(BlipEdgeError):
    """A backend that is missing or failed while loading or running a net."""
