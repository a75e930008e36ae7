"""Decodes with an OpenVINO model that keeps the past of its rows as states.

The model's rows lie in a grid, ``rows per context`` for each context in turn, so that the beams of
an image attend to one copy of its cross keys and values. A row that has ended keeps its place until
half of them have: laying the grid out anew copies the cross keys and values of the others.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import BackendError
from ..sessions.openvino_session import OpenVinoSession, empty, raw, tensor_rows
from ..sessions.session import DecoderRun
from .batching import ANY_DRAFTS, CROSS_MASK, DYNAMIC_DRAFTS, TokenGrid, additive, consecutive


class ReadyCrossStates:
    """Cross keys and values of contexts, in the tensors that the model wrote them to."""

    def __init__(self, tensors: Dict[str, Any], mask: Optional[np.ndarray] = None) -> None:
        #: contract name to ``openvino.Tensor`` as the decoder takes it: type, axes, scale
        self.tensors = tensors
        #: 1 for real encoder tokens, 0 for padding ``[contexts, encoder tokens]``; None: all real
        self.mask = mask

    def select(self, contexts: np.ndarray) -> Dict[str, Any]:
        """Tensors of these contexts in this order; no copy where they are one consecutive run."""
        index = consecutive(contexts)
        return {name: tensor_rows(tensor, index) for name, tensor in self.tensors.items()}


def split_contexts(states: ReadyCrossStates) -> List[ReadyCrossStates]:
    """A copy of each context; the model's own tensors are free for others afterwards."""
    count = int(next(iter(states.tensors.values())).get_shape()[0])
    masks = [None] * count if states.mask is None else list(states.mask[:, None])
    return [
        ReadyCrossStates(
            {name: tensor_rows(t, np.array([row])) for name, t in states.tensors.items()}, mask
        )
        for row, mask in enumerate(masks)
    ]


def joined_contexts(parts: Sequence[ReadyCrossStates]) -> ReadyCrossStates:
    """Single contexts as one; nothing is copied where there is one."""
    if len(parts) == 1:
        return parts[0]
    tensors = {}
    for name, first in parts[0].tensors.items():
        shape = [len(parts), *list(first.get_shape())[1:]]
        tensors[name] = empty(first.get_element_type(), shape)
        for row, part in enumerate(parts):
            raw(tensors[name])[row] = raw(part.tensors[name])[0]
    masks = [part.mask for part in parts if part.mask is not None]
    return ReadyCrossStates(tensors, np.concatenate(masks) if masks else None)


