import doctest
import os
import warnings

import evaluate
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from transformers import EvalPrediction

from hf_dgl.training import metrics
from hf_dgl.training.metrics import (
    F1,
    Accuracy,
    MeanAbsoluteError,
    MeanAveragePrecision,
    ModalityGap,
    Pearson,
    compute_metrics_for,
)

SINGLE, MULTI, REGRESSION = metrics.SCORERS
quick = settings(deadline=None, max_examples=25)


def problem(problem_type, seed, num_rows=40, num_classes=4, missing=0.3):
    """Random predictions of two modalities and their fusion; the second modality lacks some rows."""
    rng = np.random.default_rng(seed)
    width = 1 if problem_type == REGRESSION else num_classes
    outputs = {name: rng.normal(size=(num_rows, width)) for name in ("logits", "image", "text")}
    outputs["text"][rng.uniform(size=num_rows) < missing] = np.nan
    labels = {
        SINGLE: rng.integers(num_classes, size=num_rows),
        MULTI: (rng.uniform(size=(num_rows, num_classes)) < 0.4).astype(np.float32),
        REGRESSION: rng.normal(size=num_rows),
    }[problem_type]
    return outputs, labels


def scores(problem_type, outputs, labels):
    return compute_metrics_for(problem_type, ["image", "text"])(EvalPrediction(outputs, labels))


@quick
@given(st.integers(0, 10_000))
def test_equal_to_scikit_learn(seed):
    outputs, labels = problem(SINGLE, seed)
    found = scores(SINGLE, outputs, labels)
    there = ~np.isnan(outputs["text"][:, 0])
    for suffix, logits, rows in [
        ("", "logits", slice(None)),
        ("_image", "image", slice(None)),
        ("_text", "text", there),
    ]:
        predicted, wanted = outputs[logits][rows].argmax(1), labels[rows]
        assert found[f"accuracy{suffix}"] == sk.accuracy_score(wanted, predicted)
        assert found[f"f1{suffix}"] == sk.f1_score(wanted, predicted, average="macro", zero_division=0)
        assert found[f"f1_micro{suffix}"] == sk.f1_score(wanted, predicted, average="micro")
    assert found["modality_gap"] == abs(found["accuracy_image"] - found["accuracy_text"])

    outputs, labels = problem(MULTI, seed)
    found = scores(MULTI, outputs, labels)
    assert found["map"] == pytest.approx(
        np.mean([sk.average_precision_score(labels[:, c], outputs["logits"][:, c]) for c in range(4)])
    )
    assert found["f1"] == sk.f1_score(labels, outputs["logits"] > 0, average="macro")

    outputs, labels = problem(REGRESSION, seed)
    found = scores(REGRESSION, outputs, labels)
    there = ~np.isnan(outputs["text"][:, 0])
    assert found["mae_text"] == pytest.approx(np.abs(outputs["text"][there, 0] - labels[there]).mean())
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(outputs["logits"][:, 0], labels)[0])


