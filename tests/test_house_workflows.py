"""Workflows: sound by their schemas and a security linter, and their commands run here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.__main__ import main, matrix
from tests.test_verify_merging import CAPTION, DAY_1, verdict
from tests.workflow_runner import Runner
from verify.verdict import sealed

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ARTIFACTS = ROOT / ".github" / "workflows" / "artifacts.yml"
BINARIES = Path(sys.executable).parent


def consumer() -> tuple[str, dict[str, Any]]:
    """The workflow that docs/ci.md shows."""
    text = (ROOT / "docs" / "ci.md").read_text()
    shown = text[text.index("```yaml\n") + 8 :]
    shown = shown[: shown.index("```")]
    return shown, yaml.safe_load(shown)


def tool(*arguments: str | Path) -> None:
    result = subprocess.run(
        [BINARIES / arguments[0], *arguments[1:]], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_workflows_fit_their_schemas(tmp_path: Path) -> None:
    example = tmp_path / "consumer.yml"
    example.write_text(consumer()[0])
    schema = ("check-jsonschema", "--builtin-schema")
    tool(*schema, "vendor.github-workflows", *WORKFLOWS, example)
    gitlab = (ROOT / ".gitlab-ci.yml", ROOT / ".gitlab" / "artifacts.yml")
    tool(*schema, "vendor.gitlab-ci", "--data-transform", "gitlab-ci", *gitlab)


def test_workflows_are_secure_by_the_linter() -> None:
    tool("zizmor", "--offline", "--quiet", "--no-progress", ROOT / ".github")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_jobs_have_the_least_rights(path: Path) -> None:
    text = path.read_text()
    for line in re.findall(r"uses: (.*)", text):
        pinned = re.fullmatch(r"actions/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)
        assert pinned or line.startswith("./.github/workflows/"), line
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert "contents" in job["permissions"]
        assert "timeout-minutes" in job or "uses" in job


def test_the_matrix_is_what_the_pipeline_file_builds(capsys: pytest.CaptureFixture[str]) -> None:
    config = ROOT / "configs" / "reference.yaml"
    entries = matrix(config)
    assert len(entries) == 3 * 5
    assert len({entry["name"] for entry in entries}) == len(entries)
    narrow = ("--config", str(config), "--target", "openvino bm1688", "--task", "itm")
    assert main(["matrix", "--json", *narrow]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = [(e["target"], e["precision"], e["backend"]) for e in json.loads(line)["include"]]
    chip = ("bm1688", "f16", "sophon")
    assert found == [("openvino", "f16", "openvino"), ("openvino", "int8", "openvino"), chip]
    assert main(["matrix", "--gitlab", *narrow]) == 0
    child = yaml.safe_load(capsys.readouterr().out)
    assert [one["TARGET"] for one in child["build"]["parallel"]["matrix"]] == [
        one[0] for one in found
    ]
    assert main(["matrix", "--config", str(config), "--target", "bm9000"]) == 2
    assert "has no bm9000; choose from: bm1684, " in capsys.readouterr().err


def clone(folder: Path) -> Path:
    """What is committed and what is about to be, without artifacts and environments."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file() and not name.startswith(("models/", "tests/", "docs/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


#: Stands for .venv/bin/python: heavy stages leave what they would leave, the rest runs.
PYTHON = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$2 $3" in
"pipeline all") mkdir -p out/junit dist "$FOLDER/$TASK/onnx"
    cp "$VERDICT" "$FOLDER/verify.json"; cp "$VERDICT" "$FOLDER/$TASK/manifest.json"
    echo '{}' > "$FOLDER/$TASK/onnx/x.manifest.json"; echo '<x/>' > "out/junit/$NAME.xml";;
