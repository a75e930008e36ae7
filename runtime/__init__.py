"""Captions images, answers questions about them and matches them with texts, on edge backends.

``from blip_edge import Captioner, QuestionAnswerer, Matcher`` where the package is installed. A
name is imported when it is first used: ``import blip_edge`` loads nothing else.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, List

# Nobody phones home (docs/privacy.md): both libraries do, unless told before they load.
# onnxruntime reads this variable once (its Privacy.md); processes that are started inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# OpenVINO and NNCF have no such variable. Both do without this package where it is not installed:
# openvino/tools/ovc/telemetry_utils.py, nncf/telemetry/wrapper.py.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

if TYPE_CHECKING:
    from .decoding.batching import Timings as Timings
    from .errors import InputError as InputError
    from .tasks.answering import Answer as Answer
    from .tasks.answering import QuestionAnswerer as QuestionAnswerer
    from .tasks.attention import attention_maps as attention_maps
    from .tasks.generating import Caption as Caption
    from .tasks.generating import Captioner as Captioner
    from .tasks.image_index import ImageIndex as ImageIndex
    from .tasks.matching import Match as Match
    from .tasks.matching import Matcher as Matcher
    from .tasks.registry import BlipModel as BlipModel

__version__ = "0.1.0"

_MODULES = {
    "Answer": "tasks.answering",
    "BlipModel": "tasks.registry",
    "Caption": "tasks.generating",
    "Captioner": "tasks.generating",
    "ImageIndex": "tasks.image_index",
    "InputError": "errors",
    "Match": "tasks.matching",
    "Matcher": "tasks.matching",
    "QuestionAnswerer": "tasks.answering",
    "Timings": "decoding.batching",
    "attention_maps": "tasks.attention",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    # Digests of sources follow import statements: the stages import what they use from its module.
    return getattr(__import__(f"{__name__}.{_MODULES[name]}", fromlist=[name]), name)


def __dir__() -> List[str]:
    return sorted([*_MODULES, "__version__"])
