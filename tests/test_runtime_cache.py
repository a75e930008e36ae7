"""Compiled models and checked files are remembered, by this user only, and never wrongly."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime import Captioner
from runtime.errors import ArtifactError
from runtime.files import integrity
from runtime.files.integrity import FileRecord, check_files, file_sha256
from runtime.files.user_cache import cache_root, new_entry, private_folder, prune
from tests.runtime_support import IMAGES, ROOT, THREADS


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BLIP_EDGE_CACHE", str(folder))
    return folder


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file that is large enough to be remembered, and old enough."""
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(2 << 20))
    age(path)
    return path


def age(path: Path) -> None:
    """Waits until a file counts as settled."""
    while time.time() - path.stat().st_ctime <= 2.1:
        time.sleep(0.05)


def check(path: Path, sha256: str, *, remembered: bool = True) -> None:
    record = FileRecord(sha256, path.stat().st_size)
    check_files(
        path.parent / "manifest.json",
        path.parent,
        {path.name: record},
        digests=True,
        remembered=remembered,
    )


class Count:
    """How many files were read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = 0
        monkeypatch.setattr(integrity, "file_sha256", self._counted)

    def _counted(self, path: Path) -> str:
        self.read += 1
        return file_sha256(path)


# Checked files


def test_a_file_is_read_once(cache: Path, large: Path, monkeypatch: pytest.MonkeyPatch):
    count, digest = Count(monkeypatch), file_sha256(large)
    for _ in range(3):
        check(large, digest)
    assert count.read == 1
    check(large, digest, remembered=False)
    assert count.read == 2
    notes = cache / "verified"
    assert stat.S_IMODE(notes.stat().st_mode) == 0o700
    assert len(list(notes.iterdir())) == 1


@pytest.mark.usefixtures("cache")
def test_every_change_is_found(large: Path):
    digest = file_sha256(large)
    check(large, digest)
    before = large.stat()
    with large.open("r+b") as stream:
        stream.write(b"changed")
    # As somebody would who wants it to go unnoticed.
    os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        check(large, digest)


@pytest.mark.usefixtures("cache")
def test_a_replaced_file_is_found(large: Path, tmp_path: Path):
    digest = file_sha256(large)
    check(large, digest)
    other = tmp_path / "other.bin"
    other.write_bytes(os.urandom(2 << 20))
    shutil.copystat(large, other)
    other.replace(large)
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        check(large, digest)


@pytest.mark.usefixtures("cache")
def test_a_note_is_for_one_digest(large: Path):
    check(large, file_sha256(large))
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        check(large, "0" * 64)


@pytest.mark.usefixtures("cache")
def test_a_fresh_file_is_not_remembered(large: Path, monkeypatch: pytest.MonkeyPatch):
    large.write_bytes(os.urandom(2 << 20))
    count, digest = Count(monkeypatch), file_sha256(large)
    check(large, digest)
    check(large, digest)
    assert count.read == 2


def test_without_a_cache_files_are_read_every_time(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    count, digest = Count(monkeypatch), file_sha256(large)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    for value in ("", str(blocked)):
        monkeypatch.setenv("BLIP_EDGE_CACHE", value)
        check(large, digest)
        check(large, digest)
    assert count.read == 4


# The folder


def test_a_folder_open_to_others_is_closed_to_them(cache: Path):
    (cache / "verified").mkdir(parents=True)
    (cache / "verified").chmod(0o777)
    folder = private_folder("verified")
    assert folder is not None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_link_is_not_followed(cache: Path, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cache.mkdir()
    (cache / "verified").symlink_to(elsewhere)
    assert private_folder("verified") is None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_a_folder_of_somebody_else_is_not_used(cache: Path):
    (cache / "verified").mkdir(parents=True)
    os.chown(cache / "verified", 12345, 12345)
    assert private_folder("verified") is None


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("BLIP_EDGE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "blip-edge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "blip-edge"


def test_entries_appear_whole_or_not_at_all(tmp_path: Path):
    with new_entry(tmp_path, "entry") as part:
        part.write_text("whole")
        assert not (tmp_path / "entry").exists()
    assert (tmp_path / "entry").read_text() == "whole"
    with contextlib.suppress(ValueError), new_entry(tmp_path, "other") as part:
        part.write_text("half")
        raise ValueError
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_the_longest_unused_entries_go_first(tmp_path: Path):
    for index in range(4):
        path = tmp_path / str(index)
        path.write_bytes(b"x" * 100)
        os.utime(path, (1000 + index, 1000 + index))
    prune(tmp_path, most_bytes=250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    prune(tmp_path, most_entries=1)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


# Compiled models


def caption(artifacts: Path, cache: Path) -> tuple[int, ...]:
    with Captioner.from_artifacts(artifacts, threads=THREADS, cache_folder=cache) as captioner:
        return captioner(IMAGES[0]).token_ids


def test_a_second_start_imports_what_the_first_compiled(openvino_artifacts: Path, cache: Path):
    expected = caption(openvino_artifacts, cache)
    entries = {path: path.stat().st_ino for path in (cache / "openvino").iterdir()}
    assert entries
    assert caption(openvino_artifacts, cache) == expected
    assert {path: path.stat().st_ino for path in (cache / "openvino").iterdir()} == entries


def test_answers_do_not_depend_on_the_cache(openvino_artifacts: Path, cache: Path):
    found = []
    for folder in (False, cache, cache):
        options = {"threads": THREADS, "cache_folder": folder}
        with Captioner.from_artifacts(openvino_artifacts, **options) as captioner:
            found.append(captioner.batch(IMAGES, num_beams=2))
    assert found[0] == found[1] == found[2]


def test_a_damaged_entry_is_made_anew(openvino_artifacts: Path, cache: Path):
    expected = caption(openvino_artifacts, cache)
    for path in (cache / "openvino").iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    sizes = [path.stat().st_size for path in (cache / "openvino").iterdir()]
    assert caption(openvino_artifacts, cache) == expected
    assert sum(path.stat().st_size for path in (cache / "openvino").iterdir()) > sum(sizes)


def test_modes_and_artifacts_have_entries_of_their_own(
    openvino_artifacts: Path, cache: Path, tmp_path: Path
):
    caption(openvino_artifacts, cache)
    count = len(list((cache / "openvino").iterdir()))
    moved = tmp_path / "moved"
    shutil.copytree(
        openvino_artifacts / "caption", moved, ignore=shutil.ignore_patterns("onnx", "BM*")
    )
    caption(moved, cache)
    assert len(list((cache / "openvino").iterdir())) == count, "named by content, not by place"
    with Captioner.from_artifacts(
        openvino_artifacts, mode="fast", threads=THREADS, cache_folder=cache
    ) as captioner:
        captioner(IMAGES[0])
    assert len(list((cache / "openvino").iterdir())) == count + 2


def test_read_only_artifacts(openvino_artifacts: Path, cache: Path, tmp_path: Path):
    folder = tmp_path / "artifacts"
    shutil.copytree(
        openvino_artifacts / "caption", folder, ignore=shutil.ignore_patterns("onnx", "BM*")
    )
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    assert caption(folder, cache) == caption(folder, cache)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_processes_that_start_together(openvino_artifacts: Path, cache: Path, tmp_path: Path):
    image = tmp_path / "scene.png"
    IMAGES[0].save(image)
    command = [sys.executable, "-m", "runtime", "caption", str(image), "--json", "--threads", "1"]
    command += ["--artifacts", str(openvino_artifacts)]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    results = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], results
    assert len({output for output, _ in results}) == 1
    entries = list((cache / "openvino").iterdir())
    assert entries
    assert {path.suffix for path in entries} == {".blob"}


def test_the_command_line_without_a_cache(openvino_artifacts: Path, cache: Path, tmp_path: Path):
    image = tmp_path / "scene.png"
    IMAGES[0].save(image)
    command = [sys.executable, "-m", "runtime", "caption", str(image), "--no-cache"]
    subprocess.run(
        [*command, "--artifacts", str(openvino_artifacts), "--rehash"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    assert not (cache / "openvino").exists()


def test_a_mapped_entry_is_never_written_to(openvino_artifacts: Path, cache: Path):
    """Pages of it are let go and read again: what OpenVINO wrote there would be lost."""
    caption(openvino_artifacts, cache)
    options = {"threads": THREADS, "cache_folder": cache}
    with Captioner.from_artifacts(openvino_artifacts, **options) as captioner:
        first = captioner.batch(IMAGES)
        changed_kib, seen = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if line[:1].isdigit() or line[:1] in "abcdef":
                mapped = str(cache) in line
                seen = seen or mapped
            elif mapped and line.startswith("Anonymous:"):
                changed_kib += int(line.split()[1])
        assert seen
        assert changed_kib == 0
        assert captioner.batch(IMAGES) == first


def test_a_float32_decoder_is_compiled_at_every_start(openvino_artifacts: Path, cache: Path):
    """Imported, it would read float32 weights, twice as many bytes per token (docs/openvino.md)."""
    kept = []
    for mode in ("exact", "fast"):
        root = cache / mode
        with Captioner.from_artifacts(
            openvino_artifacts, mode=mode, threads=THREADS, cache_folder=root
        ) as captioner:
            captioner(IMAGES[0])
        sizes = [path.stat().st_size for path in (root / "openvino").iterdir()]
        weights = {
            name: (captioner.session(name).manifest.folder / f"{name}.bin").stat().st_size
            for name in ("vision_encoder", "text_decoder")
        }
        kept.append([name for name in weights if any(size >= weights[name] for size in sizes)])
        assert len(sizes) == (1 if mode == "exact" else 2)
    assert kept[1] == ["vision_encoder", "text_decoder"]
    assert "vision_encoder" in kept[0]


@pytest.mark.parametrize("kept", [False, True], ids=["compiled", "imported"])
def test_weights_are_in_memory_once(openvino_artifacts: Path, cache: Path, kept: bool):
    """What a processor repacked is not read again: its file must not count as memory as well."""
    if kept:
        caption(openvino_artifacts, cache)
    options = {"threads": THREADS, "cache_folder": cache if kept else False}
    with Captioner.from_artifacts(openvino_artifacts, **options) as captioner:
        captioner.batch(IMAGES)
        captioner.batch(IMAGES)
        folder = str(cache if kept else openvino_artifacts)
        mapped_kib, resident_kib, here = 0, 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if line[:1].isdigit() or line[:1] in "abcdef":
                here = folder in line
            elif here and line.startswith("Size:"):
                mapped_kib += int(line.split()[1])
            elif here and line.startswith("Rss:"):
                resident_kib += int(line.split()[1])
    assert mapped_kib > 1024
    assert resident_kib < mapped_kib / 4
