"""The ways of running a checkpoint that are compared; each lives in a process of its own."""
