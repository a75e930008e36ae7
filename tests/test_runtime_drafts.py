"""Several tokens per pass: whatever is drafted, the tokens are those of greedy search."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.scenes import caption, scenes
from runtime import Captioner, QuestionAnswerer
from runtime.__main__ import main
from runtime.decoding.batching import Timings
from runtime.errors import ArtifactError, InputError
from runtime.files.manifests import read_task_manifest
from runtime.generation.draft_table import make_table
from runtime.generation.drafts import Drafter, read_table
from runtime.generation.generate import Limits, SingleSearch, generate
from runtime.generation.settings import DRAFT_TABLE, GenerationSettings
from runtime.preprocessing.processor import TextTokenizer
from runtime.sessions.session import DecoderRun
from tests.runtime_support import IMAGES, THREADS

VOCABULARY, END = 23, 3
PROMPTS = [None, "a picture of", "a", "two"]
RULES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "max_length": {"max_length": 7},
    "min_length": {"max_new_tokens": 24, "min_new_tokens": 18},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat": {"no_repeat_ngram_size": 2, "min_new_tokens": 14},
}


class Scripted(Drafter):
    """Drafts what the answers say, or something else at some positions."""

    def __init__(self, answers: Sequence[Sequence[int]], wrong: int, stride: int) -> None:
        """At every ``stride``-th position from ``wrong`` on the draft is wrong; 0: nowhere."""
        super().__init__()
        self._answers, self._wrong, self._stride = answers, wrong, stride

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        known = [a for a in self._answers if list(a[: len(tokens)]) == list(tokens)]
        found = [int(token) for token in known[0][len(tokens) :]] if known else [7] * most
        return [
            token % 19 + 1 if self._stride and (i - self._wrong) % self._stride == 0 else token
            for i, token in enumerate(found[:most])
        ]


#: always right, always wrong, alternately, right but for the first or the third
DRAFTS = {"right": (0, 0), "wrong": (0, 1), "alternating": (1, 2), "first": (0, 9), "third": (2, 9)}


class Hashed(DecoderRun):
    """A decoder without a net: the logits of a position are a function of all tokens up to it."""

    most_drafts = 5

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.passes = 0

    def start(self, prompts: Sequence[Sequence[int]], contexts: Sequence[int]) -> np.ndarray:
        self.begin(contexts)
        self.rows = [list(prompt) for prompt in prompts]
        self.passes += 1
        return np.stack([self._logits(row) for row in self.rows])

    def begin(self, contexts: Sequence[int]) -> None:
        self.rows = [[] for _ in contexts]

    def check(self, parents: np.ndarray, tokens: Sequence[Sequence[int]]) -> list[np.ndarray]:
        self.before = [list(self.rows[parent]) for parent in parents]
        self.fed = [list(given) for given in tokens]
        self.passes += 1
        return [
            np.stack([self._logits([*row, *given[: i + 1]]) for i in range(len(given))])
            for row, given in zip(self.before, self.fed, strict=True)
        ]

    def keep(self, counts: Sequence[int]) -> None:
        kept = zip(self.before, self.fed, counts, strict=True)
        self.rows = [[*row, *given[:count]] for row, given, count in kept]

    def _logits(self, row: Sequence[int]) -> np.ndarray:
        found = np.random.default_rng(list(row)).standard_normal(VOCABULARY).astype(np.float32)
        return found if not self.tokens_suffice else np.argmax(found)


class Netless:
    """As much of a session as generation needs."""

    def __init__(self) -> None:
        self.runs: list[Hashed] = []

    def capacity(self, _maximum_positions: int) -> int:
        return 40

    def start_run(self, _dimensions: object, _cross: object) -> Hashed:
        self.runs.append(Hashed())
        return self.runs[-1]


def netless(drafter: Drafter | None, **settings: Any) -> tuple[list[list[int]], int, list[Any]]:
    session, streamed = Netless(), []
    manifest: Any = SimpleNamespace(
        text=SimpleNamespace(maximum_positions=64, end_token_id=END, vocabulary_size=VOCABULARY),
        dimensions=None,
    )
    found = generate(
        session,  # type: ignore[arg-type]
        manifest,
        None,
        [[5], [6, 7, 8], [9, 1]],
        GenerationSettings(**settings),
        drafter=drafter,
        on_token=lambda row, token: streamed.append((row, token)),
    )
    tokens = [sequence.token_ids.tolist() for (sequence,) in found]
    return tokens, session.runs[0].passes, streamed


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("drafts", DRAFTS)
def test_any_draft_gives_the_tokens_of_greedy_search(drafts: str, rules: str) -> None:
    plain, passes, _ = netless(None, **RULES[rules])
    for count in (1, 3, 5):
        drafter = Scripted(plain, *DRAFTS[drafts])
        found, fewer, streamed = netless(drafter, draft_tokens=count, **RULES[rules])
        assert found == plain
        prompts = [1, 3, 2]
        for row, length in enumerate(prompts):
            assert [token for r, token in streamed if r == row] == plain[row][length:]
        if drafts == "wrong":
            assert fewer == passes
        if drafts == "right" and rules != "max_length":
            assert fewer <= passes / (count + 1) + 1


def test_random_drafts_change_nothing() -> None:
    generator = np.random.default_rng(0)

    class Random(Drafter):
        def draft(self, tokens: Sequence[int], most: int) -> list[int]:  # noqa: ARG002
            return generator.integers(0, VOCABULARY, generator.integers(0, most + 1)).tolist()

    plain = netless(None)[0]
    for _ in range(20):
        assert netless(Random(), draft_tokens=5)[0] == plain


def test_a_draft_leaves_room_for_the_token_after_it() -> None:
    limits = Limits(longest=6, shortest=0, end_token_id=END)
    search = SingleSearch([5, 6, 7], GenerationSettings(), limits, None)
    assert search.draft(Scripted([[5, 6, 7, 8, 9, 10, 11]], 0, 0), 5) == [8, 9]
    assert search.draft(Scripted([[5, 6, 7, 8, END, 4]], 0, 0), 5) == [8]


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def captioner(request: pytest.FixtureRequest, openvino_artifacts: Path) -> Iterator[Captioner]:
    target = request.param
    with Captioner.from_artifacts(openvino_artifacts, target=target, threads=THREADS) as opened:
        yield opened


@pytest.mark.parametrize("rules", RULES)
def test_lossless_on_the_reference_nets(captioner: Captioner, rules: str) -> None:
    """Rows with different prompts in one call, and one by one."""

    def answers(**more: Any) -> list[tuple[int, ...]]:
        return [
            one.token_ids for one in captioner.batch(IMAGES[:4], PROMPTS, **RULES[rules], **more)
        ]

    plain = answers(draft_tokens=0)
    for name, places in DRAFTS.items():
        captioner._drafts, timings = Scripted(plain, *places), Timings()
        assert answers(draft_tokens=3, timings=timings) == plain, name
        if name in ("right", "wrong"):
            assert (timings.tokens_per_pass > 1) == (name == "right")
        one = captioner(IMAGES[1], PROMPTS[1], draft_tokens=5, **RULES[rules])
        assert one.token_ids == plain[1], name


def test_answers_to_questions_are_the_same(openvino_artifacts: Path) -> None:
    asked = [["what color is it?", "how many shapes are there?"]] * 2
    with QuestionAnswerer.from_artifacts(openvino_artifacts, threads=THREADS) as answerer:
        plain = answerer.batch(IMAGES[:2], asked)
        tokens = [one.token_ids for mine in plain for one in mine]
        for places in DRAFTS.values():
            answerer._drafts = Scripted(tokens, *places)
            found = answerer.batch(IMAGES[:2], asked, draft_tokens=2)
            assert [one.token_ids for mine in found for one in mine] == tokens


@pytest.fixture
def folder(exported_artifacts: Path, tmp_path: Path) -> Path:
    """A task's folder without nets, and a list of captions beside it."""
    task = tmp_path / "caption"
    shutil.copytree(exported_artifacts / "caption" / "processor", task / "processor")
    shutil.copy(exported_artifacts / "caption" / "manifest.json", task)
    texts = [caption(scene) for scene in scenes(300, "train")]
    (tmp_path / "captions.txt").write_text("\n".join(texts) + "\n\n")
    return tmp_path


