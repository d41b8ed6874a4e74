"""Missing modalities and calibration against numbers computed by hand, and against the model's own forward."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_dgl.analysis import robustness
from hf_dgl.analysis.answers import Answers, answers, answers_of, without
from hf_dgl.analysis.probes import pooled_features
from hf_dgl.analysis.robustness import (
    calibration_errors,
    check_rates,
    expected_calibration_error,
    lost_modality,
    score_with_missing,
)
from hf_dgl.recipe.finetune import finetune, trainer_to_score
from hf_dgl.recipe.recipe import make_recipe
from tests.analysis.test_contributions import build, collate, rows
from tests.recipes import tiny_recipe

SINGLE = "single_label_classification"
THREE = ("image", "audio", "text")


def everything(names: Any) -> list[frozenset[str]]:
    return [frozenset(names), *(without(name, names) for name in names), *(frozenset({name}) for name in names)]


def test_ece_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.65, 0.55])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = [0, 1, 0, 1]  # right, wrong, right, wrong
    # bin 15 holds two, half of them right; bins 10 and 9 one each
    expected = 2 / 4 * abs(0.5 - 0.95) + 1 / 4 * abs(1 - 0.65) + 1 / 4 * abs(0 - 0.55)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected)
    assert expected_calibration_error(probabilities, labels, num_bins=1) == pytest.approx(abs(0.5 - 3.1 / 4))


def test_ece_of_certain_and_of_calibrated_answers() -> None:
    assert expected_calibration_error(np.eye(3), [0, 1, 2]) == 0
    assert expected_calibration_error(np.eye(3), [1, 2, 0]) == 1
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), size=50_000)
    labels = (probabilities.cumsum(1) > generator.random((50_000, 1))).argmax(1)  # drawn as the probabilities say
    assert expected_calibration_error(probabilities, labels) < 0.01


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.75, 1.0])
def test_so_many_rows_lose_one_of_what_they_have(rate: float) -> None:
    has = np.ones((30_000, 3), dtype=bool)
    lost = lost_modality(has, rate)
    shares = [float((lost == index).mean()) for index in (-1, 0, 1, 2)]
    assert shares == pytest.approx([1 - rate, rate / 3, rate / 3, rate / 3], abs=0.01)
    has[:, 1] = False
    lost = lost_modality(has, rate)
    assert not (lost == 1).any() and float((lost == 2).mean()) == pytest.approx(rate / 2, abs=0.01)
    has[:, 0] = False  # the last one is never lost
    assert (lost_modality(has, rate) == -1).all()


def test_what_is_lost_at_a_rate_is_lost_at_a_higher_one() -> None:
    has = np.ones((500, 2), dtype=bool)
    few, many = lost_modality(has, 0.25), lost_modality(has, 0.5)
    assert (many[few >= 0] == few[few >= 0]).all() and (many >= 0).sum() > (few >= 0).sum()
    assert (lost_modality(has, 0.5) == many).all()  # the same rows for every model


@pytest.mark.parametrize("names", [("image", "text"), THREE], ids=len)
def test_rows_are_answered_as_by_the_model_without_what_they_lost(names: tuple[str, ...]) -> None:
    model, data = build("cross_attention", *names), rows(*names)
    found = answers(model, collate, data, everything(names), batch_size=4)
    lost = lost_modality(np.ones((10, len(names)), dtype=bool), 0.7)
    assert len(set(lost.tolist())) > 2
    right = 0
    for row, index in zip(data, lost, strict=True):
        batch = collate([row])
        label = batch.pop("labels").item()
        given = {name: part for name, part in batch.items() if index < 0 or name != names[index]}
        with torch.no_grad():
            right += int(model(**given).logits.argmax().item() == label)
    assert score_with_missing(found, 0.7) == pytest.approx(right / 10)
    assert score_with_missing(found, 0.0) == pytest.approx(
        float((found.logits[frozenset(names)].argmax(1) == found.labels).mean())
    )


def test_answers_have_the_precision_of_an_evaluation(tmp_path: Path) -> None:
    """What is scored with modalities missing stands beside test scores that a bf16 Trainer made."""
    recipe = make_recipe(tiny_recipe(tmp_path, bf16=True))
    finetune(recipe)
    recipe.training.bf16 = False
    plain = answers_of(tmp_path, recipe)
    recipe.training.bf16 = True
    trainer, parts = trainer_to_score(tmp_path, recipe)
    expected: Any = trainer.predict_each_modality(parts.splits["evaluated"]).predictions
    fused = frozenset({"image", "text"})
    found = answers_of(tmp_path, recipe).logits[fused]
    np.testing.assert_array_equal(found, expected["logits"])
    assert np.abs(found - plain.logits[fused]).max() > 1e-5
    probed, precise = (
        pooled_features(parts.model, parts.collator, parts.splits["evaluated"], autocast=dtype)[0]
        for dtype in (torch.bfloat16, None)
    )
    assert 1e-5 < np.abs(probed["text"] - precise["text"]).max() < 0.1


def test_rows_of_the_data_that_lack_something() -> None:
    model, data = build("concat", "image", "text"), rows("image", "text", missing="text")
    found = answers(model, collate, data, everything(("image", "text")), batch_size=3)
    assert found.has["image"].all() and found.has["text"].tolist() == [index % 3 != 0 for index in range(10)]
    full = found.logits[frozenset({"image", "text"})]
    kept = found.logits[frozenset({"image"})]
    np.testing.assert_allclose(full[0], kept[0], rtol=1e-5)  # without text in any case
    assert 0 <= score_with_missing(found, 1.0) <= 1
    errors = calibration_errors(found)
    assert set(errors) == {"fused", "image", "text"} and all(0 <= error <= 1 for error in errors.values())


def test_calibration_reads_the_softmax_of_the_logits() -> None:
    both, one = frozenset({"image", "text"}), frozenset({"text"})
    logits = np.log(np.array([[0.8, 0.2], [0.6, 0.4]]))
    alone = np.array([[np.nan, np.nan], [0.0, 0.0]])  # the first row has no text
    has = {"image": np.array([True, True]), "text": np.array([False, True])}
    given = {both: logits, frozenset({"image"}): logits, one: alone}
    errors = calibration_errors(Answers(given, np.array([0, 1]), has, SINGLE))
    assert errors["fused"] == pytest.approx((0.2 + 0.6) / 2)
    assert errors["text"] == pytest.approx(0.5)  # says class 0 with .5, and it is 1


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"shares of the rows from 0 to 1, e.g. 0.25 0.5, got 25"):
        check_rates([0.5, 25])
    one = Answers({frozenset({"image"}): np.zeros((1, 2))}, np.array([0]), {"image": np.array([True])}, SINGLE)
    with pytest.raises(ValueError, match=r"one modality \(image\), and that is never removed"):
        score_with_missing(one, 0.5)
    assert calibration_errors(one) == {"fused": 0.5}
    with pytest.raises(ValueError, match="`problem_type` is 'regression'"):
        calibration_errors(one._replace(problem_type="regression"))


def test_examples() -> None:
    runner = doctest.DocTestRunner()
    for function in (expected_calibration_error, lost_modality, check_rates):
        for example in doctest.DocTestFinder(recurse=False).find(function, globs={**vars(robustness)}):
            runner.run(example)
    assert runner.summarize().failed == 0 and runner.tries == 3
