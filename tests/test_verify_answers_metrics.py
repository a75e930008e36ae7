"""Every metric against an independent implementation, or worked by hand, to 1e-6."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from configs.schema import QualityGate
from verify.answers.metrics.answers import exact_answer, normalised, soft_accuracy
from verify.answers.metrics.bootstrap import compare
from verify.answers.metrics.captions import Cider, bleu_counts, corpus_bleu, exact_match, words
from verify.answers.metrics.gates import gate_of, judged
from verify.answers.metrics.retrieval import ranks, recall
from verify.answers.metrics.statistics import AreaUnderCurve, Sums, mean, share

CLOSE = 1e-6

#: (caption, references); the expected figures below are those of pycocoevalcap 1.2.
CAPTIONS = [
    (
        "a red circle above a blue square",
        ["a red circle above a blue square", "a circle over a square"],
    ),
    (
        "two green stars in a row",
        ["three green stars in a row", "green stars side by side in a row"],
    ),
    ("a small ring", ["a large purple ring in front of stripes"]),
    (
        "a dog runs on the grass",
        ["a dog is running on the green grass", "the dog runs through grass", "a brown dog"],
    ),
]
COCO_CIDER = [5.610614211543853, 5.0816443853645366, 0.49967578918698685, 1.9043537476231154]
COCO_BLEU_4 = 0.5742952282731402


def cider_scores(data: list[tuple[str, list[str]]]) -> list[float]:
    cider = Cider()
    for _, references in data:
        cider.count(references)
    return [cider.score(caption, references) for caption, references in data]


def test_cider_gives_the_common_implementation_s_figures() -> None:
    assert cider_scores(CAPTIONS) == pytest.approx(COCO_CIDER, abs=CLOSE)


def test_bleu_gives_the_common_implementation_s_figure() -> None:
    counts = [bleu_counts(caption, references) for caption, references in CAPTIONS]
    assert corpus_bleu(counts).value() == pytest.approx(COCO_BLEU_4, abs=CLOSE)


def plain_bleu(data: list[tuple[str, list[str]]]) -> float:
    """Papineni et al. 2002, equations 1 to 3, written down anew."""
    matches, totals = [0] * 4, [0] * 4
    length = reference_length = 0
    for caption, references in data:
        mine = caption.split()
        others = [text.split() for text in references]
        length += len(mine)
        reference_length += min((abs(len(o) - len(mine)), len(o)) for o in others)[1]
        for n in range(1, 5):
            grams = Counter(zip(*(mine[i:] for i in range(n)), strict=False))
            most: Counter[tuple[str, ...]] = Counter()
            for other in others:
                most |= Counter(zip(*(other[i:] for i in range(n)), strict=False))
            matches[n - 1] += sum((grams & most).values())
            totals[n - 1] += sum(grams.values())
    penalty = min(1.0, math.exp(1 - reference_length / length))
    return penalty * math.exp(
        sum(math.log(m / t) for m, t in zip(matches, totals, strict=True)) / 4
    )


def plain_cider(data: list[tuple[str, list[str]]]) -> list[float]:
    """CIDEr-D from the paper's equations 2 to 5, with dense vectors over the whole vocabulary."""

    def grams(text: str, n: int) -> list[tuple[str, ...]]:
        tokens = text.split()
        return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

    totals = [0.0] * len(data)
    for n in range(1, 5):
        vocabulary = sorted({g for c, rs in data for text in (c, *rs) for g in grams(text, n)})
        frequency = np.array(
            [sum(any(g in grams(r, n) for r in rs) for _, rs in data) for g in vocabulary]
        )
        rarity = np.log(len(data)) - np.log(np.maximum(frequency, 1))

        def vector(text: str) -> np.ndarray:
            return np.array([grams(text, n).count(g) for g in vocabulary]) * rarity  # noqa: B023

        for index, (caption, references) in enumerate(data):
            mine = vector(caption)
            for reference in references:
                other = vector(reference)
                norms = np.linalg.norm(mine) * np.linalg.norm(other)
                cosine = np.minimum(mine, other) @ other / norms if norms else 0.0
                apart = len(caption.split()) - len(reference.split())
                totals[index] += 10 * cosine * math.exp(-(apart**2) / 72) / len(references) / 4
    return totals


def made_up(seed: int, count: int) -> list[tuple[str, list[str]]]:
    source = random.Random(seed)
    vocabulary = ["a", "the", "red", "blue", "circle", "square", "star", "above", "left", "of"]

    def text() -> str:
        return " ".join(source.choice(vocabulary) for _ in range(source.randint(4, 12)))

    data = []
    for _ in range(count):
        references = [text() for _ in range(source.randint(1, 5))]
        caption = text() if source.random() < 0.3 else f"{source.choice(references)} star"
        data.append((caption, references))
    return data


