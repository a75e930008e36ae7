"""Beam search and top-p alone, against HuggingFace on random models and scores."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.generation.logits_process import TopPLogitsWarper

from runtime.generation.generate import BeamSearch, Limits
from runtime.generation.settings import GenerationSettings, keep_top_p

END, PAD, START, VOCABULARY = 2, 0, 1, 6
LONGEST = 12


@cache
def model(seed: int) -> GPT2LMHeadModel:
    """A language model of six tokens with random weights, large enough to be undecided."""
    torch.manual_seed(seed)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    ids = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
    config = GPT2Config(vocab_size=VOCABULARY, initializer_range=0.7, **sizes, **ids)
    return GPT2LMHeadModel(config).eval()


def searched(seed: int, settings: GenerationSettings) -> tuple[list[list[int]], int]:
    """What the search finds, and in how many steps two beams ended while others went on."""
    search = BeamSearch([START], settings, Limits(LONGEST, 0, END), None)
    rows = np.full((search.beams, 1), START)
    crowded = 0
    while not search.done:
        with torch.no_grad():
            logits = model(seed)(torch.from_numpy(rows)).logits[:, -1].numpy()
        known = {id(tokens) for _, finished, tokens, _ in search._found if finished}
        parents, tokens = search.advance(logits)
        new = [found for _, done, found, _ in search._found if done and id(found) not in known]
        crowded += len(new) >= 2 and not search.done
        rows = np.concatenate([rows[parents], tokens[:, None]], axis=1)
    return [result.token_ids.tolist() for result in search.results()], crowded


def until_end(row: list[int]) -> list[int]:
    """A row without what fills it up after its end token."""
    return row[: row.index(END) + 1] if END in row else row


@pytest.mark.parametrize("beams", [3, 4])
def test_beams_that_end_together_leave_enough_to_go_on_with(beams: int) -> None:
    """Two candidates per beam: the best may all end, and the beams are still as many."""
    arguments = {"num_beams": beams, "num_return_sequences": beams, "length_penalty": 1.4}
    settings, start = GenerationSettings(**arguments), torch.tensor([[START]])
    crowded = 0
    for seed in range(40):
        found, steps = searched(seed, settings)
        crowded += steps
        expected = model(seed).generate(
            start, attention_mask=torch.ones_like(start), max_length=LONGEST, **arguments
        )
        assert found == [until_end(row) for row in expected.tolist()], seed
    assert crowded >= 5


def test_top_p_keeps_what_huggingface_keeps() -> None:
    scores = np.random.default_rng(0).normal(scale=2.0, size=(2000, 60)).astype(np.float32)
    for top_p in (0.5, 0.9, 0.95):
        expected = TopPLogitsWarper(top_p)(None, torch.from_numpy(scores.copy())).numpy()
        found = scores.copy()
        keep_top_p(found, top_p, 1)
        assert np.array_equal(np.isinf(found), np.isinf(expected))
