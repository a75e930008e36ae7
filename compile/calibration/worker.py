"""Runs nets under TPU-MLIR's own inference; started with the vendor environment's interpreter.

``python worker.py job.json``: measures candidate quantize tables one by one. Every
result is appended to a file at once, so a killed run goes on where it stopped. Imports nothing of
the project: it runs under Python 3.10 with the vendor's packages.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import tpu_mlir  # type: ignore[import-not-found]

if "BLIP_EDGE_WORKER" not in os.environ:
    # Importing the package sets library paths, which only a process started afterwards sees.
    os.environ["BLIP_EDGE_WORKER"] = tpu_mlir.__name__
    os.environ["PYTHONPATH"] = f"{os.environ['TPUC_ROOT']}/python:{os.environ.get('PYTHONPATH', '')}"
    os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606 - this very program

import pymlir  # type: ignore[import-not-found]
from tpu_mlir.python.utils.mlir_shell import mlir_lowering  # type: ignore[import-not-found]


def samples(paths: list[str]) -> Iterator[dict[str, Any]]:
    """Inputs of one call after the other."""
    for path in paths:
        with np.load(path) as stored:
            yield {name: stored[name].astype(np.float32) for name in stored.files}


def load(mlir: str) -> Any:
    """A net. Without this mode outputs read as zeros where their memory is used again."""
    pymlir.set_mem_mode("value_mem")
    module = pymlir.module()
    module.load(mlir)
    return module


def run(module: Any, inputs: dict[str, Any]) -> None:
    """One call."""
    for name in module.input_names:
        array = np.ascontiguousarray(inputs[name])
        module.set_tensor(name, array, array.shape)
    module.invoke(True)


def outputs(module: Any) -> list[Any]:
    """Outputs in the net's order."""
    found = module.get_all_tensor()
    return [np.array(found[name], dtype=np.float64) for name in module.output_names]


def measure(job: dict[str, Any]) -> None:
    """Relative error of every candidate's outputs against the float net, over all samples."""
    results = Path(job["results"])
    done = set()
    if results.is_file():
        done = {json.loads(line)["name"] for line in results.read_text().splitlines()}
    wanted = [one for one in job["candidates"] if one["name"] not in done]
    if not wanted:
        return
    floating = load(job["mlir"])
    reference = []
    for inputs in samples(job["samples"]):
        run(floating, inputs)
        reference.append(outputs(floating))
    del floating
    for one in wanted:
        record = {"name": one["name"], **errors(job, one["table"], reference)}
        with results.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        report("measured")


def errors(job: dict[str, Any], table: str, reference: list[list[Any]]) -> dict[str, float]:
    """Root of summed squares, relative to the reference's, of the worst output."""
    lowered = "candidate_tpu.mlir"
    mlir_lowering(
        job["mlir"],
        lowered,
        "INT8",
        job["chip"],
        cali_table=job["thresholds"],
        quantize_table=table,
        mute=True,
    )
    module = load(lowered)
    count = len(reference[0])
    error, scale = np.zeros(count), np.zeros(count)
    same = 0
    for inputs, expected in zip(samples(job["samples"]), reference):
        run(module, inputs)
        found = outputs(module)
        for index in range(count):
            difference = found[index].reshape(-1) - expected[index].reshape(-1)
            error[index] += float(np.square(difference).sum())
            scale[index] += float(np.square(expected[index]).sum())
        same += int(found[0].argmax() == expected[0].argmax())
    relative = np.sqrt(error / np.maximum(scale, 1e-30))
    return {"error": float(relative.max()), "same_largest": same / len(reference)}


def report(what: str) -> None:
    """One line per finished piece of work, for the progress bar."""
    sys.stderr.write(f"@ {what}\n")
    sys.stderr.flush()


def main() -> None:
    """Does what the job file asks."""
    job = json.loads(Path(sys.argv[1]).read_text())
    measure(job)


if __name__ == "__main__":
    main()
