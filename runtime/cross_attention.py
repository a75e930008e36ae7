"""Chooses how cross keys and values are held and how a decoder is run, by the kind of session."""

from __future__ import annotations

from typing import Optional, Union

import numpy as np

from runtime.decoding import CrossStates, DecoderRun, FixedRun, GrowingRun
from runtime.device_decoding import DeviceCrossStates, DeviceRun
from runtime.errors import BackendError
from runtime.manifests import Dimensions
from runtime.sail_session import SailSession
from runtime.sessions import Session
from runtime.stages import run_rows

AnyCrossStates = Union[CrossStates, DeviceCrossStates]


def project(
    session: Session, encoder_hidden_states: np.ndarray, mask: Optional[np.ndarray] = None
) -> AnyCrossStates:
    """Cross keys and values of states ``[contexts, encoder tokens, hidden]``."""
    if isinstance(session, SailSession):
        return DeviceCrossStates.project(session, encoder_hidden_states, mask)
    feeds = {"encoder_hidden_states": encoder_hidden_states}
    return CrossStates(run_rows(session, feeds), mask)


def start_run(session: Session, dimensions: Dimensions, cross: AnyCrossStates) -> DecoderRun:
    """The run that fits: on a board, in fixed-size nets (they have a ``step``), or growing."""
    if isinstance(cross, DeviceCrossStates):
        if not isinstance(session, SailSession):
            raise BackendError(f"{session.manifest.path}: keys and values are on a board")
        return DeviceRun(session, dimensions, cross)
    if "step" in session.nets:
        return FixedRun(session, dimensions, cross)
    return GrowingRun(session, dimensions, cross)
