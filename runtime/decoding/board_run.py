"""Decodes on a board: only ids, masks and logits cross the bus, keys and values stay."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

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
    fitting_stage,
    fixed_axis,
    fixed_calls,
    prompt_cuts,
    tokens_of,
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
        for spec in self._session.net(None).outputs:
            taken = net.input(spec.name)
            if taken is None or taken.dtype == spec.dtype:
                continue
            for tensors in self.tensors:
                array = widened(self._session.read(tensors[spec.name], spec))
                tensors[spec.name] = session.new_tensor(net, taken)
                session.write(tensors[spec.name], array, taken)


class _Rows:
    """Caches of one or more sequences in one set of tensors, and what they attend to."""

    def __init__(self, stage: Net, tensors: Dict[str, Any], rows: int) -> None:
        self.stage = stage
        #: past keys and values ``[rows, slots, heads, head size]``
        self.tensors = tensors
        #: cross keys and values of the rows; for one row, the context's own tensors
        self.cross: Mapping[str, Any] = {}
        #: context of each row, as far as ``cross`` holds it
        self.contexts: List[int] = []
        #: tokens fed of each sequence
        self.lengths = [0] * rows


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
        self._spare: List[_Rows] = []
        self._check_dtypes()

    def start(self, prompts: Sequence[Sequence[int]], contexts: Sequence[int]) -> np.ndarray:
        """See ``DecoderRun``."""
        self._contexts = list(contexts)
        # A prompt's passes take the largest cache: the nets of a first pass have no other.
        rows = [self._new_rows(self._step) for _ in prompts]
        self._places: List[_Place] = [(one, 0) for one in rows]
        logits = []
        for row, prompt in enumerate(prompts):
            self._attend(rows[row], [self._contexts[row]])
            last = np.zeros(0)
            for start, end in prompt_cuts(len(prompt), self._first_tokens):
                net = self._step if end - start == 1 else self._first
                stage = fitting_stage(net, 1, end - start, self._slots)
                last = self._call(stage, rows[row], [list(prompt[start:end])])
            logits.append(last)
        return np.concatenate(logits)

    def step(self, parents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """See ``DecoderRun``."""
        continued = [int(parent) for parent in parents]
        self._contexts = [self._contexts[parent] for parent in continued]
        groups = self._arrange(continued)
        logits, start = [], 0
        for rows in groups:
            count = len(rows.lengths)
            given = [[int(token)] for token in tokens[start : start + count]]
            logits.append(self._call(rows.stage, rows, given))
            start += count
        return np.concatenate(logits)

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
        rows = fixed_axis(stage, "past.0.key", 0)
        for index, spare in enumerate(self._spare):
            if spare.stage is stage:
                found = self._spare.pop(index)
                found.lengths = [0] * rows
                return found
        tensors = {}
        for name in self._past:
            spec = stage.input(name)
            assert spec is not None  # noqa: S101 - _check_dtypes has looked
            # A masked slot must not hold a NaN: zero times NaN is NaN.
            tensors[name] = self._session.new_tensor(stage, spec, zeroed=True)
        return _Rows(stage, tensors, rows)

    def _arrange(self, parents: List[int]) -> List[_Rows]:
        """Lays out rows that continue ``parents``: what can stay where it is stays."""
        before = [self._places[parent] for parent in parents]
        groups: List[_Rows] = []
        places: List[_Place] = []
        taken: List[_Rows] = []
        start = 0
        for count in row_groups(len(parents), self._sizes):
            sources = before[start : start + count]
            lengths = [rows.lengths[row] for rows, row in sources]
            # One slot more than is read: the step's own keys and values go there.
            stage = fitting_stage(self._step, count, 1, max(lengths) + 1)
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
            for name in self._past if count else ():
                copy.tensors[name].sync_d2d(
                    rows.tensors[name],
                    source * there * self._row_elements,
                    row * here * self._row_elements,
                    count,
                )
        return copy

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
            for name in self._cross.tensors[contexts[0]]:
                spec = rows.stage.input(name)
                assert spec is not None  # noqa: S101 - the nets of one artifact
                if name not in stacked:
                    stacked[name] = self._session.new_tensor(rows.stage, spec)
                size = int(np.prod([int(axis) for axis in spec.shape[1:]]))
                for row, context in enumerate(contexts):
                    if row >= len(rows.contexts) or rows.contexts[row] != context:
                        source = self._cross.tensors[context][name]
                        stacked[name].sync_d2d(source, 0, row * size, size)
            rows.cross = stacked
        rows.contexts = list(contexts)

    def _call(self, net: Net, rows: _Rows, tokens: List[List[int]]) -> np.ndarray:
        session = self._session
        length = fixed_axis(net, "self_attention_mask", 2)
        feeds = fixed_calls(tokens, length, rows.lengths, self._slots_of(rows))
        if net.input(CROSS_MASK) is not None:
            masks = [self._cross_mask(net, context, length) for context in rows.contexts]
            feeds[CROSS_MASK] = np.concatenate(masks)
        resident: Mapping[str, Any] = {**rows.tensors, **rows.cross}
        # The net's own tensors serve one call at a time.
        with session.exclusive():
            inputs = session.small_inputs(net, feeds, resident)
            outputs = session.outputs_of(net)
            session.process(net, inputs, outputs)
            self._append(rows, outputs, length, len(tokens[0]))
            if self.tokens_suffice and NEXT_TOKEN in outputs:
                self._read(net, outputs, NEXT_LOGIT)
                return tokens_of(self._read(net, outputs, NEXT_TOKEN))
            return self._read(net, outputs, "logits")

    def _read(self, net: Net, outputs: Mapping[str, Any], name: str) -> np.ndarray:
        spec = net.output(name)
        assert spec is not None  # noqa: S101 - process has used it
        return self._session.finite(name, self._session.read(outputs[name], spec))

    def _append(self, rows: _Rows, outputs: Mapping[str, Any], length: int, tokens: int) -> None:
        slots = self._slots_of(rows)
        for row, past_tokens in enumerate(rows.lengths):
            kept = min(tokens, slots - past_tokens)
            if kept > 0:
                # sail counts offsets and lengths in elements.
                source = (row * length + length - tokens) * self._row_elements
                target = (row * slots + past_tokens) * self._row_elements
                for past, new in zip(self._past, self._new):
                    rows.tensors[past].sync_d2d(
                        outputs[new], source, target, kept * self._row_elements
                    )
            rows.lengths[row] = past_tokens + tokens

    def _cross_mask(self, net: Net, context: int, length: int) -> np.ndarray:
        encoder_tokens = fixed_axis(net, CROSS_MASK, 3)
        mask = np.ones(encoder_tokens) if self._cross.mask is None else self._cross.mask[context]
        return additive(np.broadcast_to(mask != 0, (1, 1, length, encoder_tokens)))


def _larger(stage: Net, than: Net) -> bool:
    """Whether a stage has more slots than another; going back to fewer would copy for nothing."""
    return fixed_axis(stage, "past.0.key", 1) > fixed_axis(than, "past.0.key", 1)
