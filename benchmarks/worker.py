"""The process of one variant: reads requests, one JSON object per line, and answers likewise.

``python -m benchmarks.worker`` is started by ``worker_process``; everything that a library
prints goes to standard error, which the parent keeps as a log.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from benchmarks.runners.base import Measured, Runner, RunnerOptions
from benchmarks.schedule import LIMITS, Workload


def open_runner(options: RunnerOptions) -> Runner:
    """The runner of a variant; libraries are imported only for the one that needs them."""
    if options.variant == LIMITS:
        from benchmarks.runners.limits import LimitsRunner

        return LimitsRunner(options)
    if options.variant == "notebook":
        from benchmarks.runners.notebook import NotebookRunner

        return NotebookRunner(options)
    if options.variant.startswith("torch"):
        from benchmarks.runners.torch_eager import TorchRunner

        return TorchRunner(options)
    from benchmarks.runners.artifacts import ArtifactsRunner

    return ArtifactsRunner(options)


def measure(runner: Runner, workload: Workload, least_s: float) -> dict[str, Any]:
    """Calls a workload until ``least_s`` have passed; returns means over the calls, in ms.

    ``steps_ms`` are the medians of each step over the calls.
    """
    calls: list[Measured] = []
    while not calls or sum(call.seconds for call in calls) < least_s:
        calls.append(runner.run(workload))
    count = len(calls)
    stages: dict[str, float] = {}
    for call in calls:
        for stage, seconds in call.stages.items():
            stages[stage] = stages.get(stage, 0.0) + 1000 * seconds / count
    rates = [call.rate for call in calls if call.rate is not None]
    steps = [
        sorted(values)[count // 2] for values in zip(*(call.steps for call in calls), strict=True)
    ]
    return {
        "calls": count,
        "total_ms": 1000 * sum(call.seconds for call in calls) / count,
        "stages_ms": stages,
        "steps_ms": [1000 * seconds for seconds in steps],
        "rate": sum(rates) / len(rates) if rates else None,
        "tokens": calls[-1].tokens,
    }


def memory() -> dict[str, int]:
    """Resident bytes now and at the highest, of this process."""
    fields = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            fields[name] = 1024 * int(value.split()[0])
    return {"resident_bytes": fields["VmRSS"], "peak_bytes": fields["VmHWM"]}


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answers requests until the stream ends or ``close`` is asked for."""
    runner: Runner | None = None
    for line in requests:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                raw = request["options"]
                paths = {name: Path(raw[name]) for name in ("artifacts", "inputs", "work")}
                runner = open_runner(RunnerOptions(**{**raw, **paths}))
                runner.open()
                result: dict[str, Any] = runner.facts()
            elif request["do"] == "memory":
                gc.collect()
                result = memory()
            elif request["do"] == "measure" and runner is not None:
                workload = Workload(**request["workload"])
                result = measure(runner, workload, request["least_s"])
            else:
                break
            reply: dict[str, Any] = {"result": result}
        except Exception as error:  # the parent reports it in the variant's row
            text = " ".join(str(error).split()) or type(error).__name__
            reply = {"error": text[:400]}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    if runner is not None:
        runner.close()


def main() -> None:
    """Keeps standard output for replies alone."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
