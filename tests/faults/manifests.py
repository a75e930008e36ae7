"""Wrong values in the task manifest and in processor files beside right graphs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.manifest import file_record
from tests.faults.fault import Fault, host_fault

Data = dict[str, Any]


def manifest(section: str, key: str, value: Any) -> Callable[[Path], None]:
    """Changes one value of the task manifest."""

    def plant(folder: Path) -> None:
        path = folder / "manifest.json"
        data = json.loads(path.read_text())
        assert data[section][key] != value
        data[section][key] = value
        path.write_text(json.dumps(data))

    return plant


def processor(name: str, change: Callable[[Data], None]) -> Callable[[Path], None]:
    """Changes a processor file and re-seals the task manifest."""

    def plant(folder: Path) -> None:
        path = folder / "processor" / name
        data = json.loads(path.read_text())
        before = json.dumps(data)
        change(data)
        assert json.dumps(data) != before
        path.write_text(json.dumps(data))
        sealed = json.loads((folder / "manifest.json").read_text())
        sealed["files"][f"processor/{name}"] = asdict(file_record(path))
        (folder / "manifest.json").write_text(json.dumps(sealed))

    return plant


def _cased(data: Data) -> None:
    data["normalizer"]["lowercase"] = False


def _no_class_token(data: Data) -> None:
    post = data["post_processor"]
    if post["type"] == "BertProcessing":
        data["post_processor"] = None
        return
    post["single"] = [
        p for p in post["single"] if "SpecialToken" not in p or p["SpecialToken"]["id"] != "[CLS]"
    ]


def _two_words_swapped(data: Data) -> None:
    vocabulary = data["model"]["vocab"]
    first, second = sorted(w for w in vocabulary if w.isalpha() and len(w) > 2)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def _bilinear(data: Data) -> None:
    data["resample"] = 2


def _flags(**values: Any) -> Any:
    def change(data: dict[str, Any]) -> None:
        data.update(values)

    return change


def _accents(data: dict[str, Any]) -> None:
    data["normalizer"]["strip_accents"] = False


def _crop(data: dict[str, Any]) -> None:
    data["do_center_crop"] = True
    data["crop_size"] = dict(data["size"])


def _no_mean(data: dict[str, Any]) -> None:
    del data["image_mean"]


_PIXELS, _WORDS = "preprocessor_config.json", "tokenizer.json"

SETTING_FAULTS: list[Fault] = [
    host_fault(
        "wrong end token",
        "caption",
        r"generation: .*end_token",
        plant=manifest("text", "end_token_id", 7),
    ),
    host_fault(
        "start token is [CLS]",
        "caption",
        r"generation: .*start_token",
        plant=manifest("text", "start_token_id", 2),
    ),
    host_fault(
        "wrong pad id",
        "vqa",
        r"tokenization: .*pad_token",
        plant=manifest("text", "pad_token_id", 5),
    ),
    host_fault(
        "question starts with [ENC]",
        "vqa",
        r"tokenization: .*question_start",
        plant=manifest("text", "question_start", "enc"),
    ),
    host_fault(
        "mean missing",
        "caption",
        r"preprocessing: .*mean",
        plant=manifest("image", "mean", [0.0, 0.0, 0.0]),
    ),
    host_fault(
        "std missing",
        "itm",
        r"preprocessing: .*std",
        plant=manifest("image", "std", [1.0, 1.0, 1.0]),
    ),
    host_fault(
        "mean and std of ImageNet",
        "vqa",
        r"preprocessing: .*mean",
        plant=manifest("image", "mean", [0.485, 0.456, 0.406]),
    ),
    host_fault(
        "bilinear instead of bicubic",
        "caption",
        r"preprocessing: .*resample",
        plant=manifest("image", "resample", "bilinear"),
    ),
    host_fault(
        "rescale factor 1/256",
        "caption",
        r"preprocessing: .*rescale",
        plant=manifest("image", "rescale_factor", 1 / 256),
    ),
    host_fault(
        "position table too short",
        "vqa",
        r"tokenization: .*maximum_positions",
        plant=manifest("text", "maximum_positions", 24),
    ),
    host_fault(
        "tokenizer keeps capitals",
        "vqa",
        r"tokenization: lower-casing",
        plant=processor(_WORDS, _cased),
    ),
    host_fault(
        "tokenizer adds no [CLS]",
        "itm",
        r"tokenization: ",
        plant=processor(_WORDS, _no_class_token),
    ),
    host_fault(
        "two words of the vocabulary swapped",
        "caption",
        r"tokenization: ",
        plant=processor(_WORDS, _two_words_swapped),
    ),
    host_fault(
        "processor file says bilinear",
        "caption",
        r"preprocessing: .*resample",
        plant=processor(_PIXELS, _bilinear),
    ),
    host_fault(
        "image height 80 instead of 96",
        "vqa",
        r"preprocessing: ",
        plant=manifest("image", "height", 80),
    ),
    host_fault(
        "[ENC] id wrong in the manifest",
        "itm",
        r"tokenization: .*enc_token",
        plant=manifest("text", "enc_token_id", 197),
    ),
    host_fault(
        "lower-casing switched off in the manifest",
        "caption",
        r"tokenization: ",
        plant=manifest("text", "lower_case", False),
    ),
    host_fault(
        "processor rescales by 1/127.5",
        "caption",
        r"preprocessing: .*rescale",
        plant=processor(_PIXELS, _flags(rescale_factor=1 / 127.5)),
    ),
    host_fault(
        "processor does not normalise",
        "vqa",
        r"preprocessing: .*normalize",
        plant=processor(_PIXELS, _flags(do_normalize=False)),
    ),
    host_fault(
        "tokenizer keeps accents", "vqa", r"tokenization: ", plant=processor(_WORDS, _accents)
    ),
    host_fault(
        "processor file crops the image",
        "itm",
        r"preprocessing: .*do_center_crop",
        plant=processor(_PIXELS, _crop),
    ),
    host_fault(
        "processor file has no mean",
        "vqa",
        r"preprocessing: .*image_mean",
        plant=processor(_PIXELS, _no_mean),
    ),
]
