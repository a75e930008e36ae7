"""Finds the layer or the stage that makes an artifact drift (docs/bisect.md)."""
