"""The tasks: describe an image, answer questions about it, match it with texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Type, Union

from .answering import QuestionAnswerer
from .generating import Captioner
from .matching import Matcher
from .task import Task

TASKS: Dict[str, Type[Task[Any]]] = {"caption": Captioner, "vqa": QuestionAnswerer, "itm": Matcher}


class BlipModel:
    """Captions and answers behind two methods, for code written against one BLIP model."""

    def __init__(self, captioner: Captioner, answerer: QuestionAnswerer) -> None:
        self.captioner = captioner
        self.answerer = answerer

    @classmethod
    def from_artifacts(cls, folder: Union[str, Path], **options: Any) -> "BlipModel":
        """Opens a pipeline's caption and vqa artifacts; options as ``Task.from_artifacts``."""
        return cls(
            Captioner.from_artifacts(folder, **options),
            QuestionAnswerer.from_artifacts(folder, **options),
        )

    def generate_caption(self, *arguments: Any, **options: Any) -> Any:
        """See ``Captioner.generate``."""
        return self.captioner.generate(*arguments, **options)

    def generate_answer(self, *arguments: Any, **options: Any) -> Any:
        """See ``QuestionAnswerer.generate``."""
        return self.answerer.generate(*arguments, **options)
