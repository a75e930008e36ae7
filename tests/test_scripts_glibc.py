"""The glibc mend: when the bundled C runtime moves aside, and that it does so once."""

from pathlib import Path

import pytest

from configs.errors import ToolError
from scripts.glibc_mend import (
    ASIDE_FOLDER,
    BUNDLED_FOLDER,
    BUNDLED_RUNTIME,
    host_glibc,
    inspect,
    library_glibc,
    mend,
)

OTHER_LIBRARY = "libopenblas.so.0"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package folder whose bundled libc says 2.35, in the words of the real one."""
    folder = tmp_path / BUNDLED_FOLDER
    folder.mkdir(parents=True)
    for name in (*BUNDLED_RUNTIME, OTHER_LIBRARY):
        (folder / name).write_bytes(b"\x7fELF" + name.encode())
    banner = b"\0GNU C Library (Ubuntu GLIBC 2.35-0ubuntu3.9) stable release version 2.35.\n\0"
    (folder / "libc.so.6").write_bytes(b"\x7fELF" + bytes(100) + banner)
    return tmp_path


def bundled(package: Path) -> set[str]:
    return {path.name for path in (package / BUNDLED_FOLDER).iterdir()}


@pytest.mark.parametrize(
    ("host", "moves"),
    [((2, 17), False), ((2, 35), False), ((2, 36), True), ((2, 100), True), ((3, 0), True)],
)
def test_only_a_newer_host_moves_them(package: Path, host: tuple[int, int], moves: bool) -> None:
    state = mend(package, host)
    assert state.state == ("mended" if moves else "not needed")
    assert set(state.moved) == (set(BUNDLED_RUNTIME) if moves else set())
    assert bundled(package) == {OTHER_LIBRARY} | (set() if moves else set(BUNDLED_RUNTIME))


def test_versions_compare_as_numbers(package: Path) -> None:
    assert inspect(package, (2, 4)).state == "not needed"
    assert inspect(package, (2, 36)).state == "unmended"


def test_a_second_mend_does_nothing(package: Path) -> None:
    mend(package, (2, 36))
    again = mend(package, (2, 36))
    assert (again.state, again.moved, again.bundled) == ("mended", (), (2, 35))
    assert str(again) == "mended (host glibc 2.36, bundled 2.35)"


def test_an_interrupted_mend_is_completed(package: Path) -> None:
    aside = package / ASIDE_FOLDER
    aside.mkdir()
    for name in ("liblzma.so.5", "libz.so.1"):
        (package / BUNDLED_FOLDER / name).rename(aside / name)
    assert inspect(package, (2, 36)).state == "unmended"
    assert set(mend(package, (2, 36)).moved) == set(BUNDLED_RUNTIME) - {"liblzma.so.5", "libz.so.1"}
    assert bundled(package) == {OTHER_LIBRARY}


def test_a_libc_without_a_version_is_an_error(package: Path) -> None:
    (package / BUNDLED_FOLDER / "libc.so.6").write_bytes(b"damaged")
    with pytest.raises(ToolError, match="no glibc version inside"):
        mend(package, (2, 36))


def test_this_machines_own_libc() -> None:
    libc = next(
        Path(line.split()[-1])
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("libc.so.6")
    )
    assert library_glibc(libc) == host_glibc()
