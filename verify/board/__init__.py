"""Checks on a board: the folder that is copied there, and what comes back."""
