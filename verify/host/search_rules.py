"""The rules of searching without a net: random logits through the runtime and through HuggingFace.

Lengths, penalties, n-grams, beams, stopping and sampling are host code: no weight decides them. A
table of random numbers, half of them negative, is the decoder here. HuggingFace's own ``generate``
searches over it, and so does the runtime's, prompts of different lengths at once.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from runtime.generation import generate as generation
from runtime.generation.settings import GenerationSettings, ScoreRules
from verify.host.finding import Finding
from verify.layers.graph import Array

#: Small, so that n-grams repeat and the end comes often.
VOCABULARY, END, PAD = 12, 2, 0
#: Positions that the decoder knows: HuggingFace's default length ends there.
POSITIONS = 64
PROMPTS = ((1,), (1, 5, 7), (1, 3, 4, 3))
#: Combinations of everything, drawn once.
COMBINATIONS, SEED = 60, 20
_SCORES = 1e-4

Arguments = Mapping[str, Any]

MINIMUM = "minimum length"
#: A single token, runs of tokens, the end token (which stays allowed), and tokens on their own.
FORBIDDEN: tuple[Arguments, ...] = (
    {"bad_words_ids": [[END], [5], [6, 7], [4, 8, 3]]},
    {"bad_words_ids": [[first, second] for first in range(6) for second in range(6)]},
    {"suppress_tokens": [3, 7, 9]},
)
#: One rule at a time, so that a fault has a name.
RULES: tuple[tuple[str, Arguments], ...] = (
    ("greedy choice", {"max_new_tokens": 12}),
    ("default length", {}),
    ("default length", {"min_length": 100}),
    ("maximum length", {"max_length": 9}),
    ("maximum length", {"max_length": 10, "num_beams": 3}),
    (MINIMUM, {"max_length": 16, "min_length": 9}),
    (MINIMUM, {"max_new_tokens": 12, "min_new_tokens": 7}),
    (MINIMUM, {"max_length": 16, "min_length": 9, "num_beams": 3}),
    (MINIMUM, {"max_new_tokens": 12, "min_new_tokens": 7, "num_beams": 4}),
    *(
        ("scores", {"max_new_tokens": 12, "repetition_penalty": penalty, "num_beams": beams})
        for penalty in (0.6, 1.3, 20.0)
        for beams in (1, 4)
    ),
    *(
        (
            "repeated n-grams",
            {"max_new_tokens": 20, "no_repeat_ngram_size": size, "num_beams": beams},
        )
        for size in (1, 2, 3)
        for beams in (1, 4)
        if size > 1 or beams == 1
    ),
    *(
        ("forbidden words", {"max_new_tokens": 14, "num_beams": beams, **words})
        for words in FORBIDDEN
        for beams in (1, 4)
    ),
    *(
        ("beam search", {"max_new_tokens": 14, "num_beams": beams, "num_return_sequences": beams})
        for beams in (2, 4, 5, 6)
    ),
    *(
        (
            "length penalty",
            {
                "max_length": 14,
                "num_beams": 4,
                "num_return_sequences": 4,
                "length_penalty": penalty,
            },
        )
        for penalty in (-4.0, -1.0, 0.0, 0.5, 2.0)
    ),
    *(
        (
            "early stopping",
            {
                "max_new_tokens": 14,
                "num_beams": 4,
                "num_return_sequences": 3,
                "early_stopping": early,
                "length_penalty": penalty,
            },
        )
        for early in (True, False, "never")
        for penalty in (-1.0, 0.7, 4.0)
    ),
)
#: Sampling: what is left of the scores, token by token.
SAMPLINGS: tuple[Arguments, ...] = tuple(
    {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": penalty}
    for temperature in (0.5, 1.0, 1.7)
    for top_k in (0, 1, 3)
    for top_p in (0.3, 0.8, 1.0)
    for penalty in (1.0, 1.4)
)


@dataclass(frozen=True)
class Table:
    """A decoder whose logits are sums of random numbers: of the last two tokens and the length."""

    last: Array
    before: Array
    lengths: Array

    @classmethod
    def random(cls, seed: int, *, eager: bool = False) -> Table:
        """One whose answers end now and then, or as soon as they may."""
        generator = np.random.default_rng(seed)
        shapes = ((VOCABULARY, VOCABULARY), (VOCABULARY, VOCABULARY), (POSITIONS, VOCABULARY))
        arrays = [generator.normal(0, 1.5, shape).astype(np.float32) for shape in shapes]
        arrays[-1][:, END] += 12.0 * eager
        return cls(*arrays)

    def __call__(self, sequences: Array) -> Array:
        """Logits ``[rows, vocabulary]`` of the token after each sequence."""
        length = sequences.shape[1]
        found: Array = self.last[sequences[:, -1]] + self.lengths[length % POSITIONS]
        return found + self.before[sequences[:, -2]] if length > 1 else found


def search_rule_findings() -> list[Finding]:
    """Everything in which the runtime's searches are not HuggingFace's; one per rule."""
    table = Table.random(SEED)
    with _hugging_face(table) as reference:
        found = dict(_searches(table, reference, (*RULES, *_combinations())))
        for arguments in SAMPLINGS:
            for what in _sampling(table, reference, arguments):
                found.setdefault("sampling", what)
        for what in (*_beam_sampling(), *_draws()):
            found.setdefault("sampling", what)
    eager = Table.random(SEED, eager=True)
    with _hugging_face(eager) as reference:
        shortest = [(rule, arguments) for rule, arguments in RULES if rule == MINIMUM]
        found |= dict(_searches(eager, reference, shortest))
    return [Finding("generation", rule, what) for rule, what in found.items()]


def number_of_settings() -> int:
    """How many settings are compared."""
    return len(RULES) + COMBINATIONS + len(SAMPLINGS)


def _searches(
    table: Table, reference: Any, rules: Sequence[tuple[str, Arguments]]
) -> Iterator[tuple[str, str]]:
    named: set[str] = set()
    for index, (rule, arguments) in enumerate(rules):
        # What one rule alone shows needs no combination.
        if rule in named or (named and rule == "combination"):
            continue
        row = index % len(PROMPTS)
        prompt, mine = PROMPTS[row], _run(table, PROMPTS, arguments)[row]
        what = _different(mine, _right(reference, prompt, arguments))
        if what:
            named.add(rule)
            yield rule, f"{dict(arguments)}, prompt of {len(prompt)}: {what}"


def _combinations() -> Iterator[tuple[str, Arguments]]:
    generator = np.random.default_rng(SEED)
    for _ in range(COMBINATIONS):

        def one(*values: Any) -> Any:
            return values[generator.integers(len(values))]

        beams = one(1, 1, 2, 3, 5, 7)
        arguments = {
            one("max_length", "max_new_tokens"): one(8, 11, 17),
            one("min_length", "min_new_tokens"): one(0, 3, 6),
            "repetition_penalty": one(1.0, 1.0, 0.8, 1.5),
            "no_repeat_ngram_size": one(0, 0, 2, 3),
            "num_beams": beams,
        }
        if beams > 1:
            arguments |= {
                "length_penalty": one(-1.0, 0.0, 1.0, 1.5),
                "early_stopping": one(True, False, "never"),
                "num_return_sequences": one(1, 2),
            }
        yield "combination", arguments


Result = list[tuple[tuple[int, ...], float | None]]


def _different(found: Result, right: Result) -> str:
    for (tokens, score), (wanted, wanted_score) in zip(found, right, strict=True):
        if tokens != wanted:
            return f"{list(tokens)} instead of {list(wanted)}"
        if score is not None and not np.isclose(score, wanted_score or 0.0, rtol=_SCORES):
            return f"{list(tokens)} scores {score:.4f} instead of {wanted_score:.4f}"
    return ""


class _Run:
    """What the runtime takes for a decoder at work."""

    tokens_suffice = False

    def __init__(self, table: Table) -> None:
        self._table = table
        self._rows: list[list[int]] = []

    def start(self, prompts: Sequence[Sequence[int]], contexts: Sequence[int]) -> Array:
        self._rows = [list(prompts[context]) for context in contexts]
        return self._logits()

    def step(self, parents: Array, tokens: Array) -> Array:
        pairs = zip(parents, tokens, strict=True)
        self._rows = [[*self._rows[int(parent)], int(token)] for parent, token in pairs]
        return self._logits()

    def close(self) -> None:
        """Nothing to release."""

    def _logits(self) -> Array:
        return np.concatenate([self._table(np.array([row])) for row in self._rows])


def _run(table: Table, prompts: Sequence[Sequence[int]], arguments: Arguments) -> list[Result]:
    text = SimpleNamespace(
        maximum_positions=POSITIONS, end_token_id=END, vocabulary_size=VOCABULARY
    )
    session: Any = SimpleNamespace(
        start_run=lambda *_: _Run(table), capacity=lambda positions: positions
    )
    manifest: Any = SimpleNamespace(text=text, dimensions=None)
    settings = GenerationSettings.from_arguments(**arguments)
    found = generation.generate(session, manifest, None, prompts, settings)
    return [[(tuple(one.token_ids.tolist()), one.score) for one in own] for own in found]


def _right(reference: Any, prompt: Sequence[int], arguments: Arguments) -> Result:
    import torch

    found = reference.generate(torch.tensor([prompt]), do_sample=False, **arguments)
    scores = getattr(found, "sequences_scores", None)
    every = [None] * len(found.sequences) if scores is None else scores.tolist()
    return [
        (_ended(tokens, len(prompt)), score)
        for tokens, score in zip(found.sequences.tolist(), every, strict=True)
    ]


def _ended(tokens: list[int], prompt: int) -> tuple[int, ...]:
    """A sequence to its end token; what follows fills a batch."""
    new = tokens[prompt:]
    return tuple(tokens[: prompt + new.index(END) + 1] if END in new else tokens)


@contextmanager
def _hugging_face(table: Table) -> Iterator[Any]:
    """The table as a model of HuggingFace's."""
    import torch
    from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

    class Decoder(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
        config_class = PreTrainedConfig
        main_input_name = "input_ids"

        def __init__(self) -> None:
            super().__init__(PreTrainedConfig(vocab_size=VOCABULARY))
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: Any, **_: Any) -> Any:
            logits = torch.from_numpy(table(input_ids.numpy()))
            return CausalLMOutput(logits=logits[:, None])

    model = Decoder().eval()
    model.generation_config.update(
        eos_token_id=END,
        pad_token_id=PAD,
        use_cache=False,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    level, threads = logging.getLogger("transformers").level, torch.get_num_threads()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    # Twelve numbers at a time: other threads would only be waited for.
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            # Lengths that cannot be kept are part of what is compared.
            warnings.simplefilter("ignore", UserWarning)
            yield model
    finally:
        torch.set_num_threads(threads)
        logging.getLogger("transformers").setLevel(level)


def _sampling(table: Table, reference: Any, arguments: Arguments) -> Iterator[str]:
    """The scores that HuggingFace draws from against ours, at every token that it drew."""
    import torch

    torch.manual_seed(SEED)
    prompt, more = PROMPTS[1], {"max_new_tokens": 10, "min_new_tokens": 4}
    found = reference.generate(torch.tensor([prompt]), do_sample=True, **arguments, **more)
    settings = GenerationSettings.from_arguments(do_sample=True, **arguments, **more)
    _, shortest = settings.lengths(len(prompt), POSITIONS, POSITIONS)
    rules = ScoreRules(settings, len(prompt), shortest, END)
    sequence = found.sequences.numpy()
    for step, right in enumerate(found.scores):
        drawn = sequence[:, : len(prompt) + step]
        scores = rules(drawn, table(drawn))
        if not np.allclose(scores, right.numpy(), rtol=1e-5, atol=1e-5):
            places = [int(i) for i in np.flatnonzero(np.isfinite(scores[0]))]
            wanted = [int(i) for i in np.flatnonzero(np.isfinite(right[0].numpy()))]
            yield f"{dict(arguments)}: leaves {places} instead of {wanted}, or other scores"
            return


def _beam_sampling() -> Iterator[str]:
    """Beams keep two tokens at least, however few are asked for."""
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = Table.random(SEED + 1)(np.array([[token] for token in range(VOCABULARY)]))
    for top_k, top_p in ((1, 1.0), (0, 0.0), (5, 0.4)):
        asked = {"do_sample": True, "num_beams": 3, "top_k": top_k, "top_p": top_p}
        settings = GenerationSettings.from_arguments(temperature=0.7, **asked)
        rules = ScoreRules(settings, 1, 0, END)
        right = TemperatureLogitsWarper(0.7)(torch.zeros(1), torch.from_numpy(logits))
        if top_k:
            right = TopKLogitsWarper(top_k, min_tokens_to_keep=2)(torch.zeros(1), right)
        if top_p < 1.0:
            right = TopPLogitsWarper(top_p, min_tokens_to_keep=2)(torch.zeros(1), right)
        found = rules(np.ones((VOCABULARY, 1), dtype=np.int64), logits)
        if not np.allclose(found, right.numpy(), rtol=1e-5, atol=1e-5):
            yield f"{asked}: other scores than HuggingFace's"


def _draws() -> Iterator[str]:
    """Tokens come as often as they should, and none comes twice in one draw."""
    wanted = np.array([0.5, 0.3, 0.2, 0.0], dtype=np.float32)
    generator, times = np.random.default_rng(SEED), 2000
    counts = np.zeros(len(wanted))
    for _ in range(times):
        counts[generation.draw(wanted, 1, generator)] += 1
    # Five standard deviations of a count.
    if np.any(np.abs(counts - times * wanted) > 5 * np.sqrt(times * wanted * (1 - wanted))):
        yield f"draws {counts.tolist()} of {times}, {(times * wanted).tolist()} are due"
    both = generation.draw(wanted, 3, generator)
    if sorted(both.tolist()) != [0, 1, 2]:
        yield f"draws {both.tolist()}, each of three tokens once is due"
