"""What all stages share. It loads the runtime, which keeps its libraries from phoning home."""

import runtime.errors  # noqa: F401