class StatefulRun(DecoderRun):
    """All rows in one call; the past never leaves the model."""

    def __init__(self, session: OpenVinoSession, cross: ReadyCrossStates) -> None:
        self._session = session
        self._net = session.net(None)
        self._cross = cross
        self._names = {spec.name: spec.artifact_name for spec in self._net.inputs}
        self._row_index = self._net.row_index
        if self._row_index is None:
            raise BackendError(f"{session.manifest.path}: no row_index; rebuild it")
        self._wants_mask = self._net.input(CROSS_MASK) is not None
        if self._net.first_logit is not None:
            self.most_drafts = ANY_DRAFTS
        self._request: Any = None
        self._most_contexts = 1
        #: places of the caller's rows in the grid, and the context of each row
        self._live: np.ndarray = np.zeros(0, dtype=np.int64)
        self._contexts: np.ndarray = np.zeros(0, dtype=np.int64)

    def start(self, prompts: Sequence[Sequence[int]], contexts: Sequence[int]) -> np.ndarray:
        """See ``DecoderRun``; shorter prompts are padded on the left, and the padding masked."""
        self.begin(contexts)
        longest = max(len(prompt) for prompt in prompts)
        grid = self._grid
        ids = np.zeros((grid, longest), dtype=np.int64)
        valid = np.zeros((grid, longest), dtype=bool)
        # A place without a row does what the first row does.
        taken = np.zeros(grid, dtype=np.int64)
        taken[self._live] = np.arange(len(prompts))
        for place, row in enumerate(taken.tolist()):
            prompt = prompts[row]
            ids[place, longest - len(prompt) :] = prompt
            valid[place, longest - len(prompt) :] = True
        positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
        self._tokens = TokenGrid(valid, positions[:, -1])
        causal = np.tril(np.ones((longest, longest), dtype=bool))
        allowed = causal[None] & valid[:, None, :]
        logits = self._call(ids, positions, allowed, np.arange(grid), 1)
        return logits if len(self._live) == grid else logits[self._live]

    def begin(self, contexts: Sequence[int]) -> None:
        """See ``DecoderRun``."""
        if self._request is None:
            self._request = self._session.borrow(self._net)
        with self._session.failures():
            self._request.reset_state()
        self._lay_out(np.array(contexts, dtype=np.int64))
        self._tokens = TokenGrid.empty(self._grid)

    def check(self, parents: np.ndarray, tokens: Sequence[Sequence[int]]) -> List[np.ndarray]:
        """See ``DecoderRun``."""
        places = self._live[parents]
        contexts = self._contexts[parents]
        found = self._free_places(contexts)
        if found is None:
            self._lay_out(contexts)
            index = np.full(self._grid, places[0], dtype=np.int64)
        else:
            self._live, self._contexts = found, contexts
            index = np.arange(self._grid)
        index[self._live] = places
        self._tokens.select(index)
        call = self._tokens.add(self._live, tokens)
        new = call[0].shape[1]
        logits = self._call(*call, index, new).reshape(self._grid, new, -1)
        return [logits[place, : len(row)] for place, row in zip(self._live, tokens)]

    def usual_drafts(self, rows: int) -> int:
        """See ``DecoderRun``; a pass over many rows takes as long as its tokens are many."""
        return DYNAMIC_DRAFTS if rows == 1 else 0

    def keep(self, counts: Sequence[int]) -> None:
        """See ``DecoderRun``; what a row loses stays in the states, and is masked."""
        self._tokens.keep(self._live, counts)

    def close(self) -> None:
        """Gives the model's states free for another generation."""
        request, self._request = self._request, None
        if request is not None:
            # A request keeps the tensors that it was given: of a batch hundreds of MiB.
            self._session.give_back(self._net, request, again=self._most_contexts == 1)

    def __del__(self) -> None:
        self.close()

    def _lay_out(self, contexts: np.ndarray) -> None:
        """Places rows in a grid of their contexts, each with room for as many as the largest."""
        order, counts = _in_order(contexts)
        self._order = order
        self._per_context = max(counts.values())
        self._grid = len(order) * self._per_context
        self._most_contexts = max(self._most_contexts, len(order))
        self._contexts = contexts
        live = self._free_places(contexts)
        if live is None:
            raise BackendError("rows do not fit the grid that was made for them")
        self._live = live
        self._selected = self._cross.select(np.array(order, dtype=np.int64))
        mask = self._cross.mask
        self._context_mask = None if mask is None else mask[order]
        self._fresh = True

    def _free_places(self, contexts: np.ndarray) -> Optional[np.ndarray]:
        """A place for each row among those of its context; None if the grid should be another."""
        if 2 * len(contexts) <= self._grid:
            # Half of the places are empty: worth a smaller grid, if there is one.
            order, counts = _in_order(contexts)
            if len(order) * max(counts.values()) < self._grid:
                return None
        next_free = {c: i * self._per_context for i, c in enumerate(self._order)}
        last = {c: place + self._per_context for c, place in next_free.items()}
        places = np.empty(len(contexts), dtype=np.int64)
        for row, context in enumerate(contexts.tolist()):
            place = next_free.get(context)
            if place is None or place >= last[context]:
                return None
            places[row] = place
            next_free[context] = place + 1
        return places

    def _call(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        allowed: np.ndarray,
        index: np.ndarray,
        logits: int,
    ) -> np.ndarray:
        import openvino

        arrays = {
            "input_ids": ids,
            "position_ids": np.ascontiguousarray(positions),
            "self_attention_mask": additive(allowed)[:, None],
        }
        if self._wants_mask:
            arrays[CROSS_MASK] = self._encoder_mask()
        feeds = {
            self._names[name]: openvino.Tensor(array, shared_memory=True)
            for name, array in arrays.items()
        }
        if self._net.first_logit is not None:
            feeds[self._net.first_logit] = openvino.Tensor(np.array(-logits))
        feeds[str(self._row_index)] = openvino.Tensor(index.astype(np.int32))
        if self._fresh:
            # Set once: they stay with the request until the grid changes.
            feeds.update({self._names[name]: t for name, t in self._selected.items()})
            self._fresh = False
        self._session.infer(self._request, feeds)
        found = np.array(self._request.get_tensor("logits").data)
        return self._session.finite("logits", found)

    def _encoder_mask(self) -> np.ndarray:
        """``[contexts, 1, 1, encoder tokens]``: the same for every row and token of a context."""
        mask = self._context_mask
        if mask is None:
            value = self._selected["cross.0.value"].get_shape()
            mask = np.ones((value[0], value[2]))
        return additive(mask[:, None, None, :] != 0)


def _in_order(contexts: np.ndarray) -> Tuple[List[int], Dict[int, int]]:
    """Different contexts in order, and how many rows each one has."""
    counts: Dict[int, int] = {}
    for context in contexts.tolist():
        counts[context] = counts.get(context, 0) + 1
    return sorted(counts), counts
