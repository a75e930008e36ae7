"""What make and ``python -m pipeline`` take, and how CI is told what happened."""
