"""The file that a board sends back: strictly read, because it comes from outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from configs.errors import InputError
from configs.load import shown
from configs.schema import Precision, Strict
from runtime.board_test import RESULTS_VERSION

#: A results file of a full-size pipeline stays far below this.
LARGEST_BYTES = 16 << 20

Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
#: One line: messages repeat it.
Text = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Figures(Strict):
    """One output of one case: sums that a verdict is made from, or what was wrong with it."""

    problem: Text | None = None
    elements: Annotated[int, Field(ge=0)] = 0
    max_abs: NotNegative = 0.0
    scale: NotNegative = 0.0
    #: inner product of reference and output, and of each with itself
    product: Finite = 0.0
    reference_square: NotNegative = 0.0
    square: NotNegative = 0.0


class CaseResult(Strict):
    """One case of one component."""

    name: Text
    outputs: dict[Text, Figures]


class ComponentResult(Strict):
    """One component: figures of its cases, and how long each net took in each shape."""

    key: Digest
    cases: Annotated[tuple[CaseResult, ...], Field(max_length=1000)]
    #: a net alone, and all its tensors to and from the device
    latency_ms: dict[Text, NotNegative]
    transfer_ms: dict[Text, NotNegative]


class AnswerResult(Strict):
    """One whole answer."""

    token_ids: Annotated[tuple[int, ...], Field(max_length=4096)] | None = None
    probability: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    cosine: Annotated[float, Field(ge=-1.001, le=1.001)] | None = None
    milliseconds: NotNegative
    #: launches by ``component/net``
    calls: dict[Text, Annotated[int, Field(ge=0)]]


class TaskResult(Strict):
    """One task."""

    components: dict[Text, ComponentResult]
    answers: Annotated[tuple[AnswerResult, ...], Field(max_length=1000)]
    #: the vendor's own timing per file and net, one value per stage, where its tool was there
    bmrt_test_ms: dict[Text, dict[Text, tuple[NotNegative, ...]]]
    #: what else that tool said, per file
    bmrt_test_lines: dict[Text, tuple[Text, ...]]


class BoardResults(Strict):
    """Everything a board measured."""

    schema_version: Literal[2]
    kind: Literal["board_results"]
    bundle_sha256: Digest
    pipeline: Text
    target: Text
    precision: Precision
    #: index of the device, or ``simulator``, whose milliseconds say nothing about a chip
    device: Text
    tasks: dict[Text, TaskResult]


def read_results(path: Path) -> BoardResults:
    """Reads a results file.

    Raises:
        InputError: missing, too large, or not what ``runtime.board_test`` writes.
    """
    try:
        size = path.stat().st_size
        if not path.is_file() or size > LARGEST_BYTES:
            raise InputError(
                f"{shown(path)}: {size} bytes is no results file of a board (at most "
                f"{LARGEST_BYTES}); pass the results.json of a board-test folder"
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise InputError(
            f"{shown(path)}: cannot be read ({reason}); pass the results.json of a board"
        ) from None
    try:
        return BoardResults.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "(top level)"
        # A key of the file may hold anything, line ends too.
        where = where.encode("unicode_escape").decode("ascii")
        raise InputError(
            f"{shown(path)}: {where[:200]}: {first['msg']}; pass the results.json that "
            f"runtime.board_test wrote (schema_version {RESULTS_VERSION})"
        ) from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{shown(path)}: not JSON ({error})") from None
