"""A bundle on another machine: an empty environment, no network, two commands, one answer."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.pipeline import Options, make_bundles
from configs.errors import ToolError
from pipeline.command import select
from runtime.bundles.archive import unpack
from runtime.bundles.check import check_folder
from runtime.bundles.smoke_test import main as smoke_test
from runtime.cli.options import build_parser, targets
from tests.board_environment import oldest_python
from tests.bundle_support import ROOT, edit

#: A namespace without any network, where the kernel lets users make one.
NO_NETWORK = ["unshare", "--user", "--map-root-user", "--net"]
#: And addresses that nobody answers, where it does not.
NOWHERE = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https", "all")}


def alone(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command that has no network, and nothing of the checkout."""
    try:
        shut = subprocess.run([*NO_NETWORK, "true"], capture_output=True, check=False).returncode
    except FileNotFoundError:
        shut = 1
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL", "PIP"))}
    return subprocess.run(
        [*(NO_NETWORK if shut == 0 else []), *map(str, command)],
        cwd=cwd,
        env={**kept, **NOWHERE, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("target", ["openvino", "bm1684x"])
def test_two_commands_in_an_empty_environment(
    verified_pipeline: Path, tmp_path: Path, target: str
) -> None:
    python = Path(sys.executable) if target == "openvino" else oldest_python()
    if target != "openvino" and python == Path(sys.executable):
        pytest.skip("no Python 3.8 here; install it or set BLIP_EDGE_BOARD_PYTHON")
    version = "38" if target != "openvino" else "".join(map(str, sys.version_info[:2]))
    wheels = f"cp{version}-{platform.machine()}"
    selection = select(verified_pipeline, target=target)
    try:
        (archive,) = make_bundles(selection, Options(wheels=wheels, folder=tmp_path))
    except ToolError as error:
        pytest.skip(f"a package index is needed to enclose wheels: {error}")
    name = archive.name.removesuffix(".tar.gz")
    simulator = str(ROOT / ".venv-tpu" / "bin" / "python")

    assert alone("tar", "-xf", archive, cwd=tmp_path).returncode == 0
    run = alone(
        *("sh", f"{name}/run.sh"),
        cwd=tmp_path,
        PYTHON=str(python),
        BLIP_EDGE_TPU_PYTHON=simulator,
    )

    assert run.returncode == 0, run.stderr
    folder = tmp_path / name
    expected = check_folder(folder).sample.expected  # nothing was written into it, either
    assert expected
    assert run.stdout.splitlines() == [
        f"sample/scene_0.png: {expected}",
        "as recorded when the artifact was verified",
    ]
    if target == "openvino":
        command = [f"{folder}.venv/bin/blip-edge", "caption", "sample/scene_0.png", "--json"]
        found = alone(*command, cwd=folder)
        assert json.loads(found.stdout)["text"] == expected


def test_without_wheels_a_missing_package_is_named(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    folder = unpack(bundles["openvino"], tmp_path)
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    run = alone("sh", folder / "run.sh", cwd=tmp_path, PYTHON=f"{bare}/bin/python", VENV="none")
    assert run.returncode == 2
    assert "install numpy, Pillow, tokenizers, openvino" in run.stderr
    assert "Traceback" not in run.stderr.splitlines()[-1]


def test_the_smoke_test_tells_another_answer(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = unpack(bundles["openvino"], tmp_path)
    assert smoke_test([str(folder)]) == 0
    edit(folder / "bundle.json", lambda data: data["sample"].update(expected="a cat"))
    assert smoke_test([str(folder)]) == 1
    assert "verified as a cat" in capsys.readouterr().err
    edit(folder / "bundle.json", lambda data: data["sample"].update(image="../secret.png"))
    assert smoke_test([str(folder)]) == 1
    assert "leaves the artifact's folder" in capsys.readouterr().err


def test_a_folder_names_its_one_target(bundles: dict[str, Path], tmp_path: Path) -> None:
    folder = unpack(bundles["bm1684x"], tmp_path)
    options = build_parser("0").parse_args(["caption", "x.png", "--artifacts", str(folder)])
    assert targets(options) == ["bm1684x"]
