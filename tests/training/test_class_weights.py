from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import EarlyStoppingCallback, PreTrainedConfig

from hf_dgl.recipe.finetune import finetune
from hf_dgl.recipe.recipe import load_recipe, make_recipe
from hf_dgl.training.class_weights import weighted_loss
from hf_dgl.training.trainer import DGLTrainer
from tests.recipes import tiny_recipe
from tests.training.small import assert_same, build, small_model, small_rows, weights

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
LABELS = [0, 0, 0, 0, 1, 1, 2, -100]
MULTI_HOT = [[1, 0, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0], [-100, 0, 0]]


def config(problem_type=SINGLE, names=("cat", "dog", "owl")):
    return PreTrainedConfig(problem_type=problem_type, id2label=dict(enumerate(names)))


def rows(labels, name="labels"):
    return [{name: label} for label in labels]


@pytest.mark.parametrize("make", [rows, lambda labels: Dataset.from_list(rows(labels, "label"))])
def test_balanced(make):
    single = weighted_loss("balanced", config(), make(LABELS)).weights  # scikit-learn's rows / (classes * count)
    torch.testing.assert_close(single, torch.tensor([7 / 12, 7 / 6, 7 / 3]))
    multi = weighted_loss("balanced", config(MULTI), make(MULTI_HOT)).weights  # negative / positive rows
    torch.testing.assert_close(multi, torch.tensor([1.0, 3.0, 3.0]))  # the first has no negative row


@pytest.mark.parametrize("wanted", [{"dog": 3.0}, {"1": 3.0}])
def test_by_name(wanted):
    assert weighted_loss(wanted, config(), None).weights.tolist() == [1.0, 3.0, 1.0]


def test_the_losses_are_torchs():
    logits, labels = torch.randn(8, 3, dtype=torch.float64), torch.tensor(LABELS)
    loss = weighted_loss({"dog": 3.0, "owl": 0.5}, config(), None)
    weight = loss.weights.double()
    torch.testing.assert_close(loss({"logits": logits}, labels), functional.cross_entropy(logits, labels, weight))
    loss = weighted_loss({"dog": 3.0, "owl": 0.5}, config(MULTI), None)
    labels = torch.tensor(MULTI_HOT[:4]).double()
    expected = functional.binary_cross_entropy_with_logits(logits[:4], labels, pos_weight=weight)
    torch.testing.assert_close(loss((logits[:4],), labels), expected)


@pytest.mark.parametrize("problem_type", [SINGLE, pytest.param(MULTI, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["dgl", *(pytest.param(m, marks=pytest.mark.slow) for m in ("joint", "auxiliary"))])
def test_however_a_batch_is_cut(tmp_path, problem_type, method):
    results = []
    for size, parts in ((8, 1), (4, 2), (2, 4)):
        trainer = build(
            tmp_path,
            model=small_model(problem_type).double(),
            method=method,
            class_weights={"LABEL_0": 3.0, "LABEL_2": 0.5},
            train_dataset=small_rows(24, problem_type),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            optim="sgd",
        )
        trainer.train()
        results.append(weights(trainer))
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(value, other[name], rtol=1e-9, atol=1e-12)


def test_equal_weights_change_nothing_and_others_do(tmp_path):
    plain, equal, other = (build(tmp_path, class_weights=w, optim="sgd") for w in (None, "balanced", {"LABEL_0": 5}))
    for trainer in (plain, equal, other):
        trainer.train()
    for name, value in weights(plain).items():
        torch.testing.assert_close(value, weights(equal)[name], rtol=1e-5, atol=1e-6)
    moved = [name for name, value in weights(other).items() if not torch.allclose(value, weights(plain)[name])]
    assert {"image_encoder.0.weight", "text_encoder.0.weight", "head.weight"} <= set(moved)


def test_one_step_is_the_users_own_weighted_loss(tmp_path):
    def own(outputs, labels, num_items_in_batch=None):
        return functional.cross_entropy(outputs["logits"], labels, weight=torch.tensor([5.0, 1.0, 1.0]))

    results = []
    for settings in ({"class_weights": {"LABEL_0": 5}}, {"compute_loss_func": own}):
        trainer = build(tmp_path, method="dgl", optim="sgd", max_steps=2, **settings)
        trainer.train()
        results.append(weights(trainer))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name])


