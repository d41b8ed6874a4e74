from __future__ import annotations

import math

import pytest

from hf_dgl.training.answer_metrics import ANSWER_METRICS, ExactMatch, VqaAccuracy, WordErrorRate, score_answers


@pytest.mark.parametrize(
    "answers, references, exact, vqa, wer",
    [
        (["yes"], ["yes"], 1.0, 1.0, 0.0),
        ([" YES "], ["yes"], 1.0, 1.0, 0.0),
        (["A cat."], ["cat"], 0.0, 1.0, 1.0),  # an article too many, of one word
        (["two"], ["2"], 0.0, 1.0, 1.0),
        ([""], ["left lung"], 0.0, 0.0, 1.0),
        (["the cat sat"], ["the cat sat down"], 0.0, 0.0, 0.25),
        (["no", "yes"], ["yes", "yes"], 0.5, 0.5, 0.5),
        (["red"], [["red"] * 2 + ["blue"] * 8], 1.0, 2 / 3, 0.0),
        (["red"], [["red"] * 4 + ["blue"] * 6], 1.0, 1.0, 0.0),
        (["red car"], [["blue", "red cars"]], 0.0, 0.0, 0.5),
    ],
)
def test_scores(answers, references, exact, vqa, wer):
    found = score_answers(answers, references)
    assert found == pytest.approx({"exact_match": exact, "vqa_accuracy": vqa, "wer": wer})


def test_they_are_evaluate_modules():
    for metric in (ExactMatch(), VqaAccuracy(), WordErrorRate()):
        alone = metric.compute(predictions=["a b", "c"], references=["a b", "d"])
        several = metric.compute(predictions=["a b", "c"], references=[["a b"], ["d", "e"]])
        assert alone.keys() == several.keys() and len(ANSWER_METRICS) == 3


def test_references_without_words_have_no_error_rate():
    assert math.isnan(score_answers(["yes"], ["..."])["wer"])


def test_nothing_to_score():
    with pytest.raises(ValueError, match="no answers"):
        score_answers([], [])
