"""Whole evaluations on real artifacts: figures, resuming, gates, other data sets, bad data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from configs.errors import InputError
from configs.schema import EvaluateConfig
from pipeline.command import select
from pipeline.scenes import caption, draw, make_scene, questions
from verify.artifacts import find_artifacts
from verify.evaluation.answer_store import AnswerStore
from verify.evaluation.answering import open_answerer, unpack
from verify.evaluation.items import MatchingItem, scenes
from verify.evaluation.pipeline import Evaluation, Options, evaluate
from verify.evaluation.subjects import Subject

ROOT = Path(__file__).resolve().parent.parent
ITEMS = 10


@pytest.fixture(scope="module")
def folder(openvino_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the exported graphs and IRs, with its pipeline file."""
    root = tmp_path_factory.mktemp("evaluate")
    ignored = shutil.ignore_patterns("work", "logs", "verify*", "evaluation", "BM*", "bench*")
    shutil.copytree(openvino_artifacts, root / "reference", ignore=ignored)
    write_config(root)
    return root


def write_config(root: Path, **changes: Any) -> Path:
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    data["artifacts"] = str(root)
    data["targets"] = {"openvino": {"precisions": ["f16"]}}
    data["verify"]["gates"] = changes.pop("gates", {})
    data["evaluate"] = {"items": ITEMS, "bootstrap": 50, "modes": ["exact"], **changes}
    path = root / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def run(config: Path, task: str | None = None, **changes: Any) -> list[Evaluation]:
    """One worker: this process."""
    selection = select(config, task=task)
    settings = {**selection.pipeline.evaluate.model_dump(), **changes}
    options = Options(
        EvaluateConfig.model_validate(settings), "pipeline.yaml", 1, tasks_named=task is not None
    )
    return list(evaluate(selection, options))


