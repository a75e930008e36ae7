"""Checks artifacts on the device that they are made for: ``python3 -m runtime.board_test FOLDER``.

The folder comes from ``make board-test``: artifacts, recorded inputs, the outputs that the exported
graphs gave for them, and whole answers. This program runs everything through the runtime's own
sessions, times each net alone, and writes ``results.json``, which the machine that made the folder
judges: ``python -m verify --from-board results.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from .board_times import bmrt_test, net_times
from .cli.reports import say
from .decoding.decoder_run import NEXT_TOKEN
from .errors import BlipEdgeError, InputError
from .sessions.session import Session, SessionOptions
from .tasks.artifacts import SIMULATOR, Artifacts
from .tasks.registry import TASKS

BUNDLE_FILE = "bundle.json"
RESULTS_FILE = "results.json"
RESULTS_VERSION = 2
#: What the verdict needs of an answer.
_JUDGED = ("token_ids", "probability", "cosine")


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs the check; returns the exit code."""
    parser = argparse.ArgumentParser(prog="runtime.board_test", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder made by make board-test")
    # Never the simulator by itself: its milliseconds would be taken for a board's.
    parser.add_argument("--device", default="0", help="device index, or 'simulator'; default: 0")
    parser.add_argument("--loops", type=int, default=20, help="timed calls per net (0: none)")
    options = parser.parse_args(arguments)
    try:
        results = run(options.folder, options.device, options.loops)
    except BlipEdgeError as error:
        say(f"error: {error}", sys.stderr)
        return error.exit_code
    path = options.folder / RESULTS_FILE
    try:
        path.write_text(json.dumps(results, indent=1, allow_nan=False), encoding="utf-8")
    except OSError as error:
        message = f"error: {path}: cannot be written ({error.strerror}); make the folder writable"
        print(message, file=sys.stderr)
        return 2
    print(f"written: {path}; README.txt says how to judge it")
    return 0


def run(folder: Path, device: str, loops: int) -> Dict[str, Any]:
    """All figures of one folder.

    Raises:
        InputError: not such a folder, or a file of it was changed.
        ArtifactError, BackendError: an artifact is damaged, or the device failed.
    """
    bundle = _read(folder / BUNDLE_FILE)
    options = SessionOptions(device=device)
    results: Dict[str, Any] = {
        "schema_version": RESULTS_VERSION,
        "kind": "board_results",
        "bundle_sha256": _sha256(folder / BUNDLE_FILE),
        **{name: bundle[name] for name in ("pipeline", "target", "precision")},
        "device": device,
        "tasks": {},
    }
    for task, described in bundle["tasks"].items():
        artifacts = Artifacts.open(
            folder / task,
            task,
            target=bundle["target"],
            precision=bundle["precision"],
            options=options,
        )
        found: Dict[str, Any] = {"components": {}, "answers": []}
        try:
            for component, expected in described["components"].items():
                print(f"{task} {component}", flush=True)
                session = artifacts.session(component)
                found["components"][component] = _component(folder, session, expected, loops)
            found["answers"] = _answers(folder, task, artifacts, described)
        finally:
            artifacts.close()
        vendor = bmrt_test(folder / task, device) if device != SIMULATOR else ({}, {})
        found["bmrt_test_ms"], found["bmrt_test_lines"] = vendor
        results["tasks"][task] = found
    return results


def _component(
    folder: Path, session: Session, expected: Mapping[str, Any], loops: int
) -> Dict[str, Any]:
    path = folder / expected["file"]
    if _sha256(path) != expected["sha256"]:
        raise InputError(f"{path}: changed since the folder was made; copy it again")
    cases: List[Dict[str, Any]] = []
    times: Dict[str, Dict[str, float]] = {}
    with np.load(str(path), allow_pickle=False) as arrays:
        for index, case in enumerate(expected["cases"]):
            feeds = {name: arrays[f"{index}/inputs/{name}"] for name in case["inputs"]}
            net = session.net(case["net"])
            shape = net.taking({name: array.shape for name, array in feeds.items()})
            outputs = session.run(feeds, net=net.name)
            found = {
                name: figures(arrays[f"{index}/outputs/{name}"], outputs.get(name), rows)
                for name, rows in case["outputs"].items()
            }
            if NEXT_TOKEN in outputs and not _best_token(outputs):
                found["logits"] = {"problem": f"{NEXT_TOKEN} is not the best of them"}
            cases.append({"name": case["name"], "outputs": found})
            if loops > 0 and shape.name not in times:
                times[shape.name] = net_times(session, net.name, shape, feeds, loops)
    return {
        "key": session.manifest.key,
        "cases": cases,
        **{
            kind: {name: found[kind] for name, found in times.items() if kind in found}
            for kind in ("latency_ms", "transfer_ms")
        },
    }


def _best_token(outputs: Mapping[str, np.ndarray]) -> bool:
    """Whether the token that the decoder chose is the one of its own greatest logit."""
    chosen = outputs[NEXT_TOKEN].reshape(-1)
    return np.array_equal(chosen, outputs["logits"].argmax(axis=-1))


def figures(
    reference: np.ndarray, actual: Optional[np.ndarray], rows: Optional[List[int]]
) -> Dict[str, Any]:
    """What a verdict needs of one output, in double precision; ``rows`` of axis 1 are real."""
    if actual is None or actual.shape != reference.shape:
        shape = None if actual is None else list(actual.shape)
        return {"problem": f"shape {shape} instead of {list(reference.shape)}"}
    if not np.isfinite(actual).all():
        return {"problem": "not finite"}
    part = slice(None) if rows is None else slice(rows[0], rows[1])
    expected = (reference if rows is None else reference[:, part]).astype(np.float64)
    found = (actual if rows is None else actual[:, part]).astype(np.float64)
    return {
        "elements": int(expected.size),
        "max_abs": float(np.abs(found - expected).max()),
        "scale": float(np.abs(expected).max()),
        "product": float(np.vdot(expected, found)),
        "reference_square": float(np.vdot(expected, expected)),
        "square": float(np.vdot(found, found)),
    }


def _answers(
    folder: Path, task: str, artifacts: Artifacts, described: Mapping[str, Any]
) -> List[Dict[str, Any]]:
    answerer = TASKS[task](artifacts)
    found: List[Dict[str, Any]] = []
    for item in described["answers"]:
        image, text, limit = folder / item["image"], item["text"], item["new_tokens"]
        before = _calls(artifacts, described)
        begin = time.perf_counter()
        options = {"max_new_tokens": limit} if limit else {}
        (result,) = answerer.ask([image], [text], **options)
        record = {name: v for name, v in result.record().items() if name in _JUDGED}
        record["milliseconds"] = round((time.perf_counter() - begin) * 1e3, 3)
        record["calls"] = dict(_calls(artifacts, described) - before)
        found.append(record)
    return found


def _calls(artifacts: Artifacts, described: Mapping[str, Any]) -> "Counter[str]":
    """Launches so far by ``component/net``."""
    return Counter(
        {
            f"{component}/{net}": count
            for component in described["components"]
            for net, count in artifacts.session(component).launches.items()
        }
    )


def _read(path: Path) -> Dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a board-test folder ({error}); copy it again") from None
    if not isinstance(data, dict) or data.get("kind") != "board_bundle":
        raise InputError(f"{path}: not made by make board-test; copy the whole folder")
    return data


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy it again") from None


if __name__ == "__main__":
    sys.exit(main())
