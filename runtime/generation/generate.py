"""Generates token sequences: many prompts at once, each by its own search, over one decoder."""

from __future__ import annotations

from contextlib import closing
from typing import Callable, List, Optional
from typing import Sequence as Many

import numpy as np

from ..decoding.cross_attention import AnyCrossStates, start_run
from ..decoding.decoder_run import capacity
from ..errors import InputError
from ..files.manifests import TaskManifest
from ..sessions.session import Session
from ..tasks.timing import Timings
from .search import Limits, Search, Sequence, start_search
from .settings import GenerationSettings

#: Called with the row and each new token id, as soon as it is known.
OnToken = Callable[[int, int], None]


def generate(
    session: Session,
    manifest: TaskManifest,
    cross: AnyCrossStates,
    prompts: Many[Many[int]],
    settings: GenerationSettings,
    *,
    on_token: Optional[OnToken] = None,
    timings: Optional[Timings] = None,
) -> List[List[Sequence]]:
    """Generates from every prompt; row i attends to context i of ``cross``.

    A row's answer does not depend on the other rows: lengths, penalties and n-grams count its own
    tokens only.

    Args:
        session: the ``text_decoder``.
        manifest: token ids and dimensions.
        cross: keys and values to attend to, one context per prompt.
        prompts: token ids, start token first.
        settings: how to search.
        on_token: streams tokens; greedy search and sampling of one sequence only.
        timings: collects the time of the first pass and of the steps.

    Returns:
        for each prompt its ``num_return_sequences`` sequences, best first.

    Raises:
        InputError: a prompt too long for the lengths asked for, or streaming with beams.
    """
    if on_token is not None and (settings.num_beams > 1 or settings.num_return_sequences > 1):
        raise InputError("streaming: works with num_beams 1 and num_return_sequences 1 only")
    timings = timings or Timings()
    # Beams return several sequences of one search; sampling needs one search per sequence.
    repeats = settings.num_return_sequences if settings.num_beams == 1 else 1
    limits = [_limits(len(prompt), settings, manifest, session) for prompt in prompts]
    searches = [
        start_search(list(prompt), settings, limits[row], row * repeats + copy)
        for row, prompt in enumerate(prompts)
        for copy in range(repeats)
    ]
    # Where each search's beams lie among the rows of the decoder; all start as their prompt's row.
    slots = [
        np.full(search.beams, index // repeats, dtype=np.int64)
        for index, search in enumerate(searches)
    ]
    with closing(start_run(session, manifest.dimensions, cross)) as run:
        run.tokens_suffice = all(search.takes_tokens for search in searches)
        with timings.measure("first_pass", rows=len(prompts)):
            logits = run.start(prompts, range(len(prompts)))
        active = list(range(len(searches)))
        while True:
            parents, tokens, active = _advance(searches, slots, active, logits, on_token)
            if not active:
                break
            run.tokens_suffice = all(searches[index].takes_tokens for index in active)
            with timings.measure("step", rows=len(tokens)):
                logits = run.step(parents, tokens)
    found = [search.results() for search in searches]
    return [
        [sequence for part in found[row * repeats : (row + 1) * repeats] for sequence in part]
        for row in range(len(prompts))
    ]


def _advance(
    searches: List[Search],
    slots: List[np.ndarray],
    active: List[int],
    logits: np.ndarray,
    on_token: Optional[OnToken],
) -> "tuple[np.ndarray, np.ndarray, List[int]]":
    parents: List[np.ndarray] = []
    tokens: List[np.ndarray] = []
    remaining = []
    rows = 0
    for index in active:
        search = searches[index]
        beam_parents, beam_tokens = search.advance(logits[slots[index]])
        if on_token is not None:
            on_token(index, int(beam_tokens[0]))
        if search.done:
            continue
        parents.append(slots[index][beam_parents])
        tokens.append(beam_tokens)
        slots[index] = np.arange(rows, rows + search.beams)
        rows += search.beams
        remaining.append(index)
    if not remaining:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, []
    return np.concatenate(parents), np.concatenate(tokens), remaining


def _limits(
    prompt_tokens: int, settings: GenerationSettings, manifest: TaskManifest, session: Session
) -> Limits:
    text = manifest.text
    longest, shortest = settings.lengths(
        prompt_tokens, text.maximum_positions, capacity(session, text.maximum_positions)
    )
    return Limits(longest=longest, shortest=shortest, end_token_id=text.end_token_id)
