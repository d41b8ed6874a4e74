"""Checkpoints, and what else `SavingTrainer` adds: their order, amendments, named adapters, files of others."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_dgl.training.checkpoints import fault
from hf_dgl.training.search import default_objective
from tests.training.small import MODALITIES, Small, assert_same, build, small_model, small_rows, weights

ENDS = {  # 24 rows in batches of 4: the last step of an epoch is the 6th
    "eval_dataset": small_rows(8, seed=1),
    "eval_strategy": "epoch",
    "save_strategy": "steps",
    "save_steps": 6,
    "max_steps": 14,
    "logging_steps": 4,
    "metric_for_best_model": "loss",
}


class Events(TrainerCallback):
    """The names and steps of all events."""

    def __init__(self):
        self.seen = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda args, state, control, **kwargs: self.seen.append((name, state.global_step))
        return super().__getattribute__(name)


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    def __init__(self, event, step):
        setattr(self, event, lambda args, state, control, **kwargs: self._kill(state, step))

    def _kill(self, state, step):
        if state.global_step == step:
            raise Killed


@pytest.mark.parametrize("method", ["joint", "dgl"])
def test_a_checkpoint_of_an_epochs_last_step_comes_when_upstream_writes_it(tmp_path, method):
    runs = []
    for upstream in (True, False):
        events = Events()
        trainer = build(tmp_path / str(upstream), upstream, callbacks=[events], method=method, **ENDS)
        trainer.train()
        runs.append(events.seen)
    assert runs[0] == runs[1]
    assert runs[1].index(("on_save", 6)) < runs[1].index(("on_epoch_end", 6)) < runs[1].index(("on_evaluate", 6))


@pytest.mark.parametrize("scheduler", ["linear", "reduce_lr_on_plateau"])
@pytest.mark.parametrize("method", ["joint", "dgl"])
def test_resuming_from_it_is_the_uninterrupted_run(tmp_path, method, scheduler):
    settings = {**ENDS, "method": method, "lr_scheduler_type": scheduler}
    if scheduler != "linear":
        settings["lr_scheduler_kwargs"] = {"patience": 0, "threshold": 10.0, "threshold_mode": "abs"}
    whole = build(tmp_path, model=small_model(dropout=0.2), **settings)
    whole.train()
    folder = tmp_path / "checkpoint-6"
    assert fault(folder) is None
    state = json.loads((folder / "trainer_state.json").read_text())
    assert [log["step"] for log in state["log_history"] if "eval_loss" in log] == [6]
    assert state["best_global_step"] == 6 and state["best_model_checkpoint"] == str(folder)
    resumed = build(tmp_path, model=small_model(dropout=0.2), **settings)
    resumed.train(resume_from_checkpoint=str(folder))
    assert_same(weights(whole), weights(resumed))
    drop = ("runtime", "per_second")
    logs = [
        [{k: v for k, v in log.items() if not any(word in k for word in drop)} for log in trainer.state.log_history]
        for trainer in (whole, resumed)
    ]
    assert logs[0][:-1] == logs[1][:-1]


def test_an_interruption_in_the_evaluation_does_not_lose_the_epoch(tmp_path):
    with pytest.raises(Killed):
        build(tmp_path, callbacks=[KillAt("on_prediction_step", 6)], **ENDS).train()
    assert fault(tmp_path / "checkpoint-6") is None
    resumed = build(tmp_path, **ENDS)
    resumed.train(resume_from_checkpoint=True)
    whole = build(tmp_path / "whole", **ENDS)
    whole.train()
    assert_same(weights(whole), weights(resumed))


def test_restoring_callbacks_warns_of_nothing(tmp_path, caplog):
    settings = {**ENDS, "restore_callback_states_from_checkpoint": True, "method": "dgl"}
    callbacks = [EarlyStoppingCallback(early_stopping_patience=5)]
    build(tmp_path, callbacks=callbacks, **settings).train()
    with caplog.at_level(logging.WARNING):
        resumed = build(tmp_path, callbacks=[EarlyStoppingCallback(early_stopping_patience=5)], **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert "not included in current configuration" not in caplog.text
    assert {"Sums", "Explained"} <= resumed.state.stateful_callbacks.keys()


@pytest.mark.parametrize("others", [True, False])
def test_a_readme_of_others_stays(tmp_path, others):
    folder = tmp_path / "project"
    folder.mkdir()
    trainer = build(tmp_path / "out", method="dgl")
    if others:
        (folder / "README.md").write_text("# My project\n")
    for _ in range(2):
        trainer.save_model(str(folder))
    text = (folder / "README.md").read_text()
    assert (text == "# My project\n") if others else ("library_name: hf_dgl" in text)
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("names", [["mine"], ["default", "mine"], ["default"]], ids=str)
def test_the_best_of_named_adapters_is_loaded(tmp_path, names, caplog):
    def model():
        torch.manual_seed(0)
        lora = LoraConfig(r=2, target_modules=["image_encoder.0", "text_encoder.0", "head"])
        found = get_peft_model(small_model(), lora, adapter_name=names[0])
        for name in names[1:]:
            found.add_adapter(name, lora)
        found.set_adapter(names[-1])
        return found

    adapted = model()
    trainer = build(
        tmp_path,
        model=adapted,
        method="dgl",
        eval_dataset=small_rows(8, seed=1),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        max_steps=3,
        learning_rate=3.0,  # so that the first checkpoint is the best
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    trainer._declared = None
    with caplog.at_level(logging.WARNING):
        trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert min(losses) < losses[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)
    assert "Could not locate the best model" not in caplog.text
    assert isinstance(adapted.get_base_model(), Small) and MODALITIES


def test_without_an_objective_the_fused_scores_count():
    scores = {"eval_loss": 0.5, "eval_loss_image": 3.0, "eval_loss_text": 4.0, "eval_runtime": 1.0, "epoch": 1.0}
    assert default_objective(["image", "text"])(scores) == 0.5
    scores |= {"eval_accuracy": 0.75, "eval_f1": 0.5, "eval_accuracy_image": 0.1, "eval_modality_gap": 0.3}
    assert default_objective(["image", "text"])(scores) == 1.25


def test_a_search_without_an_objective(tmp_path):
    pytest.importorskip("optuna")
    trainer = build(
        tmp_path,
        model_init=lambda: small_model(),
        max_steps=1,
        eval_dataset=small_rows(8),
        eval_strategy="steps",
        eval_steps=1,
        prediction_loss_only=True,
    )
    trainer.compute_metrics = None
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2)}, n_trials=1
    )
    assert best.objective == trainer.state.log_history[1]["eval_loss"]


def test_the_arguments_stay_as_they_are(tmp_path):
    from hf_dgl.training.arguments import DGLTrainingArguments
    from hf_dgl.training.trainer import DGLTrainer

    args = DGLTrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], max_steps=1, metric_for_best_model="mae", save_strategy="no"
    )
    before = dict(vars(args))
    trainer = DGLTrainer(small_model("regression"), args, train_dataset=small_rows(4, "regression"),
                         modalities=MODALITIES)  # fmt: skip
    trainer.train()
    after = {name: value for name, value in vars(args).items() if name in before}
    assert after == before and args.method is None and trainer.args.method == "dgl"
    assert args.greater_is_better is True and trainer.args.greater_is_better is False
