"""Metrics of written answers: `evaluate` modules that need neither the Hub nor a cache folder.

| module | result | what counts | from |
|---|---|---|---|
| `ExactMatch` | `exact_match` | equal, but for case and white space | - |
| `VqaAccuracy` | `vqa_accuracy` | equal after VQA's normalisation; of several people's answers, min(same / 3, 1) | Antol et al., "VQA", ICCV 2015 |
| `WordErrorRate` | `wer` | (substitutions + deletions + insertions) / words of the references; lower is better | - |

References are texts, or lists of texts (several people's answers): `exact_match` and `wer` take the nearest.
"""  # noqa: E501

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

from .metrics import OfflineMetric

_TEXT = datasets.Value("string")
_COLUMNS = [
    datasets.Features({"predictions": _TEXT, "references": _TEXT}),
    datasets.Features({"predictions": _TEXT, "references": datasets.List(_TEXT)}),
]
_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_PEOPLE = 3  # that have to agree with an answer for it to be wholly right


class AnswerMetric(OfflineMetric):
    """Of texts, with one reference or several for each."""

    inputs = "predictions: texts [N]; references: texts [N], or lists of texts"
    columns = _COLUMNS

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return self.score_texts(predictions, references)

    @staticmethod
    def score_texts(predictions: Sequence[str], references: Sequence[Any]) -> dict[str, float]:
        """`compute` for texts at hand."""
        raise NotImplementedError


class ExactMatch(AnswerMetric):
    """Share of answers that are a reference, but for case and white space.

    Example:
        >>> ExactMatch().compute(predictions=["Yes", "a cat"], references=["yes", "cat"])
        {'exact_match': 0.5}
    """

    description = "Share of answers that are a reference, but for case and white space."

    @staticmethod
    def score_texts(predictions: Sequence[str], references: Sequence[Any]) -> dict[str, float]:
        same = [
            _plain(answer) in map(_plain, _listed(found))
            for answer, found in zip(predictions, references, strict=True)
        ]
        return {"exact_match": float(np.mean(same))}


class VqaAccuracy(AnswerMetric):
    """VQA's accuracy: an answer is right as far as people gave it, min(same / 3, 1); with one or two, as any gave it.

    Case, punctuation, articles and number words make no difference. (The official script averages over all subsets of
    nine of ten people; this is its formula as published.)

    Example:
        >>> VqaAccuracy().compute(predictions=["A cat."], references=["cat"])
        {'vqa_accuracy': 1.0}
    """

    description = "VQA accuracy: min(number of people who gave this answer / 3, 1), after normalisation."

    @staticmethod
    def score_texts(predictions: Sequence[str], references: Sequence[Any]) -> dict[str, float]:
        scores = []
        for answer, found in zip(predictions, references, strict=True):
            people = [normalised(text) for text in _listed(found)]
            scores.append(min(1.0, people.count(normalised(answer)) / min(_PEOPLE, max(1, len(people)))))
        return {"vqa_accuracy": float(np.mean(scores))}


class WordErrorRate(AnswerMetric):
    """Words that have to be changed, left out or put in, per word of the references; case and punctuation aside.

    NaN if the references have no words.

    Example:
        >>> WordErrorRate().compute(predictions=["the cat sat"], references=["the cat sat down"])
        {'wer': 0.25}
    """

    description = "Word error rate; lower is better."

    @staticmethod
    def score_texts(predictions: Sequence[str], references: Sequence[Any]) -> dict[str, float]:
        errors, total = 0, 0
        for answer, found in zip(predictions, references, strict=True):
            words = _words(answer)
            nearest = min((_edits(words, _words(text)), len(_words(text))) for text in _listed(found))
            errors, total = errors + nearest[0], total + nearest[1]
        return {"wer": errors / total if total else float("nan")}


ANSWER_METRICS: tuple[type[AnswerMetric], ...] = (ExactMatch, VqaAccuracy, WordErrorRate)


def score_answers(predictions: Sequence[str], references: Sequence[Any]) -> dict[str, float]:
    """All metrics of this file.

    Args:
        predictions: Written answers.
        references: For each a text, or a list of texts.

    Example:

        >>> score_answers(["yes"], ["Yes"])
        {'exact_match': 1.0, 'vqa_accuracy': 1.0, 'wer': 0.0}
    """
    if len(predictions) == 0:
        raise ValueError("There are no answers to score.")
    found: dict[str, float] = {}
    for metric in ANSWER_METRICS:
        found |= metric.score_texts(predictions, references)
    return found


def normalised(answer: str) -> str:
    """As VQA compares answers: lower case, no punctuation, no articles, digits for number words.

    Example:

        >>> normalised("The two cats.")
        '2 cats'
    """
    return " ".join(_NUMBERS.get(word, word) for word in _words(answer) if word not in _ARTICLES)


def _listed(reference: Any) -> list[str]:
    return [str(text) for text in reference] if isinstance(reference, (list, tuple)) else [str(reference)]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _words(text: str) -> list[str]:
    return re.sub(f"[{re.escape(string.punctuation)}]", " ", text.lower().replace("'", "")).split()


def _edits(first: Sequence[str], second: Sequence[str]) -> int:
    """Levenshtein distance of two sequences of words."""
    row = list(range(len(second) + 1))
    for i, word in enumerate(first, start=1):
        above, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (word != other))
    return row[-1]
