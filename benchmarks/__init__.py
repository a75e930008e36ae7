"""``make bench``: how fast everything runs here, side by side (docs/benchmark.md)."""

import pipeline as _  # noqa: F401 - before any library that would phone home
