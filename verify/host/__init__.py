"""Everything around the graphs, against the checkpoint's own files and HuggingFace's own code."""
