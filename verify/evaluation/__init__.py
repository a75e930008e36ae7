"""Answers of any target over a data set, side by side with the checkpoint's own."""
