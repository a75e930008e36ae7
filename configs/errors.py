"""Errors that a user can act on, and the exit code each one means."""

from __future__ import annotations

from typing import ClassVar


class BlipEdgeError(Exception):
    """Base of all expected failures: one line saying what, where, and what to do.

    Exit code 1: a parity, accuracy or tool failure.
    """

    exit_code: ClassVar[int] = 1


class ConfigError(BlipEdgeError):
    """A configuration that cannot be built: unknown key, wrong value, impossible combination."""

    exit_code: ClassVar[int] = 2


class InputError(BlipEdgeError):
    """A file or folder the user gave that is missing, damaged or of the wrong kind."""

    exit_code: ClassVar[int] = 2


class ToolError(BlipEdgeError):
    """A tool that is missing or failed; carries the command, its exit code and its log's path."""


class ParityError(BlipEdgeError):
    """An artifact that does not compute what the checkpoint computes."""
