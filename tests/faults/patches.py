"""Patches of the runtime that are in force while a fault is active."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any
from unittest.mock import patch

Active = Callable[[], AbstractContextManager[Any]]


def method(module: str, owner: str, name: str, make: Callable[[Any], Any]) -> Active:
    """``module.owner.name`` replaced by what ``make`` makes of the right one."""

    def active() -> AbstractContextManager[Any]:
        target = getattr(import_module(module), owner)
        return patch.object(target, name, make(getattr(target, name)))

    return active


def function(module: str, name: str, make: Callable[[Any], Any]) -> Active:
    """``module.name`` replaced by what ``make`` makes of the right one."""

    def active() -> AbstractContextManager[Any]:
        target = import_module(module)
        return patch.object(target, name, make(getattr(target, name)))

    return active
