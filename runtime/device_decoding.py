"""Decodes on a board: only ids, masks and logits cross the bus, keys and values stay."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np

from runtime.caches import new_names, past_names
from runtime.decoding import (
    CROSS_MASK,
    DecoderRun,
    additive,
    fixed_axis,
    fixed_call,
    prompt_cuts,
)
from runtime.decoding import checked_logits as checked
from runtime.errors import ArtifactError
from runtime.manifests import Dimensions, Net
from runtime.sail_session import SailSession
from runtime.sessions import widened


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

    @classmethod
    def project(
        cls, session: SailSession, encoder_hidden_states: np.ndarray, mask: Optional[np.ndarray]
    ) -> "DeviceCrossStates":
        """Runs ``cross_key_values`` for every row of ``[contexts, encoder tokens, hidden]``."""
        net = session.net(None)
        tensors = [
            session.run_resident(
                {"encoder_hidden_states": encoder_hidden_states[row : row + 1]}, net
            )
            for row in range(len(encoder_hidden_states))
        ]
        return cls(session, tensors, mask)

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


class _Row:
    """One sequence's keys and values in device memory."""

    def __init__(self, tensors: Dict[str, Any]) -> None:
        self.tensors = tensors
        self.length = 0


class DeviceRun(DecoderRun):
    """Row after row on one board; caches and cross keys and values never leave it."""

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
        self._past = past_names(dimensions.layers)
        self._new = new_names(dimensions.layers)
        self._row_elements = dimensions.heads * dimensions.head_size
        self._spare: List[_Row] = []
        self._check_dtypes()

    def start(self, prompts: Sequence[Sequence[int]], contexts: Sequence[int]) -> np.ndarray:
        """See ``DecoderRun``."""
        self._contexts = list(contexts)
        self._rows = [self._new_row() for _ in prompts]
        logits = []
        for row, prompt in enumerate(prompts):
            last = np.zeros(0)
            for start, end in prompt_cuts(len(prompt), self._first_tokens):
                net = self._step if end - start == 1 else self._first
                last = self._call(net, row, list(prompt[start:end]))
            logits.append(last)
        return np.concatenate(logits)

    def step(self, parents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """See ``DecoderRun``."""
        if not np.array_equal(parents, np.arange(len(self._rows))):
            self._select([int(parent) for parent in parents])
        return np.concatenate(
            [self._call(self._step, row, [int(token)]) for row, token in enumerate(tokens)]
        )

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

    def _new_row(self) -> _Row:
        if self._spare:
            return self._spare.pop()
        tensors = {}
        for name in self._past:
            spec = self._step.input(name)
            assert spec is not None  # noqa: S101 - _check_dtypes has looked
            # A masked slot must not hold a NaN: zero times NaN is NaN.
            tensors[name] = self._session.new_tensor(self._step, spec, zeroed=True)
        return _Row(tensors)

    def _select(self, parents: List[int]) -> None:
        """Row i continues row ``parents[i]``: one child takes the cache over, others copy it."""
        taken: Dict[int, _Row] = {}
        rows: List[_Row] = []
        unused = [row for index, row in enumerate(self._rows) if index not in set(parents)]
        self._spare += unused
        for parent in parents:
            source = self._rows[parent]
            if parent not in taken:
                taken[parent] = source
                rows.append(source)
                continue
            copy = self._new_row()
            copy.length = source.length
            count = min(source.length, self._slots) * self._row_elements
            for name in self._past:
                copy.tensors[name].sync_d2d(source.tensors[name], 0, 0, count)
            rows.append(copy)
        self._rows = rows
        self._contexts = [self._contexts[parent] for parent in parents]

    def _call(self, net: Net, row: int, tokens: List[int]) -> np.ndarray:
        session, cache = self._session, self._rows[row]
        length = 1 if net is self._step else self._first_tokens
        feeds = fixed_call(tokens, length, cache.length, self._slots)
        context = self._contexts[row]
        if net.input(CROSS_MASK) is not None:
            feeds[CROSS_MASK] = self._cross_mask(net, context, length)
        resident: Mapping[str, Any] = {**cache.tensors, **self._cross.tensors[context]}
        # The net's own tensors serve one call at a time.
        with session.exclusive():
            inputs = session.small_inputs(net, feeds, resident)
            outputs = session.outputs_of(net)
            session.process(net, inputs, outputs)
            self._append(cache, outputs, length, len(tokens))
            logits_spec = net.output("logits")
            assert logits_spec is not None  # noqa: S101 - process has used it
            logits = session.read(outputs["logits"], logits_spec)
        return checked(logits, session)

    def _append(self, cache: _Row, outputs: Mapping[str, Any], length: int, tokens: int) -> None:
        kept = min(tokens, self._slots - cache.length)
        if kept > 0:
            # sail counts offsets and lengths in elements.
            source = (length - tokens) * self._row_elements
            target = cache.length * self._row_elements
            for past, new in zip(self._past, self._new):
                cache.tensors[past].sync_d2d(
                    outputs[new], source, target, kept * self._row_elements
                )
        cache.length += tokens

    def _cross_mask(self, net: Net, context: int, length: int) -> np.ndarray:
        encoder_tokens = fixed_axis(net, CROSS_MASK, 3)
        mask = np.ones(encoder_tokens) if self._cross.mask is None else self._cross.mask[context]
        return additive(np.broadcast_to(mask != 0, (1, 1, length, encoder_tokens)))
