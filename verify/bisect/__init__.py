"""Finds the layer or the part that makes an artifact drift (docs/bisect.md)."""