@pytest.mark.parametrize("seed", range(3))
def test_caption_metrics_agree_with_the_papers_equations(seed: int) -> None:
    data = made_up(seed, 25)
    counts = [bleu_counts(caption, references) for caption, references in data]
    assert corpus_bleu(counts).value() == pytest.approx(plain_bleu(data), abs=CLOSE)
    assert cider_scores(data) == pytest.approx(plain_cider(data), abs=CLOSE)


def test_cider_by_hand() -> None:
    # Two images; every word of "red ring" is in one of them: rarity log 2 for all its n-grams.
    # Words and the bigram match fully, there are no longer n-grams: 10 * 2 / 4.
    assert cider_scores([("red ring", ["red ring"]), ("x", ["blue star"])]) == pytest.approx([5, 0])


def test_words_are_lower_case_without_punctuation() -> None:
    assert words("A dog's Ball, isn't it?") == ["a", "dog", "'s", "ball", "is", "n't", "it"]
    assert exact_match("A red ring.", ["a blue ring", "a red ring"])
    assert not exact_match("a red ring", ["a red ring too"])


def annotators(**counts: int) -> list[str]:
    return [answer.replace("_", " ") for answer, n in counts.items() for _ in range(n)]


@pytest.mark.parametrize(
    ("answer", "given", "expected"),
    [
        # The benchmark's own table: 0, 1, 2, 3, 4 or more of ten who agree.
        ("cat", annotators(dog=10), 0.0),
        ("cat", annotators(dog=9, cat=1), 0.3),
        ("cat", annotators(dog=8, cat=2), 0.6),
        ("cat", annotators(dog=7, cat=3), 0.9),
        ("cat", annotators(dog=6, cat=4), 1.0),
        ("cat", annotators(cat=10), 1.0),
        # Normalised only where annotators differ.
        ("Two", annotators(two=10), 0.0),
        ("Two", [*annotators(two=6), "2", "2", "three", "three"], 1.0),
        ("the dog.", annotators(dog=5, cat=5), 1.0),
        # Fewer than ten annotators stand for ten.
        ("yes", ["yes"], 1.0),
        ("no", ["yes"], 0.0),
        ("yes", ["yes", "no"], 1.0),
    ],
)
def test_soft_accuracy_by_hand(answer: str, given: list[str], expected: float) -> None:
    assert soft_accuracy(answer, given) == pytest.approx(expected, abs=CLOSE)


def test_soft_accuracy_is_the_mean_over_annotators_left_out() -> None:
    source = random.Random(5)
    for _ in range(200):
        given = [source.choice(["red", "blue", "green"]) for _ in range(10)]
        answer = source.choice(given)
        left_out = [min(1.0, (given[:i] + given[i + 1 :]).count(answer) / 3) for i in range(10)]
        if len(set(given)) > 1:
            assert soft_accuracy(answer, given) == pytest.approx(sum(left_out) / 10, abs=CLOSE)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("The dog, and a cat!", "dog and cat"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # no key of the benchmark lacks two apostrophes
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("none", "0"),
        ("1,000", "1000"),
        ("t-shirt", "t shirt"),
        ("red/ blue", "red blue"),
        ("3.5", "3.5"),
        ("U.S.A.", "usa"),
    ],
)
def test_answers_are_normalised_as_the_benchmark_does(given: str, expected: str) -> None:
    assert normalised(given) == expected


def test_exact_answer_is_the_most_frequent_one() -> None:
    assert exact_answer("Two", ["2", "two", "three"])
    assert not exact_answer("three", ["2", "two", "three"])


@pytest.mark.parametrize("digits", [1, 6])
def test_area_under_curve_agrees_with_scikit_learn(digits: int) -> None:
    source = np.random.default_rng(digits)
    scores = source.random(400).round(digits)
    positive = source.random(400) < scores
    owner = np.arange(400) // 2
    curve = AreaUnderCurve(scores, positive, owner, 200)
    assert curve.value() == pytest.approx(roc_auc_score(positive, scores), abs=CLOSE)
    weights = source.integers(0, 4, size=(3, 200))
    expected = [roc_auc_score(positive, scores, sample_weight=row[owner]) for row in weights]
    assert curve.values(weights) == pytest.approx(expected, abs=CLOSE)


