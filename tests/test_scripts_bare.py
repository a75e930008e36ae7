"""README's commands in a bare Debian, with nothing but what README names."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: README: Python 3.11 and make; Debian has venv apart. git is how one gets a checkout.
PACKAGES = "python3.11,python3.11-venv,make,git,ca-certificates"
TIMEOUT_S = 5400

pytestmark = [
    pytest.mark.bare,
    pytest.mark.timeout(TIMEOUT_S),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root; run: sudo python -m pytest -m bare"),
    pytest.mark.skipif(
        shutil.which("mmdebstrap") is None,
        reason="needs mmdebstrap; run: apt-get install mmdebstrap",
    ),
]


def host_files() -> Iterator[Path]:
    """What a network needs here: name servers, certificates, and where pip finds packages."""
    yield from (Path("/etc/resolv.conf"), Path("/etc/hosts"))
    named = (value for name, value in os.environ.items() if name.startswith("PIP_"))
    candidates = [*named, "/etc/pip.conf", "/etc/xdg/pip", "/etc/ssl/certs/ca-certificates.crt"]
    yield from (path for name in candidates if (path := Path(name)).is_absolute() and path.exists())


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian of its own with a checkout in ``/checkout``."""
    root = tmp_path_factory.mktemp("bare") / "root"
    options = ["--variant=minbase", f"--include={PACKAGES}", "--mode=root"]
    subprocess.run(["/usr/bin/env", "mmdebstrap", *options, "bookworm", root], check=True)
    for path in host_files():
        place = root / path.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, place, dirs_exist_ok=True)
        else:
            shutil.copy(path, place)
    checkout = root / "checkout"
    subprocess.run(["/usr/bin/env", "git", "clone", "-q", ROOT, checkout], check=True)
    return root


def inside(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in ``/checkout`` with the environment of a login, and pip's settings."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    return subprocess.run(
        ["/usr/sbin/chroot", root, "/usr/bin/env", "-C", "/checkout", *command],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", **kept},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_openvino_alone_needs_one_python(debian: Path) -> None:
    done = inside(debian, "make", "all", "TARGET=openvino", "TASK=itm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (debian / "checkout" / ".venv-tpu").exists()
    # The second run sets nothing up and builds nothing.
    again = inside(debian, "make", "ir", "TASK=itm")
    assert again.returncode == 0, again.stderr
    assert "installing" not in again.stderr


def test_a_missing_python_for_chips_is_one_line(debian: Path) -> None:
    done = inside(debian, "make", "setup-tpu")
    fetched = list((debian / "checkout" / ".cache" / "python").glob("cpython-3.10*"))
    if fetched:
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        assert "uv python install 3.10" in done.stderr
        assert "Traceback" not in done.stderr
