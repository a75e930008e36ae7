"""How the report writes figures, names things, and places values on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeGuard

TASK_NAMES = {"caption": "Captioning", "vqa": "Question answering", "itm": "Image-text matching"}
TARGET_NAMES = {"onnx": "ONNX", "openvino": "OpenVINO"}
#: Margins beyond this are not told apart.
LARGEST_MARGIN = 10_000
COMPONENT_NAMES = {
    "tokens": "whole answers",
    "scores": "match decisions and scores",
    "host": "everything around the graphs",
    "file": "combined file",
}


def task_name(task: str) -> str:
    """A task's heading."""
    return TASK_NAMES.get(task, task)


def target_name(target: str) -> str:
    """A target as people write it: ``BM1684X``, not ``bm1684x``."""
    return TARGET_NAMES.get(target, target.upper())


def component_name(component: str) -> str:
    """A component without its underscores."""
    return COMPONENT_NAMES.get(component, component.replace("_", " "))


def exponent(value: Any) -> str:
    """``5.2e-4``; an en dash where there is no figure."""
    if not is_number(value):
        return "–"
    if value == 0:
        return "0"
    mantissa, _, power = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(power)}"


def percent(value: Any) -> str:
    """``99.5 %``."""
    return f"{100 * value:.4g} %" if is_number(value) else "–"


def decimal(value: Any, digits: int = 3) -> str:
    """Three significant digits, never with an exponent for large values."""
    if not is_number(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def file_size(size_bytes: Any) -> str:
    """``3.5 MiB``."""
    if not is_number(size_bytes):
        return "–"
    if size_bytes < 1 << 20:
        return f"{size_bytes / 1024:.0f} KiB"
    if size_bytes < 1 << 30:
        return f"{size_bytes / (1 << 20):.1f} MiB"
    return f"{size_bytes / (1 << 30):.2f} GiB"


def milliseconds(value_ms: Any) -> str:
    """``0.082 ms``, ``12.3 ms``."""
    if not is_number(value_ms):
        return "–"
    return f"{value_ms:.3f} ms" if value_ms < 1 else f"{decimal(value_ms)} ms"


def times(value: float | None) -> str:
    """A margin: how many times the measured value fits into what is allowed."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "exact"
    if value < 1:
        return "none"
    if value > LARGEST_MARGIN:
        return f"> {LARGEST_MARGIN:,}×"
    return f"{value:,.0f}×" if value >= 10 else f"{value:.1f}×"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether this is a finite figure; JSON also holds null and booleans."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic axis of whole decades, 0 to 100 percent."""

    low: int
    high: int

    def position(self, value: Any) -> float:
        """Where a value stands, in percent of the axis; what is off the axis stands at its end."""
        if not is_number(value) or value <= 0:
            return 0.0
        place = (math.log10(value) - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, place)), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(position, label) of every decade, or of every few where many fit."""
        step = max(1, math.ceil((self.high - self.low) / 8))
        powers = range(self.low, self.high + 1, step)
        return [(self.position(10.0**power), _power(power)) for power in powers]

    @staticmethod
    def around(values: Iterable[Any]) -> LogAxis:
        """The shortest axis of whole decades that holds all positive values."""
        positive = [value for value in values if is_number(value) and value > 0]
        if not positive:
            return LogAxis(-1, 0)
        low = math.floor(math.log10(min(positive)) + 1e-9)
        high = math.ceil(math.log10(max(positive)) - 1e-9)
        return LogAxis(low, max(high, low + 1))


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _power(power: int) -> str:
    return "1" if power == 0 else "10" + str(power).translate(_SUPERSCRIPTS)
