"""Clean builds of checkpoints that nobody has seen: verification and bisection must stay silent.

``python -m tests.faults.clean_builds [COUNT] [PRECISION]`` perturbs the reference checkpoints
with another seed each time, exports and compiles them, verifies with another seed, bisects, and
prints what was found.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file

from configs.schema import Task
from pipeline.command import select
from verify.artifacts import find_artifacts
from verify.bisect.diagnosis import diagnose
from verify.pipeline import verify

ROOT = Path(__file__).resolve().parent.parent.parent
TASKS: tuple[Task, ...] = ("caption", "vqa", "itm")
#: Each weight is changed by this part of itself: another model, but one that still answers.
STRENGTH = 0.003


def perturbed(task: Task, seed: int, folder: Path) -> Path:
    """A copy of a reference checkpoint with other weights."""
    shutil.copytree(ROOT / "models" / "checkpoints" / f"reference-{task}", folder)
    path = folder / "model.safetensors"
    generator = np.random.default_rng(seed)
    weights = {
        name: (array * (1 + STRENGTH * generator.standard_normal(array.shape))).astype(array.dtype)
        for name, array in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def pipeline(task: Task, seed: int, root: Path, precision: str = "f16") -> Path:
    """A pipeline file for one perturbed checkpoint."""
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    checkpoint = perturbed(task, seed, root / "checkpoint")
    data["artifacts"] = str(root)
    data["tasks"] = {task: {**data["tasks"][task], "checkpoint": str(checkpoint)}}
    data["targets"] = {"openvino": {"precisions": [precision]}}
    data["verify"] = {
        "seed": seed,
        "component_scenes": 2,
        "tokens": {"onnx": {"scenes": 10}, "openvino": {"scenes": 10}},
        "gates": {task: {f"openvino.{precision}": {"min_agreement": 0.9}}},
    }
    path = root / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def run_stage(name: str, config: Path) -> None:
    """Runs a stage as the Makefile does."""
    command = [sys.executable, "-m", name, "--config", str(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def examine(task: Task, seed: int, precision: str = "f16") -> list[str]:
    """Builds, verifies and bisects; returns everything that was called wrong."""
    with TemporaryDirectory(prefix="clean-") as folder:
        config = pipeline(task, seed, Path(folder), precision)
        run_stage("export", config)
        run_stage("compile", config)
        selection = select(config, target="openvino")
        result = verify(selection, config)
        found = [
            f"{check.subject.gap} {check.subject.name}: {problem}"
            for check in result.checks
            if not check.passed
            for problem in check.problems
        ]
        (artifacts,) = find_artifacts(selection)
        diagnosis = diagnose(selection, artifacts, artifacts.targets[0], "exact")
        found += [str(finding) for finding in diagnosis.findings]
        onnx = diagnose(replace(selection, targets=()), artifacts, artifacts.onnx, "exact")
        found += [str(finding) for finding in onnx.findings]
    return found


def main() -> int:
    """Runs the builds; exit code 1 on any false alarm."""
    arguments = [word for word in sys.argv[1:] if "/" not in word]
    part, parts = next((map(int, w.split("/")) for w in sys.argv[1:] if "/" in w), (1, 1))
    count = next((int(word) for word in arguments if word.isdigit()), 20)
    precision = next((word for word in arguments if not word.isdigit()), "f16")
    alarms = 0
    seeds = range(1, count + 1)[part - 1 :: parts]
    for seed in seeds:
        task = TASKS[seed % len(TASKS)]
        found = examine(task, seed, precision)
        alarms += bool(found)
        print(
            f"seed {seed:3} {task:8} {'clean' if not found else 'FALSE ALARM'} {found}", flush=True
        )
    print(json.dumps({"builds": len(seeds), "precision": precision, "false_alarms": alarms}))
    return 1 if alarms else 0


if __name__ == "__main__":
    raise SystemExit(main())
