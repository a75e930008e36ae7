"""Checks artifacts on the device that they are made for: ``python3 -m runtime.board_test FOLDER``.

The folder comes from ``make board-test``: artifacts, recorded inputs, the outputs that the exported
graphs gave for them, and whole answers. This program runs everything through the runtime's own
sessions, times each net, and writes ``results.json``, which the machine that made the folder
judges: ``python -m verify --from-board results.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from .cli.reports import say
from .decoding.decoder_run import NEXT_TOKEN
from .errors import BlipEdgeError, InputError
from .sessions.session import Session, SessionOptions, one_line
from .tasks.artifacts import SIMULATOR, Artifacts
from .tasks.registry import TASKS

BUNDLE_FILE = "bundle.json"
RESULTS_FILE = "results.json"
RESULTS_VERSION = 1
#: What the verdict needs of an answer.
_JUDGED = ("token_ids", "probability", "cosine")
#: Where the SDK puts its command-line tools.
_TOOLS = "/opt/sophon/libsophon-current/bin"
#: What ``bmrt_test`` prints per net.
_CALCULATED = re.compile(r"calculate\s+time\(s\):\s*([0-9.]+)")


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
            found["answers"] = _answers(folder, task, artifacts, described["answers"])
        finally:
            artifacts.close()
        found["bmrt_test_ms"] = _bmrt_test(folder / task, device) if device != SIMULATOR else {}
        results["tasks"][task] = found
    return results


def _component(
    folder: Path, session: Session, expected: Mapping[str, Any], loops: int
) -> Dict[str, Any]:
    path = folder / expected["file"]
    if _sha256(path) != expected["sha256"]:
        raise InputError(f"{path}: changed since the folder was made; copy it again")
    cases: List[Dict[str, Any]] = []
    latencies: Dict[str, float] = {}
    with np.load(str(path), allow_pickle=False) as arrays:
        for index, case in enumerate(expected["cases"]):
            feeds = {name: arrays[f"{index}/inputs/{name}"] for name in case["inputs"]}
            net = session.net(case["net"])
            outputs = session.run(feeds, net=net.name)
            found = {
                name: figures(arrays[f"{index}/outputs/{name}"], outputs.get(name), rows)
                for name, rows in case["outputs"].items()
            }
            if NEXT_TOKEN in outputs and not _best_token(outputs):
                found["logits"] = {"problem": f"{NEXT_TOKEN} is not the best of them"}
            cases.append({"name": case["name"], "outputs": found})
            if loops > 0 and net.name not in latencies:
                begin = time.perf_counter()
                for _ in range(loops):
                    session.run(feeds, net=net.name)
                latencies[net.name] = (time.perf_counter() - begin) * 1e3 / loops
    return {
        "key": session.manifest.key,
        "cases": cases,
        "latency_ms": {name: round(value, 4) for name, value in latencies.items()},
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
    folder: Path, task: str, artifacts: Artifacts, expected: List[Mapping[str, Any]]
) -> List[Dict[str, Any]]:
    answerer = TASKS[task](artifacts)
    found: List[Dict[str, Any]] = []
    for item in expected:
        image, text, limit = folder / item["image"], item["text"], item["new_tokens"]
        begin = time.perf_counter()
        options = {"max_new_tokens": limit} if limit else {}
        (result,) = answerer.ask([image], [text], **options)
        record = {name: v for name, v in result.record().items() if name in _JUDGED}
        record["milliseconds"] = round((time.perf_counter() - begin) * 1e3, 3)
        found.append(record)
    return found


def _bmrt_test(folder: Path, device: str) -> Dict[str, List[float]]:
    """The vendor's own timing of every BModel, in milliseconds per net, where its tool is there."""
    tool = shutil.which("bmrt_test")
    if tool is None:
        print(f"bmrt_test: not found, its times are left out; it is part of libsophon ({_TOOLS})")
        return {}
    timed: Dict[str, List[float]] = {}
    for path in sorted(folder.glob("*/*.bmodel")):
        print(f"bmrt_test {path.name}", flush=True)
        try:
            done = subprocess.run(
                [tool, "--bmodel", str(path), "--devid", device, "--loopnum", "20"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                universal_newlines=True,
                timeout=600,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"bmrt_test {path.name}: left out ({one_line(error)})")
            continue
        timed[path.name] = [float(seconds) * 1e3 for seconds in _CALCULATED.findall(done.stdout)]
        if done.returncode != 0 or not timed[path.name]:
            print(f"bmrt_test {path.name}: exit code {done.returncode}, no time printed")
    return timed


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
