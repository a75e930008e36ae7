"""Setting up .venv: pip is tried again, and what it says last is what the user reads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts import setup_environment, setup_tpu


@pytest.fixture
def pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(setup_environment, "LOG", tmp_path / "setup.log")
    monkeypatch.setattr(setup_tpu, "LOG", tmp_path / "setup_tpu.log")
    monkeypatch.setattr(setup_environment, "PAUSES_S", (1, 2))
    sleep = setup_environment.time.sleep
    monkeypatch.setattr("time.sleep", lambda s: slept.append(s) if s >= 1 else sleep(s))
    return slept


def failing(tmp_path: Path, times: int) -> list[str]:
    """A command that fails so many times and then succeeds."""
    counter = tmp_path / "counter"
    code = (
        f"import sys; from pathlib import Path; p = Path({str(counter)!r})\n"
        "n = int(p.read_text()) if p.exists() else 0; p.write_text(str(n + 1))\n"
        f"print('Collecting x'); print(f'ERROR: no index, attempt {{n}}'); sys.exit(n < {times})"
    )
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("times", "why"), [(0, None), (2, None), (3, "ERROR: no index, attempt 2")]
)
def test_an_index_that_is_away_for_a_moment(
    tmp_path: Path, pauses: list[float], times: int, why: str | None
) -> None:
    assert setup_environment.install(failing(tmp_path, times), "installing") == why
    assert pauses == [1, 2][: min(times, 2)]


def test_the_tools_environment_waits_as_well(tmp_path: Path, pauses: list[float]) -> None:
    setup_tpu._install(failing(tmp_path, 1), 3)
    assert pauses == [1]
    with pytest.raises(setup_tpu.ToolError, match="ERROR: no index, attempt 4"):
        setup_tpu._install(failing(tmp_path, 9), 3)


def test_the_reason_is_pips_own_line() -> None:
    assert setup_environment.reason("Collecting x\nERROR: No matching x\nhint: y\n") == (
        "ERROR: No matching x"
    )
    assert setup_environment.reason("") == "no output"
