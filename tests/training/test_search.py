"""Hyperparameter search: every trial trains with the settings that it was given."""

from __future__ import annotations

import sys

import pytest

from hf_dgl.method.explained import Explained
from hf_dgl.training.manifest import read_manifest
from hf_dgl.training.search import hp_space, objective
from tests.tiny import tiny_model
from tests.training.small import build, small_model, small_rows
from tests.training.test_trainer import SINGLE, Rows, make


@pytest.mark.slow
def test_the_settings_of_each_trial_are_in_force(tmp_path, monkeypatch):
    """Seen in the handle, the optimizer and the callback at the end of each trial's training."""
    trainer = make(
        tmp_path,
        model_init=lambda trial=None: tiny_model(("image", "text"), **SINGLE),
        eval_dataset=Rows(8, seed=1),
        eval_strategy="steps",
        eval_steps=1,
        max_steps=1,
        optim="sgd",
        lr_scheduler_type="constant",
    )
    seen, begun = [], []
    original_explained, original = Explained.__init__, trainer.create_optimizer

    def create_optimizer(model=None):
        optimizer = original(model)
        handle = trainer.disentangled
        assert handle.model is trainer.model
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        of = {name: rates[id(parameter)] for name, parameter in trainer.model.named_parameters()}
        encoder = next(rate for name, rate in of.items() if "encoders.image" in name)
        seen.append((dict(handle.alpha), dict(handle.multimodal_to_encoders), of["classifier.weight"], encoder))
        return optimizer

    monkeypatch.setattr(trainer, "create_optimizer", create_optimizer)
    monkeypatch.setattr(
        Explained, "__init__", lambda self, *a, **k: (begun.append(self), original_explained(self, *a, **k))[1]
    )
    given = []

    def space(trial):
        given.append(hp_space()(trial))
        return given[-1]

    best = trainer.hyperparameter_search(space, objective("accuracy"), n_trials=2, direction="maximize")
    assert len(given) == len(seen) == 2 and given[0] != given[1]
    for values, (alpha, share, rate, encoder_rate) in zip(given, seen, strict=True):
        assert set(alpha.values()) == {values["alpha"]}
        assert set(share.values()) == {values["multimodal_to_encoders"]}
        assert (rate, encoder_rate) == (values["learning_rate"], values["encoder_learning_rate"])
    assert begun[-1] is trainer.explained  # what a trial explains of the labels is not the last one's
    assert best.hyperparameters in given


def test_a_search_of_several_trials_and_the_training_after_it(tmp_path):
    """Upstream lets go of the model after each trial; the manifest of a checkpoint holds the trial's settings."""
    trainer = build(
        tmp_path, model_init=lambda trial=None: small_model(), method="dgl", max_steps=1, save_strategy="steps",
        save_steps=1, eval_strategy="steps", eval_steps=1, eval_dataset=small_rows(8, seed=1),
    )  # fmt: skip
    space = hp_space(alpha=None, encoder_learning_rate=None, learning_rate=(1e-3, 1e-1))
    best = trainer.hyperparameter_search(space, objective("loss"), n_trials=2)
    assert 0 < best.objective < 10
    rates = {read_manifest(folder)["settings"]["learning_rate"] for folder in tmp_path.glob("run-*/checkpoint-1")}
    assert len(rates) == 2 and best.hyperparameters["learning_rate"] in rates
    trainer.train()
    assert trainer.state.global_step == 1 and trainer.disentangled.model is trainer.model


def test_a_space():
    class Trial:
        def suggest_float(self, name, low, high, log=False):
            return name, low, high, log

    found = hp_space(alpha=None, multimodal_to_encoders=None, learning_rate=(1e-4, 1e-2), ogm_alpha=(0.1, 1.0))(
        Trial()
    )
    assert set(found.values()) == {
        ("learning_rate", 1e-4, 1e-2, True),
        ("encoder_learning_rate", 1e-6, 1e-3, True),
        ("ogm_alpha", 0.1, 1.0, False),
    }


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"alpha": (2.0, 1.0)}, r"alpha: expected \(lowest, highest\)"),
        ({"alpha": 2.0}, r"alpha: expected \(lowest, highest\), e.g. \(0.5, 4.0\), got 2.0"),
        ({"learning_rate": (0.0, 1.0)}, "learning_rate: is drawn on a logarithmic scale"),
    ],
)
def test_ranges_that_are_none(ranges, message):
    with pytest.raises(ValueError, match=message):
        hp_space(**ranges)


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)  # also where another test has imported it
    with pytest.raises(ValueError, match=r"\.\[optuna\]"):
        hp_space()


def test_an_objective_names_the_metrics_there_are():
    assert objective("eval_loss")({"eval_loss": 0.5}) == objective("loss")({"eval_loss": 0.5}) == 0.5
    with pytest.raises(ValueError, match=r"no metric 'acuracy'. There are: \['accuracy'\]"):
        objective("acuracy")({"eval_accuracy": 0.8, "epoch": 1.0})
