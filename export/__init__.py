import pipeline as _  # noqa: F401 - before any library that would phone home
