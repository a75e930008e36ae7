"""Artifacts folders with verdicts of every kind, for the report's tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from pipeline.manifest import key_of

ROOT = Path(__file__).resolve().parent.parent
COMPONENTS = {
    "caption": ("vision_encoder", "cross_key_values", "text_decoder"),
    "vqa": ("vision_encoder", "text_encoder", "cross_key_values", "text_decoder"),
    "itm": ("vision_encoder", "text_encoder", "text_encoder_unimodal", "vision_projection"),
}
#: what a caption, a path or a message may hold
HOSTILE = """</td><script>alert(1)</script><img src=x onerror=alert(2)>"'&{{7*7}}{% raw %}\u202e"""


def write_json(path: Path, data: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def component_check(
    task: str, component: str, target: str, precision: str, error: float, bound: float, **more: Any
) -> dict[str, Any]:
    passed = error <= bound
    problem = f"output x: relative error {error:.1e} exceeds {bound:.1e}"
    return {
        "gap": "onnxruntime_vs_target" if target != "onnx" else "wrapper_vs_onnxruntime",
        "task": task,
        "component": component,
        "target": target,
        "precision": precision,
        "kind": "component",
        "variant": "",
        "samples": 4,
        "metrics": {"relative_error": error, "cosine": 1.0 - error * error},
        "tolerance": {
            "max_relative_error": bound,
            "min_cosine": 1.0 - bound * bound,
            "source": "configs/tolerances.yaml: components.row",
            "reason": "measured",
        },
        "passed": passed,
        "problems": [] if passed else [problem],
        "key": "k",
        "seconds": 0.1,
        **more,
    }


def token_check(
    task: str,
    target: str,
    precision: str,
    answers: list[tuple[str, str]],
    minimum: float = 1.0,
    text: str = "",
) -> dict[str, Any]:
    """``answers``: (the checkpoint's, the target's), one per scene."""
    same = [expected == found for expected, found in answers]
    rate = sum(same) / len(same)
    divergences = [
        {"case": f"scene {i}", "token": 2, "expected": a, "found": b, "least_margin": 0.5}
        for i, (a, b) in enumerate(answers)
        if a != b
    ]
    return {
        "gap": "tokens",
        "task": task,
        "component": None,
        "target": target,
        "precision": precision,
        "kind": "tokens",
        "variant": "",
        "samples": len(answers),
        "metrics": {
            "exact_match_rate": rate,
            "tokens_compared": 40,
            "least_margin": 0.5,
            "accuracy": 1.0,
            "checkpoint_accuracy": 1.0,
            "first_divergences": divergences,
            "examples": [
                {"scene": i, "text": text, "truth": a, "expected": a, "found": b, "same": a == b}
                for i, (a, b) in enumerate(answers)
            ],
        },
        "tolerance": {"min_agreement": minimum, "source": "pipeline.yaml: verify.gates"},
        "passed": rate >= minimum,
        "problems": [] if rate >= minimum else [f"{sum(same)} of {len(same)} generations equal"],
        "key": "k",
        "seconds": 0.1,
    }


class Pipeline:
    """One pipeline's folder below ``root``, with whatever the test puts there."""

    def __init__(
        self,
        root: Path,
        *,
        tasks: tuple[str, ...] = ("caption",),
        targets: dict[str, list[str]] | None = None,
    ) -> None:
        self.config = root / "pipeline.yaml"
        self.folder = root / "sample"
        self.tasks = tasks
        self.targets = targets or {"openvino": ["f16"]}
        self.artifacts: dict[str, dict[str, str]] = {}
        data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
        data["name"] = "sample"
        data["artifacts"] = str(root)
        data["tasks"] = {task: data["tasks"][task] for task in tasks}
        data["targets"] = {name: {"precisions": list(v)} for name, v in self.targets.items()}
        self.config.write_text(yaml.safe_dump(data))

    @property
    def page(self) -> Path:
        return self.folder / "report.html"

    @property
    def sets(self) -> list[tuple[str, str]]:
        """(target, precision) of everything, ONNX first."""
        pairs = [(target, p) for target, values in self.targets.items() for p in values]
        return [("onnx", "f32"), *pairs]

    def build(self, *sets: tuple[str, str], **fields: Any) -> None:
        """Writes the component manifests of ``sets``, of everything if none is named."""
        for task in self.tasks:
            for target, precision in sets or self.sets:
                for component in COMPONENTS[task]:
                    self._component(task, component, target, precision, fields)

    def _component(
        self, task: str, component: str, target: str, precision: str, fields: dict[str, Any]
    ) -> None:
        name = f"{component}.bin"
        path = self.folder / task / target / precision / f"{component}.manifest.json"
        chip = target.startswith("bm")
        net = {
            "name": "main",
            "file": name,
            "inputs": [],
            "outputs": [],
            "estimate": {"latency_ms": 0.5, "source": "tool"} if chip else None,
            "fusions": {"MatMul2FAttention": 4} if chip else {},
        }
        content = {
            "schema_version": 1,
            "kind": "component",
            "pipeline": "sample",
            "task": task,
            "component": component,
            "target": target,
            "precision": precision,
            "key": "k",
            "key_inputs": {"settings": {"target": {"cores": 1}}},
            "nets": [net],
            "files": {name: {"sha256": "ab" * 32, "size_bytes": 3_000_000}},
            "rewrites": [{"name": "fix_shapes", "reason": "r", "sites": 3, "max_abs_error": 0.0}],
            "commands": [["tool", "--name", "a b"]] if chip else [],
            "tools": {"tool": "1.0"},
            "checkpoint": {
                "source": "models/checkpoints/x",
                "revision": None,
                "weights_sha256": "cd" * 32,
                "architecture": "Blip",
            },
            "device_memory_bytes": 4_000_000 if chip else None,
            **fields,
        }
        write_json(path, content)
        files = content["files"]
        assert isinstance(files, dict)
        self.artifacts[str(path)] = {n: r["sha256"] for n, r in files.items()}

    def passing_checks(self) -> list[dict[str, Any]]:
        checks = []
        for task in self.tasks:
            for target, precision in self.sets:
                checks += [
                    component_check(task, component, target, precision, 2e-4 * (i + 1), 5e-3)
                    for i, component in enumerate(COMPONENTS[task])
                ]
                answer = "a red circle above two blue rings"
                checks.append(token_check(task, target, precision, [(answer, answer)] * 3))
        return checks

    def verdict(self, checks: list[dict[str, Any]], **more: Any) -> None:
        passed = bool(checks) and all(check["passed"] for check in checks)
        data = {
            "passed": passed,
            "checks": checks,
            "pipeline": "sample",
            "not_simulated": [],
            "artifacts": self.artifacts,
            "tools": {"onnxruntime": "1.0"},
            **more,
        }
        write_json(self.folder / "verify.json", {**data, "sha256": key_of(data)})

    def evaluation(self, name: str = "caption-scenes", **more: Any) -> Path:
        """A result of ``make evaluate``, as docs/evaluation.md has it, with one thumbnail."""
        folder = self.folder / "evaluation"
        (folder / "thumbnails").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), "teal").save(folder / "thumbnails" / "one.jpg")
        metric = {"value": 1.25, "low": 1.2, "high": 1.3}
        drop = {"checkpoint": 1.3, "drop": 0.05, "drop_low": -0.01, "drop_high": 0.1}
        worst = {
            "item": "scene 7",
            "image": "thumbnails/one.jpg",
            "text": "",
            "references": ["a red circle"],
            "checkpoint": "a red circle",
            "answer": "a red ring",
            "checkpoint_score": 1.0,
            "score": 0.4,
            "differs": True,
            "first_divergence": 2,
        }
        gate = {"name": "agreement", "value": 0.99, "limit": 0.98, "passed": True, "source": "x"}
        divergence = {"count": 3, "earliest": 1, "median": 2, "positions": {"1": 1, "2": 2}}
        subject = {
            "target": "openvino",
            "precision": "f16",
            "mode": "fast",
            "items": 100,
            "metrics": {"cider": {**metric, **drop}},
            "agreement": {"rate": 0.99, "same": 99, "compared": 100},
            "divergence": divergence,
            "gates": [gate],
            "worst": [worst],
            "artifacts": {},
            "seconds": 1.0,
        }
        data = {
            "schema_version": 1,
            "kind": "evaluation",
            "pipeline": "sample",
            "task": "caption",
            "data_set": {
                "name": "scenes",
                "kind": "scenes",
                "source": "held-out scenes",
                "identity": "x",
                "items": 100,
                "available": 1000,
            },
            "settings": {},
            "metrics": [{"name": "cider", "title": "CIDEr", "range": 10}],
            "checkpoint": {
                "source": "x",
                "weights_sha256": "x",
                "items": 100,
                "metrics": {"cider": metric},
            },
            "subjects": [subject],
            "tools": {},
            **more,
        }
        return write_json(folder / f"{name}.json", data)

    def bisection(self, errors: list[float | None], **more: Any) -> Path:
        """A result of ``make bisect``; None stands for an error that is not finite."""
        bound = 1e-3
        layers = [
            {
                "index": index,
                "layer": f"layers.{index}",
                "tensor": f"/layers.{index}/feed_forward/outer/Add_output_0",
                "node": f"/layers.{index}/Add",
                "operator": "Add",
                "vendor_name": None,
                "introduced": error,
                "introduced_max": error,
                "accumulated": error,
                "exceeds": error is None or error > bound,
            }
            for index, error in enumerate(errors)
        ]
        wrong = [layer for layer in layers if layer["exceeds"]]
        finding = {"part": "target", "where": "text_decoder layers.1", "what": "drifts"}
        part = {
            "component": "text_decoder",
            "net": "step",
            "comparison": "onnxruntime_vs_target",
            "method": "intermediate outputs",
            "bound": bound,
            "cases": ["scene 0"],
            "faults": [{"where": "layers.1", "what": "a constant differs"}] if wrong else [],
            "layers": layers,
            "islands": {"onnx_nodes": [layer["node"] for layer in wrong]},
            "plots": [],
        }
        data = {
            "schema_version": 1,
            "pipeline": "sample",
            "task": "caption",
            "target": "openvino",
            "precision": "f16",
            "mode": "exact",
            "verdict": finding if wrong else None,
            "findings": [finding] if wrong else [],
            "components": [part],
            "notes": ["a note"],
            "tools": {},
            **more,
        }
        return write_json(self.folder / "bisect" / "caption_openvino_f16_exact.json", data)

    def benchmark(self, **more: Any) -> Path:
        """A result of ``make bench``, reduced to what the page shows."""
        summary = {"count": 5, "median": 1250.0, "low": 1200.0, "high": 1300.0}
        workload = {"total_ms": summary}
        ratio = {"count": 5, "median": 10.0, "low": 9.5, "high": 10.5}
        start = {"first_caption_s": ratio, "images_per_s": ratio, "peak_bytes": 1 << 30}
        task = {
            "variants": {
                "torch_f32": {"workloads": {"greedy": workload}, "peak_bytes": 1 << 30},
                "fast": {
                    "workloads": {
                        "greedy": {"total_ms": {**summary, "median": 125.0}},
                        "batch_4": workload,
                    },
                    "tokens_equal": [8, 8],
                    "disk_bytes": 1 << 28,
                },
                "int8": {"not_measured": "OpenVINO artifacts have no precision int8"},
            },
            "ratios": {"greedy/fast/torch_f32": ratio},
            "command_line": {"fast": start},
        }
        machine = {"processor": "P", "cores": 2, "memory_bytes": 1 << 34, "system": "Linux"}
        data = {
            "schema_version": 2,
            "pipeline": "sample",
            "machine": machine,
            "threads": 2,
            "new_tokens": 16,
            "rounds": 5,
            "quick": False,
            "tasks": {"caption": task},
            **more,
        }
        return write_json(self.folder / "benchmark.json", data)
