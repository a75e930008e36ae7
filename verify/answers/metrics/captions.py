"""Caption metrics: exact match, corpus BLEU-4 and CIDEr-D."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from verify.answers.metrics.statistics import Floats, Sums

LONGEST_NGRAM = 4
#: Width of CIDEr-D's penalty for a different length, in words.
LENGTH_SIGMA = 6.0
#: CIDEr is reported times ten.
CIDER_SCALE = 10.0

_CLITIC = re.compile(r"(?<=\w)(n't|'s|'re|'ve|'ll|'d|'m)\b")
_WORD = re.compile(r"n't|'(?:s|re|ve|ll|d|m)\b|\w+(?:[-.,]\w+)*")

Ngram = tuple[str, ...]


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; clitics stand alone, as in the Penn Treebank.

    The COCO evaluation tokenises so with a Java program; ours differs from it in rare cases
    (abbreviations, quotes, unusual symbols).
    """
    return _WORD.findall(_CLITIC.sub(r" \1", text.lower().replace("\u2019", "'")))


def exact_match(caption: str, references: Iterable[str]) -> bool:
    """Whether the caption's words are those of one of its references."""
    found = words(caption)
    return any(found == words(reference) for reference in references)


def bleu_counts(caption: str, references: Sequence[str]) -> list[int]:
    """What corpus BLEU sums: matching n-grams, n-grams (one to four), both lengths."""
    from sacrebleu.metrics.bleu import BLEU

    # The sentence's own score, which `effective_order` is about, is not used.
    scorer = BLEU(tokenize="none", max_ngram_order=LONGEST_NGRAM, effective_order=True)
    score = scorer.sentence_score(_joined(caption), [_joined(text) for text in references])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def corpus_bleu(counts: Sequence[Sequence[int]]) -> Sums:
    """Corpus BLEU-4 between 0 and 1 (Papineni et al., 2002), without smoothing, by sacrebleu."""
    return Sums(np.asarray(counts, dtype=np.float64).reshape(-1, 10), _bleu)


def _bleu(sums: Floats) -> Floats:
    from sacrebleu.metrics.bleu import BLEU

    values = []
    for row in np.rint(sums).astype(np.int64).tolist():
        score = BLEU.compute_bleu(
            correct=row[:4],
            total=row[4:8],
            sys_len=row[8],
            ref_len=row[9],
            smooth_method="none",
            max_ngram_order=LONGEST_NGRAM,
        )
        values.append(score.score / 100.0)
    return np.array(values)


class Cider:
    """CIDEr-D of single captions (Vedantam et al., 2015), with document frequencies of a data set.

    Two passes over the data set, nothing kept but how many images have each n-gram: the common
    implementation keeps every n-gram of every caption in memory. The same figures otherwise.
    """

    def __init__(self) -> None:
        self._frequency: Counter[Ngram] = Counter()
        self._images = 0

    def count(self, references: Iterable[str]) -> None:
        """First pass: the references of one image."""
        self._frequency.update({n for text in references for n in _ngrams(words(text))})
        self._images += 1

    def score(self, caption: str, references: Sequence[str]) -> float:
        """Second pass: one caption; between 0 and 10, a data set's score is the mean."""
        if not references:
            return 0.0
        vectors, norms, length = self._vectors(words(caption))
        similarity = 0.0
        for reference in references:
            others, other_norms, other_length = self._vectors(words(reference))
            penalty = math.exp(-((length - other_length) ** 2) / (2 * LENGTH_SIGMA**2))
            for mine, theirs, norm, other_norm in zip(
                vectors, others, norms, other_norms, strict=True
            ):
                if norm and other_norm:
                    product = sum(
                        min(weight, theirs[ngram]) * theirs[ngram]
                        for ngram, weight in mine.items()
                        if ngram in theirs
                    )
                    similarity += penalty * product / (norm * other_norm)
        return CIDER_SCALE * similarity / LONGEST_NGRAM / len(references)

    def _vectors(self, tokens: Sequence[str]) -> tuple[list[dict[Ngram, float]], list[float], int]:
        vectors: list[dict[Ngram, float]] = [{} for _ in range(LONGEST_NGRAM)]
        images = math.log(max(1, self._images))
        for ngram, count in _ngrams(tokens).items():
            rarity = images - math.log(max(1, self._frequency.get(ngram, 0)))
            vectors[len(ngram) - 1][ngram] = count * rarity
        norms = [math.sqrt(sum(weight**2 for weight in vector.values())) for vector in vectors]
        # The common implementation measures length in bigrams.
        return vectors, norms, max(0, len(tokens) - 1)


def _ngrams(tokens: Sequence[str]) -> Counter[Ngram]:
    return Counter(
        tuple(tokens[start : start + size])
        for size in range(1, LONGEST_NGRAM + 1)
        for start in range(len(tokens) - size + 1)
    )


def _joined(text: str) -> str:
    return " ".join(words(text))
