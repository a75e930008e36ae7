"""What was made of an image is kept for the next text about it, in bounded memory."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Captioner, InputError, Matcher, QuestionAnswerer, Timings
from runtime.__main__ import main
from runtime.cli.options import build_parser, task_arguments
from runtime.preprocessing.images import PreparedImage
from runtime.preprocessing.processor import ImagePreprocessor
from runtime.tasks.image_cache import ImageCache
from runtime.tasks.matching import Match, _parts
from runtime.tasks.streaming import Stream, Turns
from tests.runtime_support import IMAGES, THREADS

TASKS: dict[str, tuple[Any, list[str | None]]] = {
    "caption": (Captioner, [None, "a picture of"]),
    "vqa": (QuestionAnswerer, ["what color is the circle?", "how many shapes are there?"]),
    "itm": (Matcher, ["two blue rings", "a red star"]),
}
PLENTY = 64 << 20


def png(index: int) -> bytes:
    stream = io.BytesIO()
    IMAGES[index].save(stream, "PNG")
    return stream.getvalue()


def opened(kind: Any, folder: Path, target: str, **options: Any) -> Any:
    return kind.from_artifacts(folder, target=target, threads=THREADS, **options)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("name", TASKS)
def test_another_text_takes_no_vision(openvino_artifacts: Path, name: str, target: str):
    kind, texts = TASKS[name]
    with opened(kind, openvino_artifacts, target) as plain:
        expected = [[plain(image, text).shown for text in texts] for image in IMAGES[:2]]
    with opened(kind, openvino_artifacts, target, image_cache_bytes=PLENTY) as task:
        timings = Timings()
        found = [
            [task(image, text, timings=timings).shown for text in texts] for image in IMAGES[:2]
        ]
        assert found == expected
        assert timings.rows["vision"] == 2
        # A file and a picture of several, one of them known and one twice.
        group = [png(0), IMAGES[1], png(0), IMAGES[2]]
        shown = [one.shown for one in task.ask(group, [texts[0]] * 4, timings=timings)]
        assert shown[:3] == [expected[0][0], expected[1][0], expected[0][0]]
        assert timings.rows["vision"] == 4
        preprocessed = timings.rows["preprocess"]
        assert task(png(0), texts[1], timings=timings).shown == expected[0][1]
        assert timings.rows["vision"] == 4
        assert timings.rows["preprocess"] == preprocessed + 1


def test_a_known_file_is_not_decoded(
    exported_artifacts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    path = tmp_path / "picture.png"
    path.write_bytes(png(3))
    options: dict[str, Any] = {"image_cache_bytes": PLENTY}
    with opened(QuestionAnswerer, exported_artifacts, "onnx", **options) as task:
        first = task(path, "what is there?")
        monkeypatch.setattr(ImagePreprocessor, "resized", None)
        assert task(path, "what is there?") == first
        # The same content under another name, and in a stream.
        copied = tmp_path / "copy.png"
        copied.write_bytes(path.read_bytes())
        assert [found for _, found in task.stream([copied], "what is there?")] == [first]
        path.write_bytes(png(4))
        with pytest.raises(TypeError):
            task(path, "what is there?")


def image(key: int) -> PreparedImage:
    return PreparedImage(np.full((3, 2, 2), key, dtype=np.float32), bytes([key]))


def test_memory_is_bounded_and_the_oldest_used_go_first():
    made: list[int] = []

    def make(images: list[PreparedImage]) -> np.ndarray:
        made.extend(int(one.pixels[0, 0, 0]) for one in images)
        return np.stack([np.full(100, one.pixels[0, 0, 0], dtype=np.float32) for one in images])

    cache = ImageCache(850)
    assert cache.states([image(1), image(2), image(1)], make)[:, 0].tolist() == [1, 2, 1]
    cache.states([image(1)], make)
    assert made == [1, 2]
    cache.states([image(3)], make)
    cache.states([image(1)], make)
    assert made == [1, 2, 3]
    cache.states([image(2)], make)
    assert made == [1, 2, 3, 2]
    small = ImageCache(399)
    assert small.states([image(5)], make)[0, 0] == 5
    assert small.states([image(5)], make)[0, 0] == 5
    assert made[-2:] == [5, 5]


def test_kept_states_are_nobody_elses_memory():
    batch = np.arange(6, dtype=np.float32).reshape(2, 3)
    cache = ImageCache(1000)
    cache.states([image(1), image(2)], lambda _: batch)
    batch[:] = -1
    found = cache.states([image(1)], lambda _: batch)
    assert found.tolist() == [[0, 1, 2]]
    found[:] = -1
    assert cache.states([image(1)], lambda _: batch).tolist() == [[0, 1, 2]]


def same(found: list[Any], expected: list[Any]) -> bool:
    """Equal answers; scores but for how sums of another shape are rounded."""
    if isinstance(found[0], Match):
        found, expected = ([one.itm_logits for one in side] for side in (found, expected))
        return bool(np.allclose(found, expected, rtol=1e-5, atol=1e-5))
    return found == expected


@pytest.mark.parametrize("name", ["vqa", "itm"])
def test_texts_about_one_image_share_its_keys(
    exported_artifacts: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    kind, texts = TASKS[name]
    fed: list[tuple[int, int]] = []
    with opened(kind, exported_artifacts, "onnx") as task:
        alone = [[task(image, text) for text in texts] for image in IMAGES[:2]]
        session = task.session("text_encoder")
        run = session.run

        def watched(feeds: Any, net: str | None = None) -> Any:
            fed.append((len(feeds["input_ids"]), len(feeds["image_embeds"])))
            return run(feeds, net)

        monkeypatch.setattr(session, "run", watched)
        assert same(task.ask(IMAGES[0], texts), alone[0])
        assert fed == [(2, 1)]
        mixed = task.pairs(IMAGES[:2], [texts, texts[:1]])
    assert same([*mixed[0], *mixed[1]], [*alone[0], alone[1][0]])
    assert fed[1:] == ([(3, 3)] if name == "vqa" else [(2, 1), (1, 1)])


def test_calls_of_texts_keep_their_order():
    assert _parts([0, 1, 2, 2, 2, 3, 4, 5], 2) == [[0, 1], [2, 3], [4], [5, 6], [7]]
    assert _parts([], 4) == []


def test_a_negative_size_is_refused(exported_artifacts: Path):
    with pytest.raises(InputError, match="image_cache_bytes -1"):
        Captioner.from_artifacts(exported_artifacts, target="onnx", image_cache_bytes=-1)


@pytest.mark.parametrize(
    ("command", "usual"),
    [("caption x", 0), ("vqa x", 0), ("match x", 0), ("watch x", 0), ("serve", 64 << 20)],
)
def test_every_command_may_keep_states(command: str, usual: int):
    for flags, size in ([], usual), (["--image-cache", "8"], 8 << 20):
        options = build_parser("0").parse_args([*command.split(), *flags])
        assert task_arguments(options, "onnx")["image_cache_bytes"] == size


def test_a_table_that_comes_back_to_an_image(
    exported_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(png(index))
    table = tmp_path / "asked.csv"
    table.write_text("image,question\n" + "0.png,what?\n1.png,what?\n" * 2)
    command = ["vqa", "--csv", str(table), "--artifacts", str(exported_artifacts), "--json"]
    command += ["--target", "onnx", "--threads", "1", "--batch", "1"]
    assert main(command) == 0
    plain = capsys.readouterr().out
    assert main([*command, "--image-cache", "8"]) == 0
    assert capsys.readouterr().out == plain
    assert len([json.loads(line) for line in plain.splitlines()]) == 4


# Streams


def test_a_stream_counts_every_image_once(exported_artifacts: Path):
    timings = Timings()
    with opened(Captioner, exported_artifacts, "onnx") as task:
        assert len(list(task.stream(IMAGES[:3], timings=timings))) == 3
        assert timings.rows["preprocess"] == timings.rows["vision"] == 3
        task(IMAGES[0], timings=timings)
        assert timings.rows["preprocess"] == 4


def test_loaders_and_workers_take_turns():
    guard, going = threading.Lock(), {"load": 0, "work": 0}
    seen: list[dict[str, int]] = []
    turns = Turns(wanted=True)

    def count(kind: str) -> None:
        for by in (1, -1):
            with guard:
                going[kind] += by
                seen.append(dict(going))
            time.sleep(0.001)

    def load(item: int) -> int:
        with turns.load():
            count("load")
        return item

    def work(group: list[tuple[int, int]]) -> list[int]:
        with turns.work():
            count("work")
        return [prepared for _, prepared in group]

    stream = Stream(load, work, batch=3, loaders=4)
    assert [found for _, found in stream(range(40))] == list(range(40))
    assert max(one["work"] for one in seen) == 1
    assert not any(one["load"] and one["work"] for one in seen)


def test_turns_that_nobody_wants_let_all_in():
    turns = Turns(wanted=False)
    with turns.work(), turns.load(), turns.work():
        assert turns.loaders == 0
