"""Data sets: every format, every kind of bad data named by file and key."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from configs.errors import BlipEdgeError, ConfigError, InputError
from configs.load import load_pipeline
from configs.schema import DataSetConfig, EvaluateConfig, Task
from pipeline.command import Selection
from verify.evaluation.data_sets import Asked, open_data_sets, parse_data_set
from verify.evaluation.items import CaptionItem, Item, MatchingItem, QuestionItem

ROOT = Path(__file__).resolve().parent.parent


def opened(config: DataSetConfig, task: Task, *, prompt: str = "", items: int = 1000) -> Asked:
    file = ROOT / "configs" / "reference.yaml"
    selection = Selection(load_pipeline(file), (task,), (), (), file)
    evaluate = EvaluateConfig(data_sets=(config,), prompt=prompt, items=items)
    (asked,) = open_data_sets(selection, evaluate, tasks_named=True)
    return asked


def every_item(asked: Asked) -> list[Item]:
    return list(asked.data_set.first(asked.items))


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)
    return path


def coco(folder: Path, **changes: Any) -> Path:
    for name in ("a.png", "b.png"):
        picture(folder / name)
    data = {
        "info": {"year": 2014},
        "images": [{"id": 7, "file_name": "b.png"}, {"id": 3, "file_name": "a.png"}],
        "annotations": [
            {"id": 1, "image_id": 3, "caption": "a ring"},
            {"id": 2, "image_id": 7, "caption": "a star"},
            {"id": 3, "image_id": 3, "caption": "one ring"},
        ],
        **changes,
    }
    return write(folder / "captions.json", data)


def vqa(folder: Path, **changes: Any) -> tuple[Path, Path]:
    for number in (1, 2):
        picture(folder / "images" / f"COCO_val2014_{number:012d}.jpg")
    questions = [
        {"image_id": 2, "question": "what?", "question_id": 20},
        {"image_id": 1, "question": "how many?", "question_id": 10},
        {"image_id": 2, "question": "which?", "question_id": 21},
    ]
    answers = [
        {"question_id": q["question_id"], "answers": [{"answer": "two", "answer_id": 1}] * 10}
        for q in questions
    ]
    asked = {"data_subtype": "val2014", "questions": changes.get("questions", questions)}
    given = {"annotations": changes.get("annotations", answers)}
    return write(folder / "questions.json", asked), write(folder / "annotations.json", given)


def karpathy(folder: Path, **changes: Any) -> Path:
    images = []
    for number, split in enumerate(("test", "train", "test")):
        picture(folder / "val2014" / f"{number}.jpg")
        sentences = [{"raw": f"text {number}"}, {"raw": f"another {number}"}]
        images.append(
            {
                "filepath": "val2014",
                "filename": f"{number}.jpg",
                "split": split,
                "sentences": sentences,
            }
        )
    return write(folder / "dataset.json", {"images": images, "dataset": "coco", **changes})


def test_coco_captions_are_grouped_by_image_in_file_order(tmp_path: Path) -> None:
    config = DataSetConfig(kind="coco_captions", path=str(coco(tmp_path)))
    first, second = every_item(opened(config, "caption", prompt="a picture of"))
    assert isinstance(first, CaptionItem)
    assert isinstance(second, CaptionItem)
    assert (first.name, first.references) == ("7", ("a star",))
    assert (second.name, second.references) == ("3", ("a ring", "one ring"))
    assert second.prompt == "a picture of"
    assert second.picture.load().size == (8, 8)


def test_captions_serve_for_matching_with_a_text_of_another_image(tmp_path: Path) -> None:
    config = DataSetConfig(kind="coco_captions", path=str(coco(tmp_path)))
    first, second = every_item(opened(config, "itm"))
    assert isinstance(first, MatchingItem)
    assert isinstance(second, MatchingItem)
    assert first.pairs == (("a star", True), ("a ring", False))
    assert second.texts == ("a ring", "one ring")
    assert second.pairs == (("a ring", True), ("a star", False))


def test_vqa_questions_about_one_image_follow_each_other(tmp_path: Path) -> None:
    questions, annotations = vqa(tmp_path)
    config = DataSetConfig(
        kind="vqa_v2",
        path=str(annotations),
        questions=str(questions),
        images=str(tmp_path / "images"),
    )
    items = every_item(opened(config, "vqa"))
    assert [item.name for item in items] == ["20", "21", "10"]
    assert all(isinstance(item, QuestionItem) and item.answers == ("two",) * 10 for item in items)
    assert items[0].picture == items[1].picture
    items[2].picture.load()


def test_files_with_a_byte_order_mark_and_answers_that_say_nothing(tmp_path: Path) -> None:
    said = ["two"] * 9 + [" "]
    answers = [
        {"question_id": number, "answers": [{"answer": one} for one in said]}
        for number in (20, 10, 21)
    ]
    questions, annotations = vqa(tmp_path, annotations=answers)
    for path in (questions, annotations):
        path.write_text(path.read_text(), encoding="utf-8-sig")
    config = DataSetConfig(
        kind="vqa_v2",
        path=str(annotations),
        questions=str(questions),
        images=str(tmp_path / "images"),
    )
    items = every_item(opened(config, "vqa"))
    assert [item.name for item in items] == ["20", "21", "10"]
    assert all(isinstance(i, QuestionItem) and i.answers == (*["two"] * 9, "") for i in items)


@pytest.mark.parametrize(("split", "names"), [("test", ["0", "2"]), ("train", ["1"])])
def test_karpathy_splits(tmp_path: Path, split: str, names: list[str]) -> None:
    config = DataSetConfig(kind="karpathy", path=str(karpathy(tmp_path)), split=split)
    items = every_item(opened(config, "itm"))
    assert [item.name for item in items] == [f"val2014/{name}.jpg" for name in names]
    assert isinstance(items[0], MatchingItem)
    assert items[0].texts == (f"text {names[0]}", f"another {names[0]}")


def test_karpathy_lists_per_split(tmp_path: Path) -> None:
    picture(tmp_path / "val2014" / "1.jpg")
    path = write(tmp_path / "test.json", [{"image": "val2014/1.jpg", "caption": ["one", "two"]}])
    config = DataSetConfig(kind="karpathy", path=str(path))
    (item,) = every_item(opened(config, "caption"))
    assert isinstance(item, CaptionItem)
    assert item.references == ("one", "two")


def test_folders_with_a_csv_file(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    cases: list[tuple[Task, str]] = [
        ("caption", 'image,caption\na.png,"a ring, red"\nb.png,star\na.png,ring\n'),
        ("vqa", "image,question,answer\na.png,what?,a ring|ring|ring\nb.png,how many?,2\n"),
        ("itm", "image,text,match\na.png,a ring,1\na.png,a star,no\nb.png,star,TRUE\n"),
    ]
    found: dict[Task, list[Item]] = {}
    for task, text in cases:
        path = write(tmp_path / task / "data.csv", "\ufeff" + text)
        config = DataSetConfig(kind="folder", path=str(path.parent), images=str(tmp_path))
        found[task] = every_item(opened(config, task))
    captioned, asked, matched = found["caption"][0], found["vqa"][0], found["itm"][0]
    assert isinstance(captioned, CaptionItem)
    assert captioned.references == ("a ring, red", "ring")
    assert isinstance(asked, QuestionItem)
    assert asked.answers == ("a ring", "ring", "ring")
    assert isinstance(matched, MatchingItem)
    assert matched.pairs == (("a ring", True), ("a star", False))
    assert matched.texts == ("a ring",)


def test_scenes_are_those_that_verify_compares() -> None:
    from verify.answers.cases import generation_cases
    from verify.evaluation.items import scenes

    for task in ("caption", "vqa"):
        items = list(scenes(task, seed=1).first(12))
        for item, case in zip(items, generation_cases(task, 12, seed=1), strict=True):
            assert item.picture.scene == case.scene
            text = item.prompt if isinstance(item, CaptionItem) else getattr(item, "question", "")
            assert text == case.text


BAD: list[tuple[str, dict[str, Any], str]] = [
    (
        "unknown image",
        {"annotations": [{"image_id": 9, "caption": "x"}]},
        "annotations[0].image_id",
    ),
    ("no caption", {"annotations": [{"image_id": 3, "caption": " "}]}, "annotations[0].caption"),
    ("no id", {"images": [{"file_name": "a.png"}]}, "images[0].id"),
    ("twice", {"images": [{"id": 3, "file_name": "a.png"}] * 2}, "images[1].file_name"),
    ("not an object", {"images": ["a.png"]}, "images[0]"),
    ("no list", {"images": []}, "images"),
]


@pytest.mark.parametrize(
    ("changes", "key"), [(c, k) for _, c, k in BAD], ids=[n for n, _, _ in BAD]
)
def test_bad_coco_captions_are_named_by_file_and_key(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    path = coco(tmp_path, **changes)
    with pytest.raises(InputError) as raised:
        opened(DataSetConfig(kind="coco_captions", path=str(path)), "caption")
    assert f"{path}: {key}" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ('{"images": [{"id": 1, "file_name"', "not valid JSON (Expecting ':' delimiter: line 1"),
        ('{"images": [{"id": ' + "9" * 5000 + "}]}", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"images": {"id": 1}}', "images: missing or empty"),
        ('{"images": null}', "images: missing or empty"),
        ("\xff\xfe", "not valid JSON"),
        ("[]", "images: missing or empty"),
    ],
)
def test_broken_json(tmp_path: Path, text: str, what: str) -> None:
    path = write(tmp_path / "captions.json", text)
    with pytest.raises(InputError) as raised:
        opened(DataSetConfig(kind="coco_captions", path=str(path)), "caption")
    assert str(path) in str(raised.value)
    assert what in str(raised.value)


def test_bad_vqa_files(tmp_path: Path) -> None:
    def fails(**changes: Any) -> str:
        questions, annotations = vqa(tmp_path, **changes)
        config = DataSetConfig(
            kind="vqa_v2",
            path=str(annotations),
            questions=str(questions),
            images=str(tmp_path / "images"),
        )
        with pytest.raises(InputError) as raised:
            opened(config, "vqa")
        return str(raised.value)

    asked = [{"image_id": 1, "question": "what?", "question_id": 1}]
    answers = [{"question_id": 2, "answers": [{"answer": "x"}]}]
    assert "annotations[0].question_id: 2 is not a question of" in fails(
        questions=asked, annotations=answers
    )
    two = [*asked, {"image_id": 2, "question": "how?", "question_id": 2}]
    assert "questions[0]: has no answer in" in fails(questions=two, annotations=answers)
    assert "questions[1]: question 1 is there twice" in fails(questions=asked * 2)
    assert "no image of it in" in fails(questions=[{**asked[0], "image_id": 99}])
    assert "annotations[0].answers" in fails(annotations=[{"question_id": 10, "answers": []}])
    silent = [{"question_id": 10, "answers": [{"answer": ""}] * 10}]
    assert "annotations[0].answers: all are empty" in fails(annotations=silent)
    assert "annotations[0].answers[0].answer: must be a text" in fails(
        annotations=[{"question_id": 10, "answers": [{"answer": 2}]}]
    )


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    config = DataSetConfig(kind="karpathy", path=str(karpathy(tmp_path)), split="val")
    with pytest.raises(InputError, match="choose from: test, train"):
        opened(config, "itm")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is empty"),
        ("image,caption\n", "is empty"),
        ("name,caption\na.png,x\n", "line 1: columns name, caption"),
        ("image,colour\na.png,red\n", "line 1: besides image"),
        ("image,caption\na.png\n", "line 2: 1 fields"),
        ("image,caption\na.png,\n", "line 2: caption: is empty"),
        ("image,text,match\na.png,x,perhaps\n", "line 2: match: 'perhaps'"),
        ('image,caption\na.png,"x\n', "line 2"),
    ],
)
def test_bad_csv_files(tmp_path: Path, text: str, what: str) -> None:
    picture(tmp_path / "a.png")
    path = write(tmp_path / "data.csv", text)
    task: Task = "itm" if "match" in text else "caption"
    with pytest.raises(InputError) as raised:
        opened(DataSetConfig(kind="folder", path=str(tmp_path)), task)
    assert str(path) in str(raised.value)
    assert what in str(raised.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("flickr:x.json", "unknown kind 'flickr'"),
        ("coco_captions", "path is missing"),
        ("vqa_v2:x.json", "questions"),
        ("scenes:x", "remove it"),
    ],
)
def test_bad_options(text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        parse_data_set(text, questions=None, images=None, split=None)


@pytest.mark.parametrize("kind", ["coco_captions", "karpathy", "folder"])
def test_missing_files(tmp_path: Path, kind: str) -> None:
    config = parse_data_set(f"{kind}:{tmp_path}/none", questions=None, images=None, split=None)
    with pytest.raises(BlipEdgeError, match="none: ") as raised:
        opened(config, "caption")
    assert raised.value.exit_code == 2


def test_a_task_that_a_data_set_has_nothing_for(tmp_path: Path) -> None:
    config = DataSetConfig(kind="coco_captions", path=str(coco(tmp_path)))
    with pytest.raises(ConfigError, match="nothing for vqa"):
        opened(config, "vqa")


def test_a_missing_or_damaged_image_is_named_by_its_entry(tmp_path: Path) -> None:
    path = coco(tmp_path)
    (tmp_path / "b.png").unlink()
    (tmp_path / "a.png").write_bytes(b"no image")
    config = DataSetConfig(kind="coco_captions", path=str(path))
    first, second = every_item(opened(config, "caption"))
    with pytest.raises(InputError, match=r"images\[0\]\.file_name: .*b\.png"):
        first.picture.stamp()
    with pytest.raises(InputError, match=r"images\[1\]\.file_name: .*a\.png: not an image"):
        second.picture.load()


def test_annotations_as_large_as_vqav2_take_a_moment(tmp_path: Path) -> None:
    count = 20_000
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "url": "x" * 1_000} for i in range(count)]
    annotations = [{"image_id": i, "caption": f"caption {i}"} for i in range(count)]
    path = write(tmp_path / "captions.json", {"images": images, "annotations": annotations})
    assert path.stat().st_size > 20e6
    config = DataSetConfig(kind="coco_captions", path=str(path))
    started = time.monotonic()
    asked = opened(config, "caption", items=count)
    assert len(every_item(asked)) == count
    assert time.monotonic() - started < 60
