"""Questions about a scene, of three to about sixteen words, each with one short answer."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.scenes import phrasing
from pipeline.scenes.description import COLORS, SHAPES, Description, Phrase, seeded
from pipeline.scenes.language import plural, shape_word
from pipeline.scenes.scene import Scene


@dataclass(frozen=True)
class QuestionAnswer:
    """A question, its one right answer (one or two words) and what it asks about."""

    question: str
    answer: str
    kind: str = ""


def questions(scene: Scene) -> list[QuestionAnswer]:
    """Return about ten questions about a scene; the wording is a function of the scene."""
    return _Asker(scene).ask_everything()


class _Asker:
    """Collects the questions of one scene; picks one wording per question, seeded."""

    def __init__(self, scene: Scene) -> None:
        self._description: Description = scene.description
        self._source = seeded(f"questions {scene.seed}")
        self._asked: list[QuestionAnswer] = []

    def ask_everything(self) -> list[QuestionAnswer]:
        """Ask about count, background, colour, shape, size, relation and existence."""
        description = self._description
        self._ask("count", phrasing.COUNT_ALL, phrasing.NUMBERS[description.total])
        self._ask("background", phrasing.BACKGROUND, description.background)
        self._ask_counts()
        self._ask_existence()
        for phrase in description.phrases:
            self._ask_about(phrase)
        if description.kind == "group":
            answer = "row" if description.axis == "horizontal" else "column"
            shapes = plural(description.phrases[0].shape)
            self._ask("arrangement", phrasing.ARRANGED, answer, shapes=shapes)
        if len(description.phrases) == 2:
            self._ask_places()
            self._ask_relations()
        return self._asked

    def _ask(self, kind: str, templates: tuple[str, ...], answer: str, **fields: str) -> None:
        question = self._source.choice(templates).format(**fields)
        self._asked.append(QuestionAnswer(question, answer, kind))

    def _ask_counts(self) -> None:
        """Ask how many there are of one shape, which may be absent."""
        present = [phrase.shape for phrase in self._description.phrases]
        absent = [shape for shape in SHAPES if shape not in present]
        shape = self._source.choice(present if self._source.random() < 0.75 else absent)
        count = sum(p.count for p in self._description.phrases if p.shape == shape)
        self._ask("count", phrasing.COUNT_SHAPE, phrasing.NUMBERS[count], shapes=plural(shape))

    def _ask_existence(self) -> None:
        """Ask whether there is a shape of a colour; a wrong one keeps the colour or the shape."""
        phrase = self._source.choice(self._description.phrases)
        color, shape, answer = phrase.color, phrase.shape, "yes"
        if self._source.random() < 0.5:
            answer = "no"
            present = {(p.color, p.shape) for p in self._description.phrases}
            near = [(color, other) for other in SHAPES] + [(other, shape) for other in COLORS]
            color, shape = self._source.choice([look for look in near if look not in present])
        fields = {"color": color, "shape": shape, "shapes": plural(shape)}
        self._ask("existence", phrasing.EXISTS, answer, **fields)

    def _ask_about(self, phrase: Phrase) -> None:
        """Ask for the attributes of a phrase that another attribute singles out."""
        phrases = self._description.phrases
        if sum(other.shape == phrase.shape for other in phrases) == 1:
            if phrase.count == 1:
                self._ask("color", phrasing.COLOR_OF_SHAPE, phrase.color, shape=phrase.shape)
            else:
                shapes = plural(phrase.shape)
                self._ask("color", phrasing.COLOR_OF_SHAPES, phrase.color, shapes=shapes)
            if phrase.size != "medium" and phrase.count == 1:
                fields = {"color": phrase.color, "shape": phrase.shape}
                self._ask("size", phrasing.SIZE_OF_SHAPE, phrase.size, **fields)
        if sum(other.color == phrase.color for other in phrases) == 1:
            self._ask("shape", phrasing.SHAPE_OF_COLOR, phrase.shape, color=phrase.color)

    def _ask_places(self) -> None:
        """Ask what is at one end of the scene."""
        ends = zip(self._description.phrases, phrasing.PLACES[self._description.axis], strict=True)
        phrase, place = self._source.choice(list(ends))
        if self._source.random() < 0.5:
            self._ask("place", phrasing.COLOR_AT_PLACE, phrase.color, place=place)
        else:
            self._ask("place", phrasing.SHAPE_AT_PLACE, phrase.shape, place=place)

    def _ask_relations(self) -> None:
        """Ask what is beside a thing (two words) and whether a relation holds (yes or no)."""
        first, second = self._description.phrases
        first_is, second_is = phrasing.RELATIONS[self._description.axis]
        if self._source.random() < 0.5:
            thing, relation, known = first, first_is, second
        else:
            thing, relation, known = second, second_is, first
        fields = {"relation": relation, "color": known.color, "shape": shape_word(known)}
        answer = f"{thing.color} {shape_word(thing)}"
        self._ask("beside", phrasing.THING_BESIDE, answer, **fields)
        if self._description.kind != "pair":
            return
        holds = self._source.random() < 0.5
        subject, other = (first, second) if self._source.random() < 0.5 else (second, first)
        true_relation = first_is if subject is first else second_is
        false_relation = second_is if subject is first else first_is
        self._ask(
            "relation",
            phrasing.RELATION_HOLDS,
            "yes" if holds else "no",
            color=subject.color,
            shape=subject.shape,
            relation=true_relation if holds else false_relation,
            other_color=other.color,
            other_shape=other.shape,
        )
