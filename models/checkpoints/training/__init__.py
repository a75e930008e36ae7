"""How the small reference checkpoints are trained, saved and measured."""
