"""A chip is one YAML file: built, judged and described without a change anywhere else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_target
from configs.schema import TASK_COMPONENTS
from tests.compile_private import ROOT, PrivatePipeline, private_pipeline

#: TPU-MLIR ships a simulator of this chip, and the project knows nothing of it.
CHIP, LIKE = "bm1684x2", "bm1688"
ROOMS = ("configs", "pipeline", "compile", "runtime", "verify")
#: Its rows, and what it answers on the simulator beside the exported graph.
JUDGED = """
import json, sys
from pathlib import Path
from configs.load import load_target
from configs.precisions import PRECISIONS
from configs.tolerances import load_tolerances
table, found = load_tolerances(), {}
for chip in sys.argv[1:]:
    found[chip] = []
    for precision in load_target(chip).precisions:
        place = dict(target=chip, precision=precision)
        place["arithmetic"] = PRECISIONS[precision].arithmetic
        found[chip] += [table.score(**place).name, table.gate(**place).source]
        for part in ("vision_encoder", "text_decoder"):
            place["component"] = part
            found[chip] += [
                table.component(gap="onnxruntime_vs_target", **place).name,
                table.layer(gap="target_layers", **place).name,
            ]
print(json.dumps(found))
"""
RUN = """
import json, sys
from pathlib import Path
import numpy as np
from configs.precisions import PRECISIONS
from configs.tolerances import load_tolerances
from runtime.files.manifests import component_manifests
from runtime.sessions.opening import open_session
from runtime.sessions.session import SessionOptions
from verify.parity.compare import compare, faults
every = [m for m in component_manifests(Path(sys.argv[1])) if m.component == "vision_projection"]
onnx = next(m for m in every if m.target == "onnx")
shape = onnx.nets[0].inputs[0].shape[1:]
states = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
right = open_session(onnx, SessionOptions()).run({"image_embeds": states})["image_features"]
found = {}
for chip in every:
    if chip.target != "onnx":
        session = open_session(chip, SessionOptions(device="simulator"))
        answer = session.run({"image_embeds": states})["image_features"]
        session.close()
        row = load_tolerances().component(
            gap="onnxruntime_vs_target",
            target=chip.target,
            precision=chip.precision,
            arithmetic=PRECISIONS[chip.precision].arithmetic,
            component="vision_projection",
        )
        found[chip.precision] = faults(compare("features", "one", right, answer), row)
print(json.dumps(found))
"""


class Checkout:
    """A copy of the project with one more file, and a pipeline that names the chip."""

    def __init__(self, folder: Path, pipeline: PrivatePipeline) -> None:
        self.folder = folder
        self.pipeline = pipeline
        for room in ROOMS:
            shutil.copytree(
                ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__")
            )
        (folder / ".venv-tpu").symlink_to(ROOT / ".venv-tpu")
        (folder / "models").symlink_to(ROOT / "models")
        targets = folder / "configs" / "targets"
        text = (targets / f"{LIKE}.yaml").read_text()
        text = text.replace(f"name: {LIKE}", f"name: {CHIP}")
        text = text.replace(f"folder: {LIKE.upper()}", f"folder: {CHIP.upper()}")
        # This chip has no float32 matrix products.
        (targets / f"{CHIP}.yaml").write_text(text.replace("[f32, f16", "[f16"))

    def python(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def checkout(exported_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    folder = tmp_path_factory.mktemp("checkout")
    # Integers are calibrated with the answers of the whole task.
    parts = TASK_COMPONENTS["itm"]
    pipeline = private_pipeline(exported_artifacts, folder / "artifacts", "itm", *parts)
    shutil.copytree(exported_artifacts / "itm" / "processor", pipeline.root / "itm" / "processor")
    pipeline.data["targets"] = {CHIP: {"precisions": ["f16", "int8"]}}
    pipeline.data["verify"] = {"tokens": {"onnx": {"scenes": 1}, CHIP: {"scenes": 1}}}
    pipeline.data["calibration"] = {"samples": 4, "measured_samples": 2}
    pipeline.write()
    return Checkout(folder, pipeline)


def test_it_is_judged_by_the_rows_of_its_arithmetic(checkout: Checkout) -> None:
    found = json.loads(checkout.python("-c", JUDGED, CHIP, LIKE))
    precisions = load_target(LIKE).precisions
    of_one = len(found[LIKE]) // len(precisions)
    assert precisions[0] == "f32"
    assert found[CHIP] == found[LIKE][of_one:]


def test_it_is_built_answers_within_its_bounds_and_is_described(checkout: Checkout) -> None:
    config = ["--config", str(checkout.pipeline.config), "--component", "vision_projection"]
    checkout.python("-m", "compile", *config)
    folder = str(checkout.pipeline.root / "itm")
    problems: dict[str, Any] = json.loads(checkout.python("-c", RUN, folder).splitlines()[-1])
    assert problems == {"f16": [], "int8": []}
    described = checkout.python("-m", "runtime", "info", folder, "--target", CHIP)
    layout = load_target(LIKE).model_dump()["memory_layout_mib"]
    assert f"fits the vendor's layout for BLIP: {layout['npu']} MiB" in described
    assert f"vision_projection main ({CHIP})" in described