def test_a_table_is_made_listed_and_used(
    folder: Path, exported_artifacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["drafts", str(folder / "captions.txt"), "--artifacts", str(folder)]
    assert main(command) == 0
    assert "entries from 300 texts" in capsys.readouterr().out
    manifest = read_task_manifest(folder / "caption" / "manifest.json")
    first = (folder / "caption" / DRAFT_TABLE).read_bytes()
    assert manifest.files[DRAFT_TABLE].size_bytes == len(first)
    manifest.check_files()
    # The same texts give the same file, and everything else stays.
    assert main(command) == 0
    assert (folder / "caption" / DRAFT_TABLE).read_bytes() == first
    before = json.loads((exported_artifacts / "caption" / "manifest.json").read_text())
    after = json.loads((folder / "caption" / "manifest.json").read_text())
    del after["files"][DRAFT_TABLE]
    assert after == before

    shutil.copytree(exported_artifacts / "caption" / "onnx", folder / "caption" / "onnx")
    with Captioner.from_artifacts(folder, target="onnx", threads=THREADS) as captioner:
        timings = Timings()
        found = [captioner(image, timings=timings) for image in IMAGES]
        assert timings.tokens_per_pass > 1.2
        plain = [captioner(image, draft_tokens=0).token_ids for image in IMAGES]
        assert [one.token_ids for one in found] == plain
    (folder / "caption" / DRAFT_TABLE).write_bytes(first[:-8] + bytes(8))
    with pytest.raises(ArtifactError, match="drafts"):
        Captioner.from_artifacts(folder, target="onnx")


def test_a_table_says_what_mostly_follows(folder: Path) -> None:
    manifest = read_task_manifest(folder / "caption" / "manifest.json")
    tokenizer = TextTokenizer(folder / "caption" / "processor" / "tokenizer.json", manifest.text)
    made = make_table(manifest, tokenizer, ["a red ring", "a red ring", "a red star", "two stars"])
    drafter = Drafter(read_table(made.path, manifest.text.vocabulary_size))
    a_red_ring = [*tokenizer.prompt("a red ring"), manifest.text.end_token_id]
    assert drafter.draft(a_red_ring[:1], 9) == a_red_ring[1:]
    assert drafter.draft(a_red_ring[:3], 1) == a_red_ring[3:4]
    # A context that was never seen falls back to its last tokens.
    assert drafter.draft([11, *a_red_ring[1:3]], 1) == a_red_ring[3:4]
    assert drafter.draft([11, 12], 3) == []
    # What the text had before comes first.
    assert drafter.draft([21, 22, 23, 21, 22], 1) == [23]


@pytest.mark.parametrize("content", [b"", b"no table", np.zeros(3).tobytes()])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "drafts.npy"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="make it again"):
        read_table(path, 199)


def test_a_table_of_other_tokens_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "drafts.npy"
    for table in (np.array([5 << 16 | 200], dtype=np.uint64), np.zeros(0, dtype=np.uint64)):
        np.save(path, table)
        with pytest.raises(ArtifactError, match="make it again"):
            read_table(path, 199)


def test_an_empty_list_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "captions.txt").write_text("\n \n")
    command = ["drafts", str(folder / "captions.txt"), "--artifacts", str(folder)]
    assert main(command) == InputError.exit_code == 2
    assert "no texts" in capsys.readouterr().err
    assert not (folder / "caption" / DRAFT_TABLE).exists()
