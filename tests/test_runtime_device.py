"""The reference artifacts on a real board or card (make test-device)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.scenes import draw, scenes
from runtime import Captioner

pytestmark = pytest.mark.device


def test_board_captions_equal_onnxruntime(reference_artifacts: Path) -> None:
    """BLIP_EDGE_TEST_CHIP names the chip, BLIP_EDGE_TEST_DEVICE its index (default 0)."""
    chip = os.environ.get("BLIP_EDGE_TEST_CHIP")
    assert chip, "name the chip: BLIP_EDGE_TEST_CHIP=bm1684x make test-device"
    device = os.environ.get("BLIP_EDGE_TEST_DEVICE", "0")
    images = [draw(scene) for scene in scenes(20)]
    with Captioner.from_artifacts(reference_artifacts, target="onnx") as reference:
        expected = [caption.token_ids for caption in reference.batch(images)]
    with Captioner.from_artifacts(reference_artifacts, target=chip, device=device) as board:
        assert [caption.token_ids for caption in board.batch(images)] == expected