@quick
@given(st.sampled_from([SINGLE, MULTI, REGRESSION]), st.integers(0, 10_000))
def test_order_of_rows_does_not_matter(problem_type, seed):
    outputs, labels = problem(problem_type, seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = scores(problem_type, {name: array[order] for name, array in outputs.items()}, labels[order])
    assert scores(problem_type, outputs, labels) == pytest.approx(shuffled)


@quick
@given(st.sampled_from([SINGLE, MULTI, REGRESSION]), st.integers(0, 10_000))
def test_rows_without_label_do_not_count(problem_type, seed):
    outputs, labels = problem(problem_type, seed)
    extra = {name: np.concatenate([array, array[:5]]) for name, array in outputs.items()}
    ignored = np.full_like(labels[:5], np.nan if problem_type == REGRESSION else metrics.IGNORED_LABEL)
    assert scores(problem_type, extra, np.concatenate([labels, ignored])) == scores(problem_type, outputs, labels)


def test_minus_100_is_a_possible_regression_label():
    found = compute_metrics_for(REGRESSION, [])(EvalPrediction(np.array([-99.0, 1.0]), np.array([-100.0, 1.0])))
    assert found["mae"] == 0.5


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_results_are_plain_floats(problem_type):
    found = scores(problem_type, *problem(problem_type, 0))
    assert all(type(value) is float for value in found.values()), found
    assert "modality_gap" in found


def test_modality_that_is_nowhere_has_no_entry_and_makes_no_gap():
    outputs, labels = problem(SINGLE, 0, missing=1.0)
    found = scores(SINGLE, outputs, labels)
    assert not any("text" in key or key == "modality_gap" for key in found)
    del outputs["text"]
    assert scores(SINGLE, outputs, labels) == found


def test_bare_logits_are_the_fused_ones():
    outputs, labels = problem(SINGLE, 0)
    found = scores(SINGLE, outputs["logits"], labels)
    assert set(found) == {"accuracy", "f1", "f1_micro"}


def test_perfect_predictions():
    labels = np.arange(10) % 3
    outputs = {name: np.eye(3)[labels] for name in ("logits", "image", "text")}
    found = scores(SINGLE, outputs, labels)
    assert found.pop("modality_gap") == 0
    assert set(found.values()) == {1.0}


def test_classes_without_a_positive_row_do_not_count_towards_map():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = MeanAveragePrecision().compute(predictions=[[0.9, 0.5], [0.1, 0.6]], references=[[1, 0], [0, 0]])
        nothing = MeanAveragePrecision().compute(predictions=[[0.9, 0.5]], references=[[0, 0]])
    assert result == {"map": 1.0}
    assert np.isnan(nothing["map"])


def test_undefined_correlation_is_nan():
    assert np.isnan(Pearson().compute(predictions=[1.0, 1.0], references=[1.0, 2.0])["pearson"])
    assert np.isnan(Pearson().compute(predictions=[1.0], references=[1.0])["pearson"])


def test_modality_gap_skips_rows_where_a_modality_is_missing():
    result = ModalityGap().compute(predictions=[[0, 0, -100], [1, 0, -100], [1, -100, -100]], references=[0, 1, 1])
    assert result == {"modality_gap": 0.5}
    assert np.isnan(ModalityGap().compute(predictions=[[-100]], references=[0])["modality_gap"])


@pytest.mark.parametrize(
    ("metric", "batches"),
    [
        (Accuracy, [([0, 1, 1], [0, 1, 0]), ([2], [2])]),
        (F1, [([0, 1, 1], [0, 1, 0]), ([2], [2])]),
        (F1, [([[0, 1], [1, 1]], [[0, 1], [1, 0]]), ([[1, 0]], [[1, 0]])]),
        (MeanAveragePrecision, [([[0.1, 0.9], [0.8, 0.7]], [[0, 1], [1, 0]]), ([[0.6, 0.6]], [[1, 0]])]),
        (MeanAbsoluteError, [([0.5, 1.0], [0.0, 1.0]), ([3.0], [2.0])]),
    ],
)
def test_modules_add_up_uneven_batches_in_memory(metric, batches, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    module = metric()
    for predictions, references in batches:
        module.add_batch(predictions=np.asarray(predictions), references=np.asarray(references))
    together = module.compute()
    predictions, references = (np.concatenate([np.asarray(batch[i]) for batch in batches]) for i in (0, 1))
    assert together == metric.score(predictions, references)
    assert isinstance(module, evaluate.Metric)
    assert os.listdir(tmp_path) == [], "no cache folder, no files"


def test_several_modules_as_one():
    combined = evaluate.combine([Accuracy(), F1()])
    assert combined.compute(predictions=[0, 1], references=[0, 1]) == {"accuracy": 1.0, "f1": 1.0, "f1_micro": 1.0}


def test_a_users_metrics_per_modality_see_arrays_and_their_own_rows():
    outputs, labels = problem(SINGLE, 0)
    inputs = {"text": {"input_ids": np.arange(40)}}
    there = ~np.isnan(outputs["text"][:, 0])

    def compute_metrics(prediction):
        assert len(prediction.predictions) == len(prediction.label_ids)
        return {"inputs": int(prediction.inputs["text"]["input_ids"].sum())}

    found = metrics.per_modality(compute_metrics)(EvalPrediction(outputs, labels, inputs=inputs))
    assert found == {"inputs": 780, "inputs_image": 780, "inputs_text": int(np.arange(40)[there].sum())}
    assert metrics.per_modality(lambda p: {"n": len(p.predictions)})(EvalPrediction(labels, labels)) == {"n": 40}


def test_the_first_of_several_outputs_is_scored():
    outputs, labels = problem(SINGLE, 0)
    several = {**outputs, "logits": (outputs["logits"], np.zeros((40, 2, 7)))}
    assert scores(SINGLE, several, labels) == scores(SINGLE, outputs, labels)


def test_bad_input():
    with pytest.raises(ValueError, match="Unknown problem_type 'regresion': did you mean 'regression'"):
        compute_metrics_for("regresion", [])
    with pytest.raises(ValueError, match="None of the 2 evaluated rows has a label"):
        compute_metrics_for(SINGLE, [])(EvalPrediction(np.zeros((2, 3)), np.array([-100, -100])))
    with pytest.raises(ValueError, match="3 fused predictions are NaN: the model has diverged"):
        compute_metrics_for(SINGLE, [])(EvalPrediction(np.array([[1.0, 0, 0], [np.nan] * 3]), np.array([0, 1])))


def test_examples():
    result = doctest.testmod(metrics)
    assert result.attempted > 5
    assert result.failed == 0
