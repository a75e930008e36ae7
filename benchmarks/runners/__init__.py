"""One runner per way of running a checkpoint; each lives in a process of its own."""