def command(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "verify", "evaluate", "--config", str(config), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def stores(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted((folder / "reference" / "evaluation" / "answers").glob(f"{pattern}.jsonl"))


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Evaluation]:
    """One evaluation of every task over the scenes."""
    config = write_config(folder)
    return {found.record["task"]: found for found in run(config)}


def test_every_task_agrees_with_the_checkpoint_in_exact_mode(
    results: dict[str, Evaluation],
) -> None:
    for task, metric in (("caption", "cider"), ("vqa", "soft_accuracy"), ("itm", "auc")):
        (subject,) = results[task].record["subjects"]
        assert subject["agreement"]["rate"] == 1.0
        figures = subject["metrics"][metric]
        assert figures["value"] == figures["checkpoint"]
        assert figures["drop"] == figures["drop_low"] == figures["drop_high"] == 0.0
        assert figures["value"] > 0.9


def test_a_result_says_what_was_measured_on_what(results: dict[str, Evaluation]) -> None:
    record = json.loads(results["caption"].path.read_text())
    assert record == results["caption"].record
    assert record["data_set"]["items"] == ITEMS
    assert [metric["name"] for metric in record["metrics"]] == ["exact_match", "bleu_4", "cider"]
    (subject,) = record["subjects"]
    assert subject["divergence"]["count"] == 0
    assert len(subject["worst"]) == ITEMS
    for case in subject["worst"]:
        assert (results["caption"].path.parent / case["image"]).stat().st_size > 500
        assert case["references"]
        assert case["answer"] == case["checkpoint"]
    scores = [case["score"] for case in subject["worst"]]
    assert scores == sorted(scores)


def test_questions_choose_among_answers_as_the_checkpoint_does(folder: Path) -> None:
    answers = folder / "answers.txt"
    answers.write_text("red\n\nblue\ngreen\nyes\nno\none\ntwo\nthree\na ring\nring\nred\n")
    config = write_config(folder)
    (found,) = run(config, "vqa", answers=str(answers), answer_candidates=4)
    assert found.record["settings"]["answer_candidates"] == 4
    (subject,) = found.record["subjects"]
    assert subject["agreement"]["rate"] == 1.0
    given = set(answers.read_text().split("\n"))
    assert {case["answer"] for case in subject["worst"]} <= given
    generated = run(config, "vqa")[0].record
    assert generated["settings"]["answers"] is None
    assert found.record["settings"]["answers"]
    answers.write_text("\n")
    with pytest.raises(InputError, match="answer per line"):
        run(config, "vqa", answers=str(answers))


def test_matching_reports_both_directions(results: dict[str, Evaluation]) -> None:
    (subject,) = results["itm"].record["subjects"]
    assert subject["agreement"]["compared"] == 2 * ITEMS
    for at in (1, 5, 10):
        for side in ("text", "image"):
            assert 0.5 <= subject["metrics"][f"{side}_recall_{at}"]["value"] <= 1.0
    assert subject["worst"][0]["references"][0] in ("match", "no match")


def test_stored_answers_are_not_asked_again(folder: Path, results: dict[str, Evaluation]) -> None:
    before = {path: path.stat().st_mtime_ns for path in stores(folder)}
    assert len(before) == 6
    again = run(write_config(folder), "caption")
    assert (
        again[0].record["subjects"][0]["metrics"]
        == (results["caption"].record["subjects"][0]["metrics"])
    )
    assert {path: path.stat().st_mtime_ns for path in stores(folder)} == before


def test_more_items_go_on_from_the_stored_ones(
    folder: Path, results: dict[str, Evaluation]
) -> None:
    assert results
    (path,) = stores(folder, "vqa-scenes-checkpoint-*")
    before = path.read_bytes()
    (found,) = run(write_config(folder, items=ITEMS + 2), "vqa")
    assert found.record["subjects"][0]["items"] == ITEMS + 2
    assert path.read_bytes().startswith(before)
    assert len(path.read_bytes().splitlines()) == ITEMS + 2


def test_a_second_target_leaves_the_first_in_the_result_and_the_checkpoint_alone(
    folder: Path, results: dict[str, Evaluation]
) -> None:
    assert results
    (path,) = stores(folder, "itm-scenes-checkpoint-*")
    before = path.stat().st_mtime_ns
    (found,) = run(write_config(folder), "itm", modes=("fast",))
    assert path.stat().st_mtime_ns == before
    written = json.loads(found.path.read_text())
    assert [subject["mode"] for subject in written["subjects"]] == ["fast", "exact"]


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def test_a_killed_run_goes_on(folder: Path) -> None:
    """Killed once answers are stored: what was stored is kept, the rest is the same as ever."""
    config = write_config(folder, items=200)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "verify",
            "evaluate",
            "--config",
            str(config),
            "--task",
            "caption",
            "--workers",
            "2",
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def lines() -> int:
        found = stores(folder, "caption-scenes-openvino*")
        return len(found[0].read_bytes().splitlines()) if found else 0

    stop = time.monotonic() + 300
    while lines() < 100 and process.poll() is None and time.monotonic() < stop:
        time.sleep(0.02)
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert workers
    stop = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers):
        assert time.monotonic() < stop, "workers outlive a killed run"
        time.sleep(0.1)
    (path,) = stores(folder, "caption-scenes-openvino*")
    kept = path.read_bytes()
    assert len(kept.splitlines()) >= 100
    # A kill in the middle of a write leaves half a line.
    path.write_bytes(kept + b'{"n":190,"s":"","a":{"tok')
    (found,) = run(config, "caption")
    assert found.record["subjects"][0]["agreement"]["compared"] == 200
    assert path.read_bytes().startswith(kept)
    path.unlink()
    (again,) = run(config, "caption")
    found.record["subjects"][0].pop("seconds")
    again.record["subjects"][0].pop("seconds")
    assert again.record == found.record


