"""The procedural scenes as a data set: held-out, drawn when needed, without end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from configs.schema import DataSetKind, Task
from pipeline.manifest import key_of
from pipeline.scenes import caption, make_scene, matching_pairs
from pipeline.scenes.scene import SCENES_VERSION
from verify.answers.cases import SEED_STRIDE, generation_cases
from verify.evaluation.items import CaptionItem, DataSet, Item, MatchingItem, Picture, QuestionItem

#: Version of the choice of questions and wrong texts below.
_ITEMS_VERSION = 1


@dataclass(frozen=True)
class SceneItems(DataSet):
    """One item per held-out scene; captions and questions are those that ``verify`` compares."""

    task: Task
    seed: int = 0
    name: str = "scenes"
    kind: DataSetKind = "scenes"

    @property
    def source(self) -> str:  # type: ignore[override]
        """Where it comes from."""
        return f"held-out scenes from {self.seed * SEED_STRIDE} on"

    @property
    def identity(self) -> str:  # type: ignore[override]
        """Digest of everything that decides the items."""
        return key_of(
            {"scenes": SCENES_VERSION, "items": _ITEMS_VERSION, "task": self.task, "s": self.seed}
        )

    @property
    def available(self) -> int:  # type: ignore[override]
        """As many as fit between two seeds, and more."""
        return 1_000_000

    def items(self, start: int, stop: int) -> Iterator[Item]:
        """See ``DataSet.items``."""
        for index in range(self.seed * SEED_STRIDE + start, self.seed * SEED_STRIDE + stop):
            yield self._item(index)

    def _item(self, index: int) -> Item:
        name, picture = f"scene {index}", Picture(scene=index)
        if self.task == "itm":
            pairs = matching_pairs(make_scene(index))
            wrong = pairs[1 + index % (len(pairs) - 1)]
            both = ((pairs[0].text, True), (wrong.text, False))
            return MatchingItem(name, picture, (pairs[0].text,), both)
        (case,) = generation_cases(self.task, 1, 0, first=index)
        if self.task == "caption":
            return CaptionItem(name, picture, case.text, (caption(make_scene(index)),))
        return QuestionItem(name, picture, case.text, (str(case.truth),))
