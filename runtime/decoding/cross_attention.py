"""Chooses how cross keys and values are held and how a decoder is run, by the kind of session."""

from __future__ import annotations

from typing import Optional, Union

import numpy as np

from ..errors import BackendError
from ..files.manifests import Dimensions
from ..sessions.board_session import SailSession
from ..sessions.openvino_session import OpenVinoSession
from ..sessions.session import Session
from ..tasks.timing import Timings
from .batching import run_rows
from .board_run import DeviceCrossStates, DeviceRun
from .decoder_run import CrossStates, DecoderRun, FixedRun, GrowingRun
from .openvino_run import ReadyCrossStates, StatefulRun

AnyCrossStates = Union[CrossStates, DeviceCrossStates, ReadyCrossStates]

CROSS_KEY_VALUES = "cross_key_values"


def project(
    session: Session, encoder_hidden_states: np.ndarray, mask: Optional[np.ndarray] = None
) -> AnyCrossStates:
    """Cross keys and values of states ``[contexts, encoder tokens, hidden]``."""
    if isinstance(session, SailSession):
        return DeviceCrossStates.project(session, encoder_hidden_states, mask)
    feeds = {"encoder_hidden_states": encoder_hidden_states}
    if isinstance(session, OpenVinoSession) and _makes_ready_keys(session):
        return ReadyCrossStates.project(session, feeds, mask)
    return CrossStates(run_rows(session, feeds), mask)


def look(
    vision: Session, cross: Session, pixel_values: np.ndarray, timings: Timings
) -> AnyCrossStates:
    """Cross keys and values of images ``[images, 3, height, width]``, one context per image.

    Args:
        vision: the ``vision_encoder``.
        cross: the ``cross_key_values``; the same session where one model computes both.
        pixel_values: preprocessed images.
        timings: collects the time of both stages.
    """
    rows = len(pixel_values)
    feeds = {"pixel_values": pixel_values}
    if cross is vision and isinstance(vision, OpenVinoSession):
        with timings.measure("vision", rows):
            return ReadyCrossStates.project(vision, feeds)
    with timings.measure("vision", rows):
        embeds = run_rows(vision, feeds)["image_embeds"]
    with timings.measure(CROSS_KEY_VALUES, rows):
        return project(cross, embeds)


def start_run(session: Session, dimensions: Dimensions, cross: AnyCrossStates) -> DecoderRun:
    """The run that fits: on a board, with states, in fixed-size nets (``step``), or growing."""
    if isinstance(cross, DeviceCrossStates):
        if not isinstance(session, SailSession):
            raise BackendError(f"{session.manifest.path}: keys and values are on a board")
        return DeviceRun(session, dimensions, cross)
    if isinstance(cross, ReadyCrossStates):
        if not isinstance(session, OpenVinoSession):
            raise BackendError(f"{session.manifest.path}: keys and values are OpenVINO's")
        return StatefulRun(session, cross)
    if "step" in session.nets:
        return FixedRun(session, dimensions, cross)
    return GrowingRun(session, dimensions, cross)


def _makes_ready_keys(session: OpenVinoSession) -> bool:
    spec = session.net(None).output("cross.0.key")
    return spec is not None and spec.layout is not None
