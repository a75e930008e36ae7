"""Drafts the next tokens of a text, so that one pass of the decoder checks several of them.

A draft is only a guess: a pass keeps what greedy search would have chosen itself. Guesses come from
the text so far, and from a table of n-grams that ``blip-edge drafts`` makes of a list of texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, List, Optional
from typing import Sequence as Many

import numpy as np

from ..decoding.batching import Timings
from ..errors import ArtifactError
from ..sessions.session import DecoderRun

#: Entries of a table: tokens of a context and the one that follows it, so many bits each.
CONTEXT = 3
BITS = 16
_TOKEN = (1 << BITS) - 1


class Drafter:
    """Guesses what follows a text's tokens."""

    def __init__(self, table: Optional[np.ndarray] = None) -> None:
        """``table`` holds sorted entries: up to three tokens, and the one that mostly follows."""
        self._table = table

    def draft(self, tokens: Many[int], most: int) -> List[int]:
        """At most so many tokens that may follow; empty where nothing is known."""
        text = list(tokens)
        while len(text) < len(tokens) + most:
            following = self._repeated(text)
            if following is None:
                following = self._known(text)
            if following is None:
                break
            text.append(following)
        return text[len(tokens) :]

    def over(
        self,
        run: DecoderRun,
        searches: Many[Any],
        asked: Optional[int],
        on_token: Optional[Callable[[int, int], None]],
        timings: Optional[Timings],
    ) -> "DraftedRun":
        """The run of greedy searches with passes that check drafts; see ``DraftedRun``."""
        return DraftedRun(self, run, searches, asked, on_token, timings)

    def _repeated(self, text: List[int]) -> Optional[int]:
        """What followed the last two tokens, where the text had them before."""
        for end in range(len(text) - 2, 1, -1):
            if text[end - 2 : end] == text[-2:]:
                return text[end]
        return None

    def _known(self, text: List[int]) -> Optional[int]:
        if self._table is None:
            return None
        for length in range(min(CONTEXT, len(text)), 0, -1):
            first = np.uint64(packed(text[-length:]) << BITS)
            place = int(np.searchsorted(self._table, first))
            if place < len(self._table):
                entry = int(self._table[place])
                if entry >> BITS == packed(text[-length:]):
                    return entry & _TOKEN
        return None


def packed(tokens: Many[int]) -> int:
    """Tokens as one number; a shorter context is that of fewer tokens before it."""
    number = 0
    for token in tokens:
        number = number << BITS | token
    return number


def read_table(path: Path, vocabulary: int) -> np.ndarray:
    """A table of drafts, which stays on the disk.

    Raises:
        ArtifactError: it is none, or one of another vocabulary.
    """
    try:
        table: np.ndarray = np.load(str(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path}: not a table of drafts ({error}); make it again") from None
    if (
        not isinstance(table, np.ndarray)
        or table.dtype != np.uint64
        or table.ndim != 1
        or not len(table)
    ):
        raise ArtifactError(f"{path}: not a table of drafts; make it again")
    if int((table & np.uint64(_TOKEN)).max()) >= vocabulary:
        raise ArtifactError(f"{path}: has tokens that this vocabulary does not; make it again")
    return table


class DraftedRun:
    """A run of greedy searches, each of whose rows may take several tokens from a pass.

    Drafted tokens that a search accepts are its own from then on; the answer after the last of them
    is what the pass returns.
    """

    def __init__(
        self,
        drafter: Drafter,
        run: DecoderRun,
        searches: Many[Any],
        asked: Optional[int],
        on_token: Optional[Callable[[int, int], None]],
        timings: Optional[Timings],
    ) -> None:
        self.tokens_suffice = False
        self._drafter = drafter
        self._run = run
        self._searches = searches
        self._asked = asked
        self._on_token = on_token
        self._timings = timings

    def start(self, prompts: Many[Many[int]], contexts: Many[int]) -> np.ndarray:
        """See ``DecoderRun``; a prompt that leaves no room for drafts is fed without."""
        self._run.tokens_suffice = self.tokens_suffice
        room = self._run.most_drafts + 1 - max(len(prompt) for prompt in prompts)
        rows = list(range(len(prompts)))
        drafts = self._drafts(rows, room)
        if not any(drafts):
            return self._run.start(prompts, contexts)
        self._run.begin(contexts)
        return self._checked(rows, np.array(rows), prompts, drafts)

    def step(self, parents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """See ``DecoderRun``."""
        self._run.tokens_suffice = self.tokens_suffice
        rows = [row for row, search in enumerate(self._searches) if not search.done]
        drafts = self._drafts(rows, self._run.most_drafts)
        if not any(drafts):
            return self._run.step(parents, tokens)
        return self._checked(rows, parents, [[token] for token in tokens.tolist()], drafts)

    def _drafts(self, rows: List[int], room: int) -> List[List[int]]:
        most = self._run.usual_drafts(len(rows)) if self._asked is None else self._asked
        most = max(0, min(most, room))
        return [self._searches[row].draft(self._drafter, most) for row in rows]

    def _checked(
        self,
        rows: List[int],
        parents: np.ndarray,
        given: Many[Many[int]],
        drafts: Many[Many[int]],
    ) -> np.ndarray:
        """A pass over the tokens that each row is given, and over the drafted ones after them."""
        fed = [[*mine, *draft] for mine, draft in zip(given, drafts)]
        kept, last = [], []
        for row, mine, draft, answers in zip(rows, given, drafts, self._run.check(parents, fed)):
            after = answers[len(mine) - 1 :]
            accepted = self._searches[row].accept(after, draft)
            kept.append(len(mine) + accepted)
            last.append(after[accepted : accepted + 1])
            if self._timings is not None:
                self._timings.accept(accepted)
            if self._on_token is not None:
                for token in draft[:accepted]:
                    self._on_token(row, token)
        self._run.keep(kept)
        return np.concatenate(last)
