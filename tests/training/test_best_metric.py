from __future__ import annotations

import numpy as np
import pytest

from hf_dgl.training.best_metric import greater_is_better
from tests.training.small import build, small_model, small_rows

REGRESSION = "regression"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", True),
        ("eval_f1_image", True),
        ("pearson_text", True),
        ("mae", False),
        ("eval_mae", False),
        ("mae_text", False),
        ("loss", False),
        ("eval_loss_image", False),
        ("loss_text", False),
        ("modality_gap", False),
        ("set1_mae_image", False),
        ("eval_set1_accuracy", True),
        ("rmse", False),  # of the user's own
        ("wer_text", False),
        ("focal_loss", False),
        ("error_rate_image", False),
        ("brier_score", False),
        ("set1_nll_text", False),
        ("EER", False),
        ("success_rate", True),
        ("f1_score", True),
        ("myloss", False),  # upstream's rule
        ("bleu", True),
        ("lossless", True),
    ],
)
def test_direction(name, expected):
    assert greater_is_better(name, ["image", "text"], ["set1"]) is expected


def evaluated(folder, **settings):
    data = {"train_dataset": small_rows(24, REGRESSION), "eval_dataset": small_rows(12, REGRESSION, seed=1)}
    strategies = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = build(
        folder,
        model=small_model(REGRESSION),
        **{**data, **strategies, "max_steps": 4, "load_best_model_at_end": True, **settings},
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("metric", ["mae", "mae_text", "eval_loss_image", "loss", "pearson_image"])
def test_the_best_checkpoint_is_the_best(tmp_path, metric):
    trainer = evaluated(tmp_path, metric_for_best_model=metric)
    key = f"eval_{metric.removeprefix('eval_')}"
    values = {log["step"]: log[key] for log in trainer.state.log_history if key in log}
    assert len(values) == 4
    best = (max if "pearson" in metric else min)(values, key=values.get)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert trainer.evaluate()[key] == pytest.approx(values[best])


def test_a_modalitys_loss_on_one_of_several_sets(tmp_path):
    sets = {"set1": small_rows(6, REGRESSION, seed=1), "set2": small_rows(6, REGRESSION, seed=2)}
    trainer = evaluated(tmp_path, eval_dataset=sets, metric_for_best_model="set2_loss_image", max_steps=2)
    values = [log["eval_set2_loss_image"] for log in trainer.state.log_history if "eval_set2_loss_image" in log]
    assert len(values) == 2 and trainer.state.best_metric == min(values)


def test_what_the_user_says_counts_and_the_arguments_stay(tmp_path):
    trainer = build(tmp_path, metric_for_best_model="mae", greater_is_better=True)
    assert trainer.args.greater_is_better is True
    told = build(tmp_path, metric_for_best_model="mae_text")
    assert told.args.greater_is_better is False


def test_names_that_do_not_exist_are_told_before_training(tmp_path):
    for name, near in [("acuracy", "accuracy"), ("accuracy_imag", "accuracy_image"), ("f1_txt", "f1_text")]:
        trainer = build(tmp_path, eval_dataset=small_rows(6), eval_strategy="steps", metric_for_best_model=name)
        with pytest.raises(ValueError, match=f"no such metric: did you mean '{near}'"):
            trainer.train()
        assert trainer.state.global_step == 0
    sets = {"a": small_rows(6), "b": small_rows(6)}
    trainer = build(tmp_path, eval_dataset=sets, eval_strategy="steps", metric_for_best_model="accuracy")
    with pytest.raises(ValueError, match="did you mean '._accuracy'"):
        trainer.train()
    build(
        tmp_path, eval_dataset=sets, eval_strategy="steps", eval_steps=2, metric_for_best_model="eval_b_accuracy"
    ).train()


def test_of_the_users_own_metrics_the_nearest_is_told(tmp_path):
    def compute_metrics(prediction):
        return {"hits": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}

    settings = {"eval_dataset": small_rows(6), "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    trainer = build(tmp_path, compute_metrics=compute_metrics, metric_for_best_model="hit", **settings)
    with pytest.raises(ValueError, match="did you mean 'hits'"):
        trainer.train()
    build(tmp_path, compute_metrics=compute_metrics, metric_for_best_model="hits_text", **settings).train()
