"""Exported constants are found in compiled files however they are laid out, and only there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from verify.tracing.stored_constants import Format, bits, find_constants

SHAPE = (96, 64)


def weight(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def share(stored: np.ndarray, exported: np.ndarray, path: Path, kind: Format) -> float:
    header = np.arange(37, dtype=np.uint16).tobytes() + b"\0\0"
    path.write_bytes(header + bits(stored, kind).tobytes() + bytes(6))
    (found,) = find_constants({"weight": exported}, [path], [kind])
    return found.share


def tiled(array: np.ndarray) -> np.ndarray:
    """Lanes of 32 columns, as a chip's memory has them."""
    return np.ascontiguousarray(array.reshape(-1, 2, 32).transpose(1, 0, 2))


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.transpose, tiled])
def test_every_layout_is_found(tmp_path: Path, kind: Format, layout: object) -> None:
    array = weight()
    stored = np.ascontiguousarray(layout(array))  # type: ignore[operator]
    assert share(stored, array, tmp_path / "file", kind) == 1.0


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_another_weight_is_not_found(tmp_path: Path, kind: Format) -> None:
    array = weight()
    noisy = array * (1 + 0.01 * weight(1))
    assert share(noisy, array, tmp_path / "file", kind) < 0.01
    assert share(weight(2), array, tmp_path / "file", kind) < 0.01


def test_one_changed_row_is_missed(tmp_path: Path) -> None:
    array = weight()
    changed = array.copy()
    changed[50] += 0.05
    found = share(changed, array, tmp_path / "file", "float16")
    assert found == pytest.approx(1 - 1 / SHAPE[0], abs=1e-6)


def test_constants_without_a_pattern_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(64))
    constants = {"ones": np.ones(128, dtype=np.float32), "few": weight()[0, :8]}
    assert find_constants(constants, [tmp_path / "file"], ["float32"]) == []
