"""Latencies that the vendor published for BLIP: float32, silicon, batch 1, ``bmrt_test``.

From the BLIP sample of github.com/sophgo/sophon-demo (sample/BLIP/README.md). Caption and match
are one net each there: image, text and, for captions, a decoding loop of frozen length. The
question's nets run at 480 pixels; BM1684X's 11 ms for the text encoder, beside 202 on BM1688, looks
like a slip and is kept as published.
"""

from __future__ import annotations

from collections.abc import Mapping

from configs.schema import Task

#: chip -> part of a task -> milliseconds
PUBLISHED_F32_MS: Mapping[str, Mapping[tuple[Task, str], float]] = {
    "bm1684": {
        ("itm", "match"): 513.0,
        ("vqa", "image"): 742.0,
        ("vqa", "question"): 110.0 + 86.0,
    },
    "bm1684x": {
        ("caption", "caption"): 332.0,
        ("itm", "match"): 201.0,
        ("vqa", "image"): 352.0,
        ("vqa", "question"): 11.0 + 46.0,
    },
    "bm1688": {
        ("caption", "caption"): 987.0,
        ("itm", "match"): 798.0,
        ("vqa", "image"): 1090.0,
        ("vqa", "question"): 202.0 + 101.0,
    },
}
