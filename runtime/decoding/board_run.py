"""Decodes on a board: only ids, masks and logits cross the bus, keys and values stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..errors import ArtifactError
from ..files.manifests import Dimensions, Net
from ..files.number_formats import widened
from ..sessions.board_session import SailSession
from ..sessions.session import DecoderRun
from .batching import row_groups
from .caches import new_names, past_names
from .decoder_run import (
    CROSS_MASK,
    NEXT_LOGIT,
    NEXT_TOKEN,
    additive,
    answers_of,
    filled,
    fitting_stage,
    fixed_axis,
    fixed_calls,
    prompt_cuts,
    tokens_of,
    worth_of_drafts,
)


class DeviceCrossStates:
    """Cross keys and values of contexts, each a set of tensors in device memory."""

    def __init__(
        self,
        session: SailSession,
        tensors: List[Dict[str, Any]],
        mask: Optional[np.ndarray] = None,
    ) -> None:
        self._session = session
        self._fitted = False
        self.tensors = tensors
        #: 1 for real encoder tokens ``[contexts, encoder tokens]``, or None
        self.mask = mask

    def fit(self, session: SailSession, net: Net) -> None:
        """Gives every tensor the dtype that a decoder takes, through the host where it differs.

        Components of one set may be built differently, e.g. INT8 with float32 borders.
        """
        if self._fitted:
            return
        self._fitted = True
        # The tensors themselves go back to the session that made them.
        self.tensors = [dict(tensors) for tensors in self.tensors]
        for spec in self._session.net(None).outputs:
            taken = net.input(spec.name)
            if taken is None or taken.dtype == spec.dtype:
                continue
            for tensors in self.tensors:
                array = widened(self._session.memory.read(tensors[spec.name], spec))
                tensors[spec.name] = session.new_tensor(taken)
                session.memory.write(tensors[spec.name], array, taken)


class _Rows:
    """Caches of one or more sequences in one set of tensors, and what they attend to."""

    def __init__(self, stage: Net, tensors: Dict[str, Any], whole: Dict[str, Any]) -> None:
        self.stage = stage
        #: past keys and values ``[rows, slots, heads, head size]``
        self.tensors = tensors
        #: of a single row, what they are the last slots of; before them there is room for padding
        self.whole = whole
        #: cross keys and values of the rows; for one row, the context's own tensors
        self.cross: Mapping[str, Any] = {}
        #: context of each row, as far as ``cross`` holds it
        self.contexts: List[int] = []
        #: tokens fed of each sequence
        self.lengths = [0] * fixed_axis(stage, "past.0.key", 0)


#: One sequence's place: its tensors and its row in them.
_Place = Tuple[_Rows, int]


class DeviceRun(DecoderRun):
    """Decodes on one board; caches and cross keys and values never leave it.

    Rows are taken together where the step was compiled for several; a row moves to larger tensors
    when those of its stage are full.
    """

    def __init__(
        self, session: SailSession, dimensions: Dimensions, cross: DeviceCrossStates
    ) -> None:
        session.load()
        self._session = session
        self._cross = cross
        self._step = session.net("step")
        cross.fit(session, self._step)
        self._first = session.nets.get("first_pass", self._step)
        self._slots = fixed_axis(self._step, "past.0.key", 1)
        self._first_tokens = fixed_axis(self._first, "self_attention_mask", 2)
        self._sizes = self._step.lengths("batch") or (1,)
        self._past = past_names(dimensions.layers)
        self._new = new_names(dimensions.layers)
        self._row_elements = dimensions.heads * dimensions.head_size
        #: slots before a cache: a first pass writes the rows of its padding there
        self._front = self._first_tokens - 1
        if self._first.answers_everywhere:
            self.most_drafts = self._first_tokens - 1
        self._spare: List[_Rows] = []
        self._contexts: List[int] = []
        self._check_dtypes()

    def start(self, prompts: Sequence[Sequence[int]], contexts: Sequence[int]) -> np.ndarray:
        """See ``DecoderRun``."""
        self.begin(contexts)
        logits = []
        for (rows, _), context, prompt in zip(self._places, contexts, prompts):
            self._attend(rows, [context])
            last = np.zeros(0)
            for start, end in prompt_cuts(len(prompt), self._first_tokens):
                net = self._step if end - start == 1 else self._first
                stage = fitting_stage(net, 1, end - start, self._slots)
                last = self._call(stage, rows, [list(prompt[start:end])])
            logits.append(last)
        return np.concatenate(logits)

    def step(self, parents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """See ``DecoderRun``."""
        continued = [int(parent) for parent in parents]
        self._contexts = [self._contexts[parent] for parent in continued]
        groups = self._arrange(continued, self._sizes)
        logits, start = [], 0
        for rows in groups:
            count = len(rows.lengths)
            given = [[int(token)] for token in tokens[start : start + count]]
            logits.append(self._call(rows.stage, rows, given))
            start += count
        return np.concatenate(logits)

    def begin(self, contexts: Sequence[int]) -> None:
        """See ``DecoderRun``."""
        self._contexts = list(contexts)
        # A prompt's passes take the largest cache: the nets of a first pass have no other.
        self._places: List[_Place] = [(self._new_rows(self._step), 0) for _ in contexts]

    def check(self, parents: np.ndarray, tokens: Sequence[Sequence[int]]) -> List[np.ndarray]:
        """See ``DecoderRun``; row after row, in the first pass's net."""
        continued = [int(parent) for parent in parents]
        self._contexts = [self._contexts[parent] for parent in continued]
        found, self._before = [], []
        for rows, given in zip(self._arrange(continued, (1,), self._slots), tokens):
            self._before.append(rows.lengths[0])
            drafted = len(given) > 1
            net = self._first if drafted else self._step
            stage = fitting_stage(net, 1, len(given), self._slots)
            found.append(self._call(stage, rows, [list(given)], drafted=drafted))
        return found

    def usual_drafts(self, rows: int) -> int:  # noqa: ARG002 - rows are fed one by one
        """See ``DecoderRun``."""
        return worth_of_drafts(self._first, self._step)

    def keep(self, counts: Sequence[int]) -> None:
        """See ``DecoderRun``; what a row loses is overwritten."""
        for (rows, _), before, count in zip(self._places, self._before, counts):
            rows.lengths = [before + count]

    def _check_dtypes(self) -> None:
        """Device copies move bytes: new and past rows must have one dtype."""
        for past, new in zip(self._past, self._new):
            for net in {self._step.name: self._step, self._first.name: self._first}.values():
                given, taken = net.output(new), net.input(past)
                if given is None or taken is None or given.dtype != taken.dtype:
                    raise ArtifactError(
                        f"{self._session.manifest.path}: '{new}' and '{past}' must have one dtype; "
                        "rebuild it"
                    )

    def _new_rows(self, stage: Net) -> _Rows:
        for index, spare in enumerate(self._spare):
            if spare.stage is stage:
                found = self._spare.pop(index)
                found.lengths = [0] * len(found.lengths)
                return found
        # Tensors begin as zeros: a masked slot must not hold a NaN, zero times NaN is NaN.
        memory = self._session.memory
        single = memory.views and fixed_axis(stage, "past.0.key", 0) == 1
        tensors, whole = {}, {}
        for name in self._past:
            spec = stage.input(name)
            assert spec is not None  # noqa: S101 - _check_dtypes has looked
            if single:
                shape = [fixed_axis(stage, name, axis) for axis in range(4)]
                longer = (1, self._front + shape[1] + self.most_drafts, *shape[2:])
                whole[name] = self._session.new_tensor(replace(spec, shape=longer))
                tensors[name] = memory.part(whole[name], shape, self._front * self._row_elements)
            else:
                tensors[name] = self._session.new_tensor(spec)
        return _Rows(stage, tensors, whole)

    def _arrange(self, parents: List[int], sizes: Sequence[int], slots: int = 0) -> List[_Rows]:
        """Lays out rows that continue ``parents``: what can stay where it is stays.

        Args:
            parents: the rows.
            sizes: how many rows a set of tensors may have.
            slots: least length of their caches.
        """
        before = [self._places[parent] for parent in parents]
        groups: List[_Rows] = []
        places: List[_Place] = []
        taken: List[_Rows] = []
        start = 0
        for count in row_groups(len(parents), sizes):
            sources = before[start : start + count]
            lengths = [rows.lengths[row] for rows, row in sources]
            # One slot more than is read: the step's own keys and values go there.
            stage = fitting_stage(self._step, count, 1, max(*lengths, slots - 1) + 1)
            group = sources[0][0]
            stays = sources == [(group, row) for row in range(len(group.lengths))]
            if not stays or group in taken or _larger(stage, group.stage):
                group = self._copied(stage, sources, lengths)
            taken.append(group)
            self._attend(group, self._contexts[start : start + count])
            groups.append(group)
            places += [(group, row) for row in range(count)]
            start += count
        kept = {id(group) for group in groups}
        for rows, _ in self._places:
            if id(rows) not in kept:
                kept.add(id(rows))
                self._spare.append(rows)
        self._places = places
        return groups

    def _copied(self, stage: Net, sources: List[_Place], lengths: List[int]) -> _Rows:
        copy = self._new_rows(stage)
        copy.lengths = list(lengths)
        for row, (rows, source) in enumerate(sources):
            there, here = self._slots_of(rows), self._slots_of(copy)
            count = min(lengths[row], there, here) * self._row_elements
            start, to = (at * self._row_elements for at in (source * there, row * here))
            self._device_copy(
                (copy.tensors[name], rows.tensors[name], start, to, count)
                for name in (self._past if count else ())
            )
        return copy

    def _device_copy(self, copies: Iterable[Tuple[Any, Any, int, int, int]]) -> None:
        spec = self._step.input(self._past[0])
        assert spec is not None  # noqa: S101 - _check_dtypes has looked
        self._session.memory.copy(spec, copies)

    def _slots_of(self, rows: _Rows) -> int:
        return fixed_axis(rows.stage, "past.0.key", 1)

    def _attend(self, rows: _Rows, contexts: List[int]) -> None:
        """Gives rows the cross keys and values of their contexts; several rows take copies."""
        if rows.contexts == contexts:
            return
        if len(contexts) == 1:
            rows.cross = self._cross.tensors[contexts[0]]
        else:
            stacked = dict(rows.cross)
            copies = []
            for name in self._cross.tensors[contexts[0]]:
                spec = rows.stage.input(name)
                assert spec is not None  # noqa: S101 - the nets of one artifact
                if name not in stacked:
                    stacked[name] = self._session.new_tensor(spec)
                size = int(np.prod([int(axis) for axis in spec.shape[1:]]))
                for row, context in enumerate(contexts):
                    if row >= len(rows.contexts) or rows.contexts[row] != context:
                        source = self._cross.tensors[context][name]
                        copies.append((stacked[name], source, 0, row * size, size))
            self._device_copy(copies)
            rows.cross = stacked
        rows.contexts = list(contexts)

    def _call(
        self, net: Net, rows: _Rows, tokens: List[List[int]], *, drafted: bool = False
    ) -> np.ndarray:
        session, real = self._session, len(tokens[0])
        length = fixed_axis(net, "self_attention_mask", 2)
        if drafted:
            tokens = [filled(row, length) for row in tokens]
        feeds = fixed_calls(tokens, length, rows.lengths, self._slots_of(rows), real)
        if net.input(CROSS_MASK) is not None:
            masks = [self._cross_mask(net, context, length) for context in rows.contexts]
            feeds[CROSS_MASK] = np.concatenate(masks)
        resident: Mapping[str, Any] = {**rows.tensors, **rows.cross}
        # The net's own tensors serve one call at a time.
        with session.exclusive():
            inputs = session.small_inputs(net, feeds, resident)
            placed = self._placed(rows, length, len(tokens[0]))
            outputs = session.outputs_of(net, placed)
            chosen = self.tokens_suffice and NEXT_TOKEN in outputs
            wanted = (NEXT_LOGIT, NEXT_TOKEN) if chosen else ("logits",)
            read = session.process(net, inputs, outputs, wanted)
            if not placed:
                self._append(rows, outputs, length, len(tokens[0]))
        rows.lengths = [fed + len(tokens[0]) for fed in rows.lengths]
        logits = session.finite(wanted[0], read[wanted[0]])
        answers = tokens_of(read[NEXT_TOKEN]) if chosen else logits
        return answers_of(net, answers, real, drafted=drafted)

    def _placed(self, rows: _Rows, length: int, tokens: int) -> Dict[str, Any]:
        """New keys and values as parts of the cache that the net itself writes; empty: copy them.

        A net that reads the cache meanwhile does not see them: their slots are masked.
        """
        past_tokens, pads = rows.lengths[0], length - tokens
        room = self._slots_of(rows) + self.most_drafts
        if not rows.whole or past_tokens + tokens > room or (past_tokens and pads):
            return {}
        start = (self._front + past_tokens - pads) * self._row_elements
        placed = {}
        for past, new in zip(self._past, self._new):
            shape = [1, length, *(fixed_axis(rows.stage, past, axis) for axis in (2, 3))]
            placed[new] = self._session.memory.part(rows.whole[past], shape, start)
        return placed

    def _append(self, rows: _Rows, outputs: Mapping[str, Any], length: int, tokens: int) -> None:
        slots = self._slots_of(rows)
        copies = []
        for row, past_tokens in enumerate(rows.lengths):
            kept = min(tokens, slots - past_tokens)
            if kept > 0:
                # sail counts offsets and lengths in elements.
                source = (row * length + length - tokens) * self._row_elements
                target = (row * slots + past_tokens) * self._row_elements
                count = kept * self._row_elements
                copies += [
                    (rows.tensors[past], outputs[new], source, target, count)
                    for past, new in zip(self._past, self._new)
                ]
        self._device_copy(copies)

    def _cross_mask(self, net: Net, context: int, length: int) -> np.ndarray:
        encoder_tokens = fixed_axis(net, CROSS_MASK, 3)
        mask = np.ones(encoder_tokens) if self._cross.mask is None else self._cross.mask[context]
        return additive(np.broadcast_to(mask != 0, (1, 1, length, encoder_tokens)))


def _larger(stage: Net, than: Net) -> bool:
    """Whether a stage has more slots than another; going back to fewer would copy for nothing."""
    return fixed_axis(stage, "past.0.key", 1) > fixed_axis(than, "past.0.key", 1)
