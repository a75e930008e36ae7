"""A procedural scene set with captions, questions and matching texts that have one right answer.

The scenes serve to train the reference checkpoints and to measure what every artifact answers.
Everything is a pure function of ``(index, split)``: the same call gives the same pixels and words.
"""

from pipeline.scenes.description import Description, Phrase, Split
from pipeline.scenes.drawing import draw
from pipeline.scenes.language import CAPTION_PROMPT, vocabulary
from pipeline.scenes.matching import MatchingPair, matching_pairs
from pipeline.scenes.questions import QuestionAnswer, questions
from pipeline.scenes.scene import Scene, SceneObject, caption, make_scene, scenes

__all__ = [
    "CAPTION_PROMPT",
    "Description",
    "MatchingPair",
    "Phrase",
    "QuestionAnswer",
    "Scene",
    "SceneObject",
    "Split",
    "caption",
    "draw",
    "make_scene",
    "matching_pairs",
    "questions",
    "scenes",
    "vocabulary",
]