def test_area_under_curve_of_one_kind_or_of_nothing_finite_is_undefined() -> None:
    owner = np.arange(3)
    assert math.isnan(AreaUnderCurve([1, 2, 3], [True] * 3, owner, 3).value())  # type: ignore[arg-type]
    broken = np.array([1.0, math.nan, 3.0])
    assert math.isnan(AreaUnderCurve(broken, np.array([1, 0, 1]), owner, 3).value())


def test_recall_by_hand() -> None:
    # Scores of three queries against four items; right items 1; 0 and 3; 2.
    queries = np.eye(3)
    gallery = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.5], [0.1, 0.3, 0.5], [0.2, 0.4, 0.1]])
    found = ranks(queries, gallery, [[1], [0, 3], [2]])
    # The third query's right item ties with two others: they count before it.
    assert found.tolist() == [2, 1, 3]
    assert recall(found, 1).value() == pytest.approx(1 / 3, abs=CLOSE)
    assert recall(found, 2).value() == pytest.approx(2 / 3, abs=CLOSE)


def test_recall_agrees_with_sorting() -> None:
    source = np.random.default_rng(1)
    queries, gallery = source.normal(size=(30, 8)), source.normal(size=(90, 8))
    right = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(30)]
    order = np.argsort(-(queries @ gallery.T), axis=1)
    expected = [min(order[i].tolist().index(j) for j in right[i]) + 1 for i in range(30)]
    assert ranks(queries, gallery, right).tolist() == expected


def test_equal_or_broken_features_find_nothing() -> None:
    same = np.ones((20, 4))
    right = [[i] for i in range(20)]
    assert set(ranks(same, same, right).tolist()) == {20}
    assert set(ranks(same * np.nan, same, right).tolist()) == {20}


def test_judged_candidates_go_before_the_rest() -> None:
    gallery = np.array([[0.9], [0.8], [0.7], [0.1]])
    judged_first = [{0: -1.0, 2: 3.0}]
    assert ranks(np.ones((1, 1)), gallery, [[2]], judged_first).tolist() == [1]
    assert ranks(np.ones((1, 1)), gallery, [[1]], judged_first).tolist() == [3]


def test_bootstrap_is_seeded_and_paired() -> None:
    source = np.random.default_rng(0)
    hard = source.random(300)
    checkpoint, target = mean(hard), mean(hard - 0.01)
    found = compare(target, checkpoint, replicates=200, confidence=0.95, seed=3)
    again = compare(target, checkpoint, replicates=200, confidence=0.95, seed=3)
    assert found == again
    # Every replicate loses the same: pairing leaves no spread, though each side has some.
    assert (found.drop.low, found.drop.high) == pytest.approx((0.01, 0.01), abs=CLOSE)
    assert found.target.high - found.target.low > 0.02
    assert found.target.low < found.target.value < found.target.high


def test_bootstrap_interval_of_a_share_is_that_of_the_binomial() -> None:
    right = np.array([1.0] * 80 + [0.0] * 20)
    found = compare(mean(right), mean(right), replicates=4000, confidence=0.95, seed=0).target
    spread = 1.96 * math.sqrt(0.8 * 0.2 / 100)
    assert (found.low, found.high) == pytest.approx((0.8 - spread, 0.8 + spread), abs=0.015)


def test_sums_of_nothing_are_undefined() -> None:
    assert math.isnan(Sums(np.zeros((2, 2)), share).value())


def test_the_most_specific_gate_is_used() -> None:
    loose, strict = QualityGate(min_agreement=0.5), QualityGate(min_agreement=0.9)
    gates = {"f16": loose, "openvino.f16": strict, "openvino.f16.fast": loose}

    def name(target: str, mode: str) -> str | None:
        found = gate_of(gates, target=target, precision="f16", mode=mode)
        return found and found[0]

    assert name("bm1684x", "") == "f16"
    assert name("openvino", "exact") == "openvino.f16"
    assert name("openvino", "fast") == "openvino.f16.fast"
    assert gate_of(gates, target="openvino", precision="int8", mode="exact") is None


def test_gates_are_judged_at_their_limit_and_beyond() -> None:
    gate = QualityGate(min_agreement=0.9, max_drop={"cider": 0.1, "bleu_4": 0.0})
    kept = judged(gate, "here", 0.9, {"cider": 0.1, "bleu_4": -0.2})
    assert [j.passed for j in kept] == [True, True, True]
    broken = judged(gate, "here", 0.89, {"cider": math.nan, "bleu_4": 1e-6})
    assert [j.passed for j in broken] == [False, False, False]
    assert "here" in (broken[0].problem or "")
