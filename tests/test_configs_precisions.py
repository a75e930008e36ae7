"""One table of precisions: everything else that orders or lists them follows from it."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from configs.errors import ConfigError
from configs.layout import TARGETS_FOLDER
from configs.load import load_target
from configs.precisions import PRECISIONS, Precision
from runtime.tasks.artifacts import _preference


def test_every_precision_has_a_row() -> None:
    assert tuple(PRECISIONS) == get_args(Precision)


def test_the_runtime_prefers_precisions_in_the_order_of_the_table() -> None:
    names: list[str] = list(PRECISIONS)
    random.Random(0).shuffle(names)
    assert sorted(names, key=_preference, reverse=True) == list(PRECISIONS)


def test_names_say_how_many_bits_a_weight_has() -> None:
    for name, one in PRECISIONS.items():
        assert re.findall("[0-9]+", name)[0] == re.findall("[0-9]+", one.weights)[0]


@pytest.mark.parametrize(
    ("target", "changes", "expected"),
    [
        ("openvino_npu", {"precisions": ["f16", "bf16"]}, r"precisions: bf16: openvino cannot"),
        ("bm1684", {"precisions": ["f32", "int4"]}, r"int4: sophon cannot build vision_encoder"),
        ("openvino_npu", {"cores": 2}, r"cores: unknown key"),
        ("bm1684", {"static_shapes": True}, r"static_shapes: unknown key"),
        ("bm1684", {"backend": "tensorrt"}, r"backend: .*choose one of: openvino, sophon"),
        ("bm1684", {"npu_heap_mib": 1}, r"npu_heap_mib: unknown key"),
        ("bm1688", {"float32": "roughly"}, r"float32: "),
    ],
)
def test_a_target_says_only_what_its_backend_can(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    changes: dict[str, object],
    expected: str,
) -> None:
    data = yaml.safe_load((TARGETS_FOLDER / f"{target}.yaml").read_text())
    (tmp_path / "bm9.yaml").write_text(yaml.safe_dump({**data, "name": "bm9", **changes}))
    monkeypatch.setattr("configs.load.TARGETS_FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=expected):
        load_target("bm9")