class OwnLoss(DGLTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": "balancd"}, "got 'balancd': did you mean 'balanced'"),
        ({"class_weights": {"LABEL_0": "much"}}, "expected `balanced`, or one number"),
        ({"class_weights": {"LABEL_0": -1}}, "0 or more"),
        ({"class_weights": {"LABEL_9": 1}}, "unknown class 'LABEL_9': did you mean 'LABEL_"),
        ({"class_weights": "balanced", "label_smoothing_factor": 0.1}, "both say what the loss is"),
        ({"class_weights": "balanced", "compute_loss_func": len}, "`class_weights` and `compute_loss_func`"),
        ({"class_weights": "balanced", "train_dataset": [{"image": 1}]}, "found no column `label`"),
        ({"class_weights": "balanced", "train_dataset": rows("ab")}, "expects class ids as labels, got"),
        ({"class_weights": "balanced", "model": small_model("regression")}, "`config.problem_type` is 'regression'"),
        ({"class_weights": "balanced", "trainer": OwnLoss}, "`class_weights` had no part in the loss"),
        ({"early_stopping_patience": 0, "eval_strategy": "epoch"}, "expected 1 or more, got 0"),
        ({"early_stopping_patience": 2}, "set e.g. `eval_strategy: epoch`"),
    ],
)
def test_mistakes(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, eval_dataset=small_rows(4), **settings).train()


def test_early_stopping(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 6, "learning_rate": 0.0}
    trainer = build(tmp_path, eval_dataset=small_rows(8), early_stopping_patience=2, **settings)
    trainer.train()
    assert trainer.state.global_step == 3 and trainer.args.metric_for_best_model == "loss"
    with pytest.raises(ValueError, match="remove one of them"):
        build(tmp_path, callbacks=[EarlyStoppingCallback()], early_stopping_patience=2, **settings)
    first, second = build(tmp_path), build(tmp_path, early_stopping_patience=9, eval_dataset=small_rows(4), **{
        **settings, "learning_rate": 0.05, "max_steps": 4})  # fmt: skip
    first.train()
    second.train()
    assert_same(weights(first), weights(second))


# ---- as keys of a recipe ----


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--class_weights", "balanced"], "balanced"),
        (["--class_weights", "zero=2", "one=0.5"], {"zero": 2.0, "one": 0.5}),
        (["--class_weights", "{zero: 2}"], {"zero": 2.0}),
    ],
)
def test_in_a_recipe(words, expected):
    recipe = load_recipe("recipes/quickstart/image_text.yaml", [*words, "--early_stopping_patience", "2"])
    assert recipe.training.class_weights == expected and recipe.training.early_stopping_patience == 2
    with pytest.raises(ValueError, match="Unknown key 'class_weight'.* did you mean 'class_weights'"):
        load_recipe("recipes/quickstart/image_text.yaml", ["--class_weight", "balanced"])


def test_a_run(tmp_path):
    result = finetune(
        make_recipe(
            tiny_recipe(
                tmp_path,
                class_weights="balanced",
                eval_strategy="steps",
                eval_steps=1,
                early_stopping_patience=1,
                learning_rate=0.0,
                max_steps=4,
            )
        )
    )
    assert result.trainer.state.global_step == 2
    weights = result.trainer._weighted.weights
    counts = torch.bincount(torch.tensor(result.trainer.train_dataset["label"]), minlength=len(weights))
    torch.testing.assert_close(weights, counts.sum() / (len(weights) * counts))
