"""Introduced and accumulated error along one component, as PNG and SVG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verify.bisect.diagnosis import ComponentDiagnosis

#: Errors below this are drawn here: a logarithmic axis has no zero.
FLOOR = 1e-9
CEILING = 1e2
#: Layers named on the axis; more would overlap.
MOST_LABELS = 40
_ENDINGS = (".svg", ".png")


def plot_layers(part: ComponentDiagnosis, stem: Path) -> list[Path]:
    """Draws one bar per tensor in the order of execution; returns the files."""
    errors = part.layers.errors
    if not errors:
        return []
    import matplotlib

    # No display is needed, and none is looked for.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(12, 4.5), layout="constrained")
    places = range(len(errors))
    introduced = [_drawn(error.introduced) for error in errors]
    colours = ["#c0392b" if not e.introduced <= part.bound else "#4878a8" for e in errors]
    axes.bar(places, introduced, bottom=0, color=colours, width=0.9, label="introduced")
    accumulated = [_drawn(error.accumulated) for error in errors]
    axes.plot(places, accumulated, color="#7f7f7f", lw=1.2, label="accumulated")
    axes.axhline(part.bound, color="#c0392b", lw=0.8, ls="--", label="bound")
    axes.set_yscale("log")
    axes.set_ylim(FLOOR, max(10 * part.bound, *(10 * v for v in introduced)))
    axes.set_ylabel("relative error (norm)")
    step = max(1, math.ceil(len(errors) / MOST_LABELS))
    axes.set_xticks(list(places)[::step])
    labels = [error.tensor.removesuffix("_output_0").strip("/") for error in errors][::step]
    axes.set_xticklabels(labels, rotation=90, fontsize=6)
    axes.set_title(f"{part.component}: {part.comparison.replace('_', ' ')}", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")
    paths = [stem.with_name(stem.name + ending) for ending in _ENDINGS]
    for path in paths:
        # Without a date the same figures give the same file.
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=110, metadata=metadata)
    pyplot.close(figure)
    return paths


def _drawn(value: float) -> float:
    return min(max(value, FLOOR), CEILING) if not math.isnan(value) else CEILING
