"""Make says what it does and does what it says: options are checked before anything is set up."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.goals.options import GOALS, KNOWN, OptionError, checked, from_make, overrides
from pipeline.goals.stages import STAGES, commands
from tests.board_environment import oldest_python

ROOT = Path(__file__).resolve().parent.parent
MAKE = shutil.which("make") or "make"
ECHO = """#!/bin/sh
for word in "$@"; do printf '<%s>' "$word"; done
echo
case "$*" in *"-m $FAILING"*) exit "$STATUS";; esac
"""


class Checkout:
    """What make needs of a checkout; its set-up and its stages only say that they ran."""

    def __init__(self, folder: Path, *, ready: bool = True) -> None:
        self.folder = folder
        for name in ("pipeline", "configs", "requirements"):
            unwanted = shutil.ignore_patterns("__pycache__", "tpu_tools", "scenes")
            shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
        (folder / "runtime").mkdir()
        for name in ("runtime/__init__.py", "runtime/errors.py", "Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, folder / name)
        (folder / "scripts").mkdir()
        setup = "print('set up'); import pathlib; pathlib.Path('was-set-up').touch()"
        for name in ("setup_environment", "setup_tpu"):
            (folder / "scripts" / f"{name}.py").write_text(setup)
        self.binaries = folder.parent / "binaries"
        self.binaries.mkdir()
        (self.binaries / "python3").symlink_to(oldest_python())
        if ready:
            for name in (".venv", ".venv-tpu"):
                (folder / name / "bin").mkdir(parents=True)
                (folder / name / "bin" / "python").write_text(ECHO)
                (folder / name / "bin" / "python").chmod(0o755)

    def make(
        self, *arguments: str, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if k not in KNOWN and "MAKE" not in k}
        path = f"{self.binaries}:{os.environ['PATH']}"
        variables = {**clean, "FAILING": "none", "STATUS": "0", "PATH": path, **environment}
        return subprocess.run(
            [MAKE, *arguments],
            cwd=cwd or self.folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def stages(self, *arguments: str, cwd: Path | None = None, **environment: str) -> list[str]:
        """Arguments of every stage that make calls, behind ``-m``."""
        result = self.make(*arguments, cwd=cwd, **environment)
        assert result.returncode == 0, result.stdout + result.stderr
        lines = [line for line in result.stdout.splitlines() if line.startswith("<-m><")]
        found = [line.removeprefix("<-m><").removesuffix(">") for line in lines]
        return [line for line in found if not line.startswith("scripts.setup")]

    def refusal(self, *arguments: str, **environment: str) -> str:
        """The one line that says what is wrong; nothing was set up, no stage ran."""
        result = self.make(*arguments, **environment)
        assert result.returncode == 2
        assert not (self.folder / "was-set-up").exists()
        assert "<-m>" not in result.stdout
        lines = [line for line in result.stderr.splitlines() if not line.startswith("make")]
        assert len(lines) == 1, result.stderr
        assert "Traceback" not in result.stderr
        return lines[0]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a checkout")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("ir",), "compile><--backend><openvino><--target><openvino"),
        (("ir", "TARGET=openvino_npu"), "compile><--backend><openvino><--target><openvino_npu"),
        (
            ("bmodel", "TARGET=bm1684x bm1688"),
            "compile><--backend><sophon><--target><bm1684x,bm1688",
        ),
        (("bmodel", "TARGET=BM1684X"), "compile><--backend><sophon><--target><bm1684x"),
        (("bmodel", "TARGET="), "compile><--backend><sophon"),
        (("compile", "DRY_RUN=0", "FORCE=0"), "compile"),
        (("compile", "FORCE=yes"), "compile><--force"),
        (("verify", "VERIFY=full"), "verify><--full"),
        (("verify", "VERIFY="), "verify"),
        (("evaluate", "DATASET=coco:a b;touch c"), "verify><evaluate><--dataset><coco:a b;touch c"),
        (("-j4", "compile", "TASK=itm"), "compile><--task><itm"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_make_does_what_it_says(
    checkout: Checkout, arguments: tuple[str, ...], expected: str
) -> None:
    assert checkout.stages(*arguments)[-1] == expected
    assert not (checkout.folder / "c").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("bmodel", "TARGETS=bm1684x"), "TARGETS=: no option; write TARGET="),
        (("bmodel", "target=bm1684x"), "target=: no option; write TARGET="),
        (("all", "force=1"), "force=: no option; write FORCE="),
        (("all", "BANANA=1"), "BANANA=: no option; there are: CONFIG, "),
        (("report", "TARGET=bm1688"), "TARGET=: make report takes CONFIG, FORCE, DRY_RUN; remove"),
        (("bmodel", "TARGET=bm9999"), "bm9999 is no target; choose from: bm1684, bm1684x, bm1688"),
        (("bmodel", "TARGET=openvino"), "openvino is no target that make bmodel builds"),
        (
            ("ir", "TARGET=bm1684x"),
            "bm1684x is no target that make ir builds; choose from: openvino",
        ),
        (("ir", "TASK=captoin"), "TASK=captoin: captoin is no task; write caption"),
        (("all", "PRECISION=f17"), "f17 is no precision; "),
        (
            ("bmodel", "TARGET=bm1684", "PRECISION=f16"),
            "bm1684 cannot be built in it; choose from: f32",
        ),
        (("verify", "VERIFY=ful"), "VERIFY=ful: its one value is full"),
        (("all", "DRY_RUN=maybe"), "DRY_RUN=maybe: write 1 or 0"),
        (("estimate", "TOKENS=-1"), "TOKENS=-1: write a whole number above 0"),
        (("all", "CONFIG=configs/mine.yaml"), "CONFIG=configs/mine.yaml: no such file"),
        (("all", "CONFIG=a b;c.yaml"), "CONFIG=a b;c.yaml: no such file"),
        (("ir", "verify", "TOKENS=3"), "TOKENS=: make ir verify takes "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_means_nothing_is_refused(arguments: tuple[str, ...], expected: str) -> None:
    goals = [one for one in arguments if "=" not in one]
    given = dict(one.split("=", 1) for one in arguments if "=" in one)
    written = " ".join(
        f"{name}={value.replace(' ', chr(92) + ' ')}" for name, value in given.items()
    )
    variables = {**given, "MAKECMDGOALS": " ".join(goals), "MAKEFLAGS": f" -- {written}"}
    with pytest.raises(OptionError, match=re.escape(expected)):
        checked(goals[0], from_make(goals[0], variables))


@pytest.mark.parametrize("option", ["TARGETS=bm1684x", "VERIFY=ful", "CONFIG=a b;c.yaml"])
def test_it_is_one_line_before_any_set_up(tmp_path: Path, option: str) -> None:
    checkout = Checkout(tmp_path / "a", ready=False)
    assert option.split("=")[0] in checkout.refusal("all", option)


def test_a_part_of_the_artifacts_is_not_all_of_them(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "a", ready=False)
    kept = checkout.folder / "models" / "artifacts" / "mine"
    kept.mkdir(parents=True)
    assert "TASK=: make clean takes no options" in checkout.refusal("clean", "TASK=itm")
    assert kept.is_dir()
    assert checkout.make("clean").returncode == 0
    assert not kept.exists()


def test_what_only_the_pipeline_file_can_tell_is_found_before_the_export() -> None:
    first, export, _ = commands("compile", {"PRECISION": "f16", "CONFIG": "configs/reference.yaml"})
    assert export[0] == "export"
    result = subprocess.run(
        [sys.executable, "-m", *first], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert (
        "--precision f16: bm1684 cannot be built in f16; choose one of: f32, int8" in result.stderr
    )


def test_options_of_the_environment_are_named(checkout: Checkout) -> None:
    result = checkout.make("bmodel", TARGET="bm1688", TASK="itm", TARGETS="x", ITEMS="many")
    assert result.returncode == 0
    assert "<--target><bm1688>" in result.stdout
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert notes == [
        f"note: {one} comes from the environment" for one in ("TASK=itm", "TARGET=bm1688")
    ]
    (checkout.folder / "was-set-up").unlink(missing_ok=True)
    line = checkout.refusal("bmodel", TARGET="x86_64")
    assert line.endswith("(it comes from the environment: unset TARGET)")
    assert checkout.stages("bmodel", "TARGET=bm1684x", TARGET="x86_64")[-1].endswith("<bm1684x")


def test_several_goals_share_their_options(checkout: Checkout) -> None:
    stages = checkout.stages("-j8", "ir", "verify", "TASK=itm", "VERIFY=full")
    assert [stage.split(">")[0] for stage in stages] == ["export", "compile", "verify"]
    assert stages[-1] == "verify><--task><itm><--full"


def test_a_dry_run_sets_nothing_up(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "a", ready=False)
    before = sorted(checkout.folder.rglob("*"))
    result = checkout.make("all", "DRY_RUN=1", "TASK=itm", "CONFIG=configs/reference.yaml")
    assert result.returncode == 0, result.stderr
    modules = [line.split()[2] for line in result.stdout.splitlines() if " -m " in line]
    assert modules == ["export", "compile", "verify", "verify"]
    assert "--dry-run" not in result.stdout
    written = set(checkout.folder.rglob("*")) - set(before)
    assert {path for path in written if "__pycache__" not in path.parts} == set()
    result = checkout.make("verify")
    assert result.returncode == 2


def test_make_works_from_elsewhere(checkout: Checkout, tmp_path: Path) -> None:
    other = tmp_path / "else where"
    (other / "export").mkdir(parents=True)
    (other / "mine.yaml").write_text("name: mine\n")
    for makefile in (str(checkout.folder / "Makefile"), "../a checkout/Makefile"):
        given = ("-f", makefile, "export", "verify", "CONFIG=mine.yaml", "VERIFY=full")
        stages = checkout.stages(*given, cwd=other)
        mine = str(other / "mine.yaml")
        assert stages == [f"export><--config><{mine}", f"verify><--config><{mine}><--full"]
    assert "make bmodel" in checkout.make("-f", makefile, cwd=other).stdout


@pytest.mark.parametrize("status", [1, 2])
@pytest.mark.parametrize("stage", ["export", "compile", "verify"])
def test_the_pipeline_command_has_the_stages_exit_code(
    checkout: Checkout, stage: str, status: int
) -> None:
    environment = {**os.environ, "FAILING": stage, "STATUS": str(status)}
    result = subprocess.run(
        [checkout.binaries / "python3", "-m", "pipeline", "all", "--task", "itm"],
        cwd=checkout.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == status, result.stderr
    stages = [line.split("><")[1].rstrip(">") for line in result.stdout.splitlines()]
    # The page shows a failed verification, too.
    reported = ["verify"] if (stage, status) == ("verify", 1) else []
    order = ["export", "compile", "verify"]
    assert stages == order[: order.index(stage) + 1] + reported
    assert checkout.make("all", FAILING=stage, STATUS=str(status)).returncode == 2


def test_a_request_to_end_reaches_the_stage(checkout: Checkout) -> None:
    stage = checkout.folder / ".venv" / "bin" / "python"
    stage.write_text(
        "#!/bin/sh\nsleep 100 >/dev/null &\n"
        "trap 'kill $!; echo ended; exit 143' TERM\necho begun\nwait\n"
    )
    process = subprocess.Popen(
        [checkout.binaries / "python3", "-m", "pipeline", "report"],
        cwd=checkout.folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.terminate()
    assert process.stdout.readline() == "ended\n"
    assert process.wait(timeout=60) == 143


def test_variables_on_the_command_line_are_told_from_others() -> None:
    assert overrides(r" -- target=lower CONFIG=q\\r\ $$HOME TARGET=a\ b;c") == [
        "target",
        "CONFIG",
        "TARGET",
    ]
    assert overrides("s -j3 --jobserver-auth=3,4") == []
    assert overrides("kw -- A:=1 B+=2") == ["A", "B"]


def test_every_goal_has_its_stages_and_its_place_in_the_makefile() -> None:
    text = (ROOT / "Makefile").read_text()
    for goal in STAGES:
        assert f"\n{goal}: " in text
        assert re.search(rf"\$\(PIPELINE\) {goal}\)?\n", text)
        taken = {name for _, names in STAGES[goal] for name in names}
        assert taken >= set(GOALS[goal]) - {"DRY_RUN", "FORCE"}, goal
