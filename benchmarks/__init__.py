"""``make bench``: how fast everything runs here, side by side (docs/performance.md)."""