"pipeline bundle") echo bundle > "dist/$NAME.tar.gz";;
"verify report") echo page > "$FOLDER/report.html";;
*) exec "$REAL_PYTHON" "$@";;
esac
"""


def prepared(tmp_path: Path, config: str) -> Runner:
    """A runner in a clone, for the consumer's workflow with their own pipeline file."""
    folder = clone(tmp_path / "clone")
    _, example = consumer()
    given = example["jobs"]["artifacts"]["with"]
    declared = yaml.safe_load(ARTIFACTS.read_text())[True]["workflow_call"]["inputs"]
    assert given.keys() <= declared.keys()
    inputs = {**{name: one["default"] for name, one in declared.items()}, **given}
    (folder / "caller" / "configs").mkdir(parents=True)
    (folder / "caller" / inputs["config"]).write_text(config)
    # Set-up is tested elsewhere, and what reads a pipeline file is installed here.
    binaries = tmp_path / "binaries"
    binaries.mkdir()
    for name, text in (
        ("make", "#!/bin/sh\nexit 0\n"),
        ("python", f'#!/bin/sh\n[ "$2" = pip ] || exec {sys.executable} "$@"\n'),
    ):
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    store = tmp_path / "store"
    store.mkdir()
    runner = Runner(folder, store, inputs)
    runner.environment = {"PATH": f"{binaries}:{os.environ['PATH']}"}
    return runner


def test_a_consumer_needs_at_most_fifteen_lines_and_its_commands_run(tmp_path: Path) -> None:
    shown, _ = consumer()
    assert len(shown.splitlines()) <= 15
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    data |= {"name": "mine", "tasks": {"caption": data["tasks"]["caption"]}}
    runner = prepared(tmp_path, yaml.safe_dump(data))
    (runner.folder / ".venv" / "bin").mkdir(parents=True)
    python = runner.folder / ".venv" / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / "verdict.json").write_text(sealed(verdict(DAY_1, *CAPTION)))
    runner.environment |= {
        "CALLS": str(tmp_path / "calls"),
        "VERDICT": str(tmp_path / "verdict.json"),
        "REAL_PYTHON": sys.executable,
        "PYTHONPATH": str(runner.folder),
    }
    assert runner.run(ARTIFACTS), runner.ran
    sets = ("openvino-f16", "openvino-int8", "bm1684x-f16")
    names = [f"mine-caption-{one}" for one in sets]
    stored = {path.name for path in runner.store.iterdir()}
    assert stored == {f"{kind}-{name}" for kind in ("bundle", "verdict") for name in names} | {
        "report"
    }
    report = runner.store / "report"
    assert {path.name for path in report.iterdir()} >= {"report.html", "verify.json", "junit"}
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sum("pipeline all --config caller/configs/mine.yaml --task" in c for c in calls) == 3
    saved = [given["key"] for name, given in runner.used if name == "actions/cache/save"]
    assert len({key.rpartition("-")[2] for key in saved}) == 1
    assert all(re.fullmatch(r"artifacts-mine-\w+-\w+-\w+-[0-9a-f]{16}", key) for key in saved)
    subjects = [given for name, given in runner.used if name == "actions/attest"]
    assert subjects == [{"subject-path": "dist/*.tar.gz"}] * 3


@pytest.mark.slow
def test_the_consumers_workflow_builds_and_verifies_for_real(tmp_path: Path) -> None:
    """One job, from a checkpoint to a bundle and a report, in a clean clone."""
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    data |= {"name": "mine", "tasks": {"itm": data["tasks"]["itm"]}}
    data["targets"] = {"openvino": {"precisions": ["f16"]}}
    data["verify"] |= {"component_scenes": 1, "gates": {"itm": data["verify"]["gates"]["itm"]}}
    data["verify"]["tokens"] = {"onnx": {"scenes": 4}, "openvino": {"scenes": 4}}
    runner = prepared(tmp_path, yaml.safe_dump(data))
    runner.inputs["targets"] = "openvino"
    (runner.folder / ".venv").symlink_to(ROOT / ".venv")
    shutil.copytree(ROOT / "models" / "checkpoints", runner.folder / "models" / "checkpoints")
    assert runner.run(ARTIFACTS), runner.ran
    whole = json.loads((runner.store / "report" / "verify.json").read_text())
    assert whole["passed"] is True
    assert "### mine: verified" in runner.summary
    assert (runner.store / "report" / "report.html").stat().st_size > 10_000
    assert list((runner.store / "bundle-mine-itm-openvino-f16").glob("*.tar.gz"))
