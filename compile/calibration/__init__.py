"""Calibration for integer precisions: data, thresholds, and what stays in float (ADR 0009)."""
