"""Folders, patterns and tables of images: order, bad images, bounded memory, interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from runtime import Captioner, Matcher
from runtime.__main__ import main
from runtime.cli.inputs import image_paths, work_items
from runtime.decoding.batching import StoppedError, StopSignal
from runtime.errors import BackendError, InputError
from runtime.preprocessing.images import PreparedImage
from runtime.tasks.streaming import Stream
from tests.runtime_support import IMAGES, ROOT, THREADS


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures in a folder and two in a folder inside it, and what is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    for index, image in enumerate(IMAGES):
        image.save(folder / f"{index}.png")
    (folder / "inside").mkdir()
    for index in range(2):
        IMAGES[index].save(folder / "inside" / f"{index}.jpg")
    (folder / "notes.txt").write_text("none")
    (folder / "._0.png").write_bytes(b"another program's")
    return folder


@pytest.fixture
def backend(exported_artifacts: Path) -> list[str]:
    return ["--artifacts", str(exported_artifacts), "--target", "onnx", "--threads", "1"]


def records(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


# Names


def test_folders_patterns_and_files(photos: Path):
    assert [path.name for path in image_paths([str(photos)])] == [f"{i}.png" for i in range(8)]
    assert len(image_paths([str(photos)], recursive=True)) == 10
    assert [p.name for p in image_paths([str(photos / "[12].*")])] == ["1.png", "2.png"]
    assert len(image_paths([str(photos / "**" / "*.jpg")])) == 2
    assert image_paths(["missing.png"]) == [Path("missing.png")]


def test_a_name_with_brackets_is_a_file_if_there_is_one(tmp_path: Path):
    path = tmp_path / "a[1].png"
    IMAGES[0].save(path)
    assert image_paths([str(path)]) == [path]


@pytest.mark.parametrize("name", ["inside-none", "*.webp"])
def test_nothing_there(tmp_path: Path, name: str):
    (tmp_path / "inside-none").mkdir()
    with pytest.raises(InputError, match="no images there"):
        image_paths([str(tmp_path / name)])


def test_a_table_groups_rows_of_one_image(tmp_path: Path):
    table = tmp_path / "asked.csv"
    table.write_text(
        '\ufeffImage, QUESTION\na.png,"how many, all in all?"\na.png,what?\nb.png,why?\n'
    )
    items = work_items([], table, "question")
    assert [item.image.name for item in items] == ["a.png", "b.png"]
    assert items[0].texts == ("how many, all in all?", "what?")
    assert work_items([str(tmp_path)], table, "question") == items


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,text\na.png,x\n", "line 1: no column 'question'"),
        ("image,question\na.png\n", "line 2: 1 fields, the first line has 2"),
        (
            "image,question\na.png,x\nb.png,red, or blue?\n",
            "line 3: 3 fields, the first line has 2; put quotes",
        ),
        ('image,question\na.png,"x\nb.png,y\n', "line 3: unexpected end of data; check its quotes"),
        ("image,question\n", "is empty; write lines below"),
        ("", "is empty; give it columns image,question"),
        ("image;question\na.png;x\n", "line 1: fields are separated by semicolons; save it with"),
    ],
)
def test_bad_tables(tmp_path: Path, content: str, message: str):
    table = tmp_path / "asked.csv"
    table.write_text(content)
    with pytest.raises(InputError, match=message):
        work_items([], table, "question")


# The stream


def test_results_come_in_order_whatever_takes_long():
    def load(item: int) -> int:
        time.sleep(0.001 * (item % 5))
        if item % 7 == 3:
            raise InputError(f"{item} is bad")
        return item

    def work(batch: list[tuple[int, int]]) -> list[int]:
        time.sleep(0.002 * (batch[0][0] % 3))
        return [10 * value for _, value in batch]

    for workers in (1, 3):
        stream: Stream[int, int, int] = Stream(load, work, batch=4, workers=workers, loaders=3)
        found = list(stream(range(40)))
        assert [item for item, _ in found] == list(range(40))
        for item, outcome in found:
            if item % 7 == 3:
                assert str(outcome) == f"{item} is bad"
            else:
                assert outcome == 10 * item


def test_what_is_ahead_is_bounded():
    loaded = 0

    def load(item: int) -> int:
        nonlocal loaded
        loaded += 1
        return item

    stream: Stream[int, int, int] = Stream(
        load, lambda group: [value for _, value in group], batch=4, workers=1, loaders=2
    )
    for done, _ in enumerate(stream(range(1000)), start=1):
        # Two batches with the workers, one and the loaders' items before them.
        assert loaded - done <= 3 * 4 + 2


def test_loading_goes_on_while_a_batch_is_worked_on():
    seen_during_work = []
    started = threading.Event()

    def load(item: int) -> int:
        if item >= 4:
            started.set()
        return item

    def work(group: list[tuple[int, int]]) -> list[int]:
        if group[0][0] == 0:
            seen_during_work.append(started.wait(10))
        return [0] * len(group)

    stream: Stream[int, int, int] = Stream(load, work, batch=4, loaders=1)
    assert len(list(stream(range(12)))) == 12
    assert seen_during_work == [True]


def test_a_failure_of_the_work_ends_the_stream_after_what_was_done():
    def work(group: list[tuple[int, int]]) -> list[int]:
        if group[0][0] >= 4:
            raise BackendError("the device is gone")
        return [0] * len(group)

    stream: Stream[int, int, int] = Stream(lambda item: item, work, batch=2)
    before = threading.active_count()
    done = []
    with pytest.raises(BackendError, match="gone"):
        done.extend(item for item, _ in stream(range(10)))
    # Loaders may still be ending; none is added for the items that never came.
    assert threading.active_count() < before + 10


def test_leaving_early_stops_the_workers():
    stop = StopSignal()
    started, stopped = threading.Event(), threading.Event()

    def work(group: list[tuple[int, int]]) -> list[int]:
        if group[0][0] == 0:
            return [0]
        started.set()
        try:
            while True:
                stop.check()
                time.sleep(0.001)
        except StoppedError:
            stopped.set()
            raise

    stream: Stream[int, int, int] = Stream(lambda item: item, work, batch=1, stop=stop)
    results = stream(range(100))
    next(results)
    assert started.wait(10)
    results.close()
    assert stopped.wait(10)


def test_only_bad_items_are_reported_before_the_end():
    loaded = []

    def load(item: int) -> int:
        loaded.append(item)
        raise InputError("bad")

    stream: Stream[int, int, int] = Stream(load, lambda group: [0] * len(group), batch=4)
    next(stream(range(1000)))
    assert len(loaded) < 100


# The commands


def test_batches_give_the_answers_of_single_images(
    photos: Path, backend: list[str], capsys: pytest.CaptureFixture[str]
):
    found = {}
    for batch in ("1", "3", "16"):
        assert main(["caption", str(photos), *backend, "--json", "--batch", batch]) == 0
        found[batch] = records(capsys.readouterr().out)
    assert len(found["1"]) == 8
    assert found["1"] == found["3"] == found["16"]


def test_a_folder_with_broken_images(
    photos: Path, backend: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for index in range(6):
        if index % 2:
            (tmp_path / f"{index}.png").write_bytes((photos / "0.png").read_bytes()[:90])
        else:
            IMAGES[index].save(tmp_path / f"{index}.png")
    assert main(["caption", str(tmp_path), *backend, "--json", "--batch", "2"]) == 2
    found = records(capsys.readouterr().out)
    assert [Path(str(record["image"])).name for record in found] == [f"{i}.png" for i in range(6)]
    assert ["error" in record for record in found] == [False, True] * 3
    assert main(["caption", str(tmp_path), *backend]) == 2
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 3
    assert [row.split()[0] for row in output.out.splitlines()[2:]] == ["0.png", "2.png", "4.png"]


def test_the_same_name_in_two_folders_is_told_apart(
    photos: Path, backend: list[str], capsys: pytest.CaptureFixture[str]
):
    names = [str(photos / "0.png"), str(photos / "inside")]
    IMAGES[0].save(photos / "inside" / "0.png")
    try:
        assert main(["caption", *names, *backend]) == 0
    finally:
        (photos / "inside" / "0.png").unlink()
    assert str(Path("inside") / "0.png") in capsys.readouterr().out


def test_questions_from_a_table(
    photos: Path, backend: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    table = tmp_path / "asked.csv"
    table.write_text("image,question\n1.png,how many shapes?\n1.png,what is above?\n0.png,what?\n")
    command = ["vqa", str(photos), "--csv", str(table), *backend, "--json"]
    assert main(command) == 0
    found = records(capsys.readouterr().out)
    asked = [(Path(str(r["image"])).name, r["question"]) for r in found]
    assert asked == [
        ("1.png", "how many shapes?"),
        ("1.png", "what is above?"),
        ("0.png", "what?"),
    ]


def test_pairs_from_a_table(
    photos: Path,
    exported_artifacts: Path,
    backend: list[str],
    capsys: pytest.CaptureFixture[str],
):
    table = photos / "pairs.csv"
    table.write_text("image,text\n0.png,two blue rings\nnone.png,a star\n2.png,a red circle\n")
    assert main(["match", "--csv", str(table), *backend, "--json"]) == 2
    first, missing, second = records(capsys.readouterr().out)
    assert "no such file" in str(missing["error"])
    with Matcher.from_artifacts(exported_artifacts, target="onnx", threads=THREADS) as matcher:
        for record, name in ((first, "0.png"), (second, "2.png")):
            single = matcher(photos / name, str(record["text"]))
            assert record["probability"] == pytest.approx(single.probability, abs=1e-5)
            assert record["cosine"] == pytest.approx(single.cosine, abs=1e-5)
    assert main(["match", "--csv", str(table), "--text", "a star", *backend]) == 2
    assert "leave out --text" in capsys.readouterr().err


def test_a_ranking_does_not_depend_on_the_other_images(
    photos: Path, backend: list[str], capsys: pytest.CaptureFixture[str]
):
    options = ["--text", "two blue rings", "--text", "a star", "--top-k", "1", "--json"]
    assert main(["match", str(photos), *backend, *options]) == 0
    together = records(capsys.readouterr().out)
    assert main(["match", str(photos / "3.png"), *backend, *options]) == 0
    alone = records(capsys.readouterr().out)
    for mine, other in zip(together[6:8], alone, strict=True):
        assert mine["rank"] == other["rank"]
        assert mine["text"] == other["text"]
        assert (mine["probability"] is None) == (other["probability"] is None)


def test_timing_says_how_many_images_per_second(
    photos: Path, backend: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["caption", str(photos), *backend, "--timing", "--json"]) == 0
    *_, timing = records(capsys.readouterr().out)
    assert float(str(timing["images_per_s"])) > 0


def test_prepared_images_are_taken_as_they_are(exported_artifacts: Path):
    with Captioner.from_artifacts(exported_artifacts, target="onnx", threads=THREADS) as captioner:
        prepared = [captioner.preprocessor.prepare(image) for image in IMAGES]
        assert captioner.batch(prepared) == captioner.batch(IMAGES)
        with pytest.raises(InputError, match="prepared image of shape"):
            captioner(PreparedImage(np.zeros((3, 2, 2), dtype=np.float32)))


def test_results_stream_out_and_an_interrupt_ends_cleanly(
    photos: Path, backend: list[str], tmp_path: Path
):
    many = tmp_path / "many"
    many.mkdir()
    for index in range(3000):
        (many / f"{index:04}.png").symlink_to(photos / f"{index % 8}.png")
    command = [sys.executable, "-m", "runtime", "caption", str(many), *backend, "--json"]
    # Unbuffered: what a buffered readline reads ahead, communicate would never see.
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        # A shell's background jobs, and so these tests in one, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        rest, error = process.communicate(timeout=60)
    assert first["image"].endswith("0000.png")
    assert process.returncode == 130
    assert error.decode().strip() == "interrupted"
    names = [Path(str(record["image"])).stem for record in records(rest.decode())]
    assert names == [f"{index:04}" for index in range(1, len(names) + 1)], "in order, none lost"
    assert len(names) < 2900
