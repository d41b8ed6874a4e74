"""What adding up answers explains is what the best weights, fitted by another optimiser, explain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from hf_dgl.method.chance import ChanceLevel, plain_losses
from hf_dgl.method.explained import LATE_FUSION, Explained, part_of_late_fusion
from hf_dgl.method.passes import MULTIMODAL

PROBLEMS = ["single_label_classification", "multi_label_classification", "regression"]
ROWS, CLASSES = 512, 3


def task(problem_type: str, unit: float = 1.0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Labels, and two noisy answers: the first four times too sure of itself, the second a bit too shy."""
    torch.manual_seed(0)
    if problem_type == "regression":
        labels = unit * (5 + torch.randn(ROWS, 2, dtype=torch.float64))
        image, text = (labels + unit * noise * torch.randn(ROWS, 2) for noise in (0.7, 1.2))
        return labels, {"image": 4 * (image - 5 * unit) + 5 * unit, "text": text}
    if problem_type == "multi_label_classification":
        labels = (torch.rand(ROWS, CLASSES) < 0.3).double()
        truth = 2 * labels - 1
    else:
        labels = torch.randint(CLASSES, (ROWS,))
        truth = 2.0 * torch.nn.functional.one_hot(labels, CLASSES)
    return labels, {
        "image": 8 * (truth + torch.randn(ROWS, CLASSES)),
        "text": 0.5 * (truth + torch.randn(ROWS, CLASSES)),
    }


def followed(problem_type: str, labels: torch.Tensor, answers: dict[str, torch.Tensor], steps: int = 150) -> Explained:
    explained = Explained(list(answers), ChanceLevel(problem_type, labels.shape[1] if labels.dim() == 2 else CLASSES))
    for _ in range(steps):
        explained.count({MULTIMODAL: next(iter(answers.values())), **answers}, labels)
        explained.step()
    return explained


def best(problem_type: str, labels: torch.Tensor, answers: dict[str, torch.Tensor], chance: ChanceLevel) -> float:
    """The share of the best weights, found by scipy."""
    constant = chance.constant()
    classes = problem_type == "single_label_classification"
    parts = [(one.double().log_softmax(-1) if classes else one.double()) - constant for one in answers.values()]

    def loss(weights: np.ndarray) -> float:
        answer = constant + sum(w * part for w, part in zip(weights, parts, strict=True))
        return float(plain_losses(problem_type, answer, labels).mean() / chance.value())

    found = minimize(loss, np.full(len(parts), 0.3), bounds=[(0, None)] * len(parts))
    return 1 - found.fun


@pytest.mark.parametrize("problem_type", PROBLEMS)
@pytest.mark.parametrize("unit", [1.0, 1e-4, 1e4])
def test_it_explains_what_the_best_weights_explain(problem_type, unit):
    if unit != 1 and problem_type != "regression":
        pytest.skip("only quantities have a unit")
    labels, answers = task(problem_type, unit)
    explained = followed(problem_type, labels, answers)
    expected = best(problem_type, labels, answers, explained.chance)
    shares = {name: float(share) for name, share in explained.shares().items()}
    assert shares[LATE_FUSION] == pytest.approx(expected, abs=0.01)
    assert shares[LATE_FUSION] > max(shares["image"], shares["text"]) + 0.1  # neither is calibrated
    for name in answers:  # its part is believed as far as it is right, in company and therefore a bit less
        alone = best(problem_type, labels, {name: answers[name]}, explained.chance)
        assert shares[name] < shares[part_of_late_fusion(name)] <= alone + 0.01
        assert shares[part_of_late_fusion(name)] > 0.6 * alone


def test_an_answer_without_meaning_is_ignored():
    labels, answers = task(PROBLEMS[0])
    alone = followed(PROBLEMS[0], labels, {"text": answers["text"]})
    noise = {"image": 20 * torch.randn(ROWS, CLASSES), "text": answers["text"]}
    with_noise = followed(PROBLEMS[0], labels, noise)
    found = [float(explained.shares()[LATE_FUSION]) for explained in (alone, with_noise)]
    assert found[1] == pytest.approx(found[0], abs=0.01) and found[0] > 0.3


def test_what_only_the_combination_tells_is_not_told_by_adding_up():
    torch.manual_seed(0)
    bits = torch.randint(2, (2, 400))
    answers = {name: torch.stack([1.0 - bit, bit], dim=1) for name, bit in zip(("image", "text"), bits, strict=True)}
    explained = Explained(["image", "text"], ChanceLevel("single_label_classification", 2))
    for _ in range(50):
        explained.count({MULTIMODAL: torch.zeros(400, 2), **answers}, bits[0] ^ bits[1])
        explained.step()
    assert float(explained.shares()[LATE_FUSION]) < 0.02


def test_rows_that_lack_a_modality_get_the_constant_answer_from_it():
    labels, answers = task(PROBLEMS[0])
    explained = followed(PROBLEMS[0], labels, answers)
    has_image = torch.arange(ROWS) % 2 == 0
    rows = {"image": has_image, "text": torch.ones(ROWS, dtype=torch.bool)}
    everything = torch.ones(ROWS, dtype=torch.bool)
    (found, *_), _ = explained.late_fusion.answer(answers, rows, labels, everything)
    (whole, *_), _ = explained.late_fusion.answer(answers, {}, labels, everything)
    (text, *_), _ = explained.late_fusion.answer({"text": answers["text"]}, {}, labels, everything)
    assert torch.equal(found[has_image], whole[has_image]) and torch.equal(found[~has_image], text[~has_image])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_is_left_out(value):
    labels, answers = task(PROBLEMS[0])
    explained = followed(PROBLEMS[0], labels, answers, steps=5)
    before = explained.late_fusion.state_dict()
    explained.count({**answers, "image": torch.full((ROWS, CLASSES), value)}, labels)
    explained.step()
    assert explained.late_fusion.state_dict() == before


def test_a_modality_that_is_not_trained_is_still_heard(tmp_path):
    """Its encoder is frozen, so it has no unimodal loss: what it tells counts all the same."""
    from hf_dgl import DGLTrainer, DGLTrainingArguments
    from tests.tiny import tiny_batch, tiny_model

    model = tiny_model(("image", "text"), problem_type="single_label_classification")
    arguments = DGLTrainingArguments(str(tmp_path), method="adaptive_dgl", freeze=["image"], use_cpu=True)
    trainer = DGLTrainer(model, arguments)
    batch = tiny_batch(("image", "text"), 4)
    trainer.compute_loss(trainer.model.train(), batch)
    trainer.explained.step()
    assert set(trainer.explained.known()) == {MULTIMODAL, "image", "text"}