def test_two_workers_give_the_same_answers(folder: Path, results: dict[str, Evaluation]) -> None:
    config = write_config(folder)
    for path in stores(folder, "vqa*"):
        path.unlink()
    result = command(config, "--task", "vqa", "--workers", "2")
    assert result.returncode == 0, result.stderr
    record = json.loads(results["vqa"].path.read_text())
    ours = results["vqa"].record["subjects"][0]
    assert record["subjects"][0]["metrics"] == ours["metrics"]
    assert "vqa on scenes" in result.stdout


def test_the_store_survives_damage(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    stamps = ["s"] * 4
    AnswerStore(path, stamps).add((n, {"text": str(n)}) for n in range(4))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"garbage\n" + lines[2] + lines[3][:9])
    store = AnswerStore(path, stamps)
    assert store.missing == [1, 3]
    store.add([(3, {"text": "again"})])
    assert store[3] == {"text": "again"}
    changed = AnswerStore(path, ["changed", "s", "s", "s"])
    assert changed.missing == [0, 1]
    assert changed[3] == {"text": "again"}


def test_gates_that_are_not_kept_fail_the_run(folder: Path, results: dict[str, Evaluation]) -> None:
    assert results
    # Nothing can agree more often than always: these gates are just kept, and not kept.
    kept = {"vqa": {"openvino.f16": {"min_agreement": 1.0, "max_drop": {"exact_match": 0.0}}}}
    (found,) = run(write_config(folder, gates=kept), "vqa")
    assert [gate["passed"] for gate in found.record["subjects"][0]["gates"]] == [True, True]
    for path in stores(folder, "vqa-scenes-openvino*"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[0]["a"] = {**lines[0]["a"], "tokens": [*lines[0]["a"]["tokens"], 5], "text": "wrong"}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = command(write_config(folder, gates=kept), "--task", "vqa")
    assert result.returncode == 1
    assert "verify.gates.vqa.openvino.f16" in result.stderr
    record = json.loads((folder / "reference" / "evaluation" / "vqa-scenes.json").read_text())
    subject = record["subjects"][0]
    assert subject["agreement"]["same"] == subject["agreement"]["compared"] - 1
    assert subject["metrics"]["exact_match"]["drop"] == pytest.approx(1 / ITEMS)
    assert subject["worst"][0]["answer"] == "wrong"
    assert subject["worst"][0]["differs"]
    assert sum(subject["divergence"]["positions"].values()) == 1


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes as image files, with annotations in every format."""
    root = tmp_path_factory.mktemp("photos")
    captions: dict[str, list[Any]] = {"images": [], "annotations": []}
    karpathy, asked, given = [], [], []
    rows = ["image,caption"]
    for index in range(6):
        scene = make_scene(500 + index)
        name = f"COCO_val2014_{index:012d}.jpg"
        draw(scene).save(root / name, quality=95)
        text = caption(scene)
        captions["images"].append({"id": index, "file_name": name})
        captions["annotations"].append({"image_id": index, "caption": text})
        karpathy.append({"filename": name, "split": "test", "sentences": [{"raw": text}]})
        for number, qa in enumerate(questions(scene)[:2]):
            key = 10 * index + number
            asked.append({"image_id": index, "question": qa.question, "question_id": key})
            given.append({"question_id": key, "answers": [{"answer": qa.answer}] * 10})
        rows.append(f"{name},{text}")
    (root / "captions.json").write_text(json.dumps(captions))
    (root / "karpathy.json").write_text(json.dumps({"images": karpathy}))
    (root / "questions.json").write_text(json.dumps({"questions": asked}))
    (root / "annotations.json").write_text(json.dumps({"annotations": given}))
    (root / "rows.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.parametrize(
    ("task", "data_set", "items"),
    [
        ("caption", {"kind": "coco_captions", "path": "captions.json"}, 6),
        ("vqa", {"kind": "vqa_v2", "path": "annotations.json", "questions": "questions.json"}, 12),
        ("itm", {"kind": "karpathy", "path": "karpathy.json"}, 6),
        ("caption", {"kind": "folder", "path": "rows.csv"}, 6),
    ],
    ids=["coco", "vqa", "karpathy", "folder"],
)
def test_other_data_sets(
    folder: Path, photos: Path, task: str, data_set: dict[str, Any], items: int
) -> None:
    paths = {
        key: str(photos / value) for key, value in data_set.items() if key in ("path", "questions")
    }
    config = write_config(folder, items=100, data_sets=[{**data_set, **paths}])
    (found,) = run(config, task)
    (subject,) = found.record["subjects"]
    assert subject["items"] == items
    assert subject["agreement"]["rate"] == 1.0
    main = {"caption": "cider", "vqa": "soft_accuracy", "itm": "accuracy"}[task]
    assert subject["metrics"][main]["value"] > 0.8
    assert found.record["data_set"]["kind"] == data_set["kind"]


def test_reranking_asks_the_matching_head(folder: Path, results: dict[str, Evaluation]) -> None:
    assert results
    (found,) = run(write_config(folder), "itm", rerank=3)
    assert found.record["settings"]["rerank"] == 3
    assert found.record["subjects"][0]["metrics"]["text_recall_1"]["drop"] == 0.0
    assert stores(folder, "itm-scenes-checkpoint-rerank3*")


def test_match_features_are_those_of_the_model_s_forward(folder: Path) -> None:
    import torch

    selection = select(write_config(folder), task="itm")
    (task,) = find_artifacts(selection)
    items = [i for i in scenes("itm").first(3) if isinstance(i, MatchingItem)]
    answerer = open_answerer(Subject(selection.pipeline, task), None)
    answers = answerer.answers(items)
    reference = answerer._checkpoint  # type: ignore[attr-defined]
    for item, answer in zip(items, answers, strict=True):
        pixels = reference.pixel_values([item.picture.load()])
        for (text, _), logits in zip(item.pairs, answer["logits"], strict=True):
            ids = torch.tensor([reference.token_ids(text)])
            with torch.inference_mode():
                expected = reference.model(
                    input_ids=ids,
                    pixel_values=pixels,
                    attention_mask=torch.ones_like(ids),
                    use_itm_head=True,
                )[0]
                cosine = reference.model(
                    input_ids=ids,
                    pixel_values=pixels,
                    attention_mask=torch.ones_like(ids),
                    use_itm_head=False,
                )[0]
            assert logits == pytest.approx(expected[0].tolist(), abs=1e-4)
            if text == item.texts[0]:
                mine = np.dot(unpack(answer["image"]), unpack(answer["texts"]))
                assert float(mine) == pytest.approx(float(cosine[0, 0]), abs=1e-5)


def remove_image(photos: Path) -> None:
    next(photos.glob("*.jpg")).unlink()


def cut_json(photos: Path) -> None:
    path = photos / "captions.json"
    path.write_text(path.read_text()[:-60])


def empty(photos: Path) -> None:
    (photos / "captions.json").write_text("")


def damage_image(photos: Path) -> None:
    next(photos.glob("*.jpg")).write_bytes(b"\xff\xd8 not a photo")


@pytest.mark.parametrize("fault", [remove_image, cut_json, empty, damage_image])
def test_bad_data_ends_with_one_line_and_code_2(
    folder: Path, photos: Path, tmp_path: Path, fault: Callable[[Path], None]
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    fault(tmp_path / "photos")
    path = tmp_path / "photos" / "captions.json"
    result = command(
        write_config(folder), "--task", "caption", "--dataset", f"coco_captions:{path}"
    )
    assert result.returncode == 2
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    assert str(path) in line
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--dataset", "nothing:x"), "unknown kind"),
        (("--items", "0"), "--items"),
        (("--mode", "slow"), "--mode"),
        (("--workers", "0"), "--workers"),
        (("--task", "vqa", "--dataset", "coco_captions:x.json"), "nothing for vqa"),
    ],
)
def test_bad_options_end_with_code_2(folder: Path, arguments: tuple[str, ...], what: str) -> None:
    result = command(write_config(folder), *arguments)
    assert result.returncode == 2
    assert what in result.stderr
    assert "Traceback" not in result.stderr
