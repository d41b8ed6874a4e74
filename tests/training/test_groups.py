"""Learning rates by pattern, frozen parts, and clipping, from the recipe to the optimizer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hf_dgl.architectures import modalities_of
from hf_dgl.architectures.attach import disentangle
from hf_dgl.recipe.recipe import load_recipe, make_recipe
from hf_dgl.training.arguments import DGLTrainingArguments
from hf_dgl.training.groups import clip_by_group, freeze, learning_rates
from hf_dgl.training.trainer import DGLTrainer
from tests.oracle import TiedEncoders, make_toy
from tests.recipes import tiny_recipe
from tests.tiny import tiny_batch, tiny_model
from tests.training.small import build, small_model, small_rows
from tests.training.test_trainer import SINGLE, make


def rates(trainer: Any) -> dict[str, float]:
    """Parameter name -> learning rate in the optimizer; every trainable parameter is there once."""
    groups = trainer.create_optimizer().param_groups
    found = [(id(parameter), group["lr"]) for group in groups for parameter in group["params"]]
    assert len(found) == len(dict(found)) == sum(p.requires_grad for p in trainer.model.parameters())
    return {name: dict(found)[id(p)] for name, p in trainer.model.named_parameters() if p.requires_grad}


# ---- learning rates ----


def test_a_pattern_wins_over_the_encoder_and_that_over_the_rest(tmp_path: Path) -> None:
    mapping = {r"encoders\.text.*embeddings": "1e-5", r"embeddings": 2e-5, r"^classifier": 0.5}
    encoders = {"image": 0.1, "text": 0.2}
    trainer = make(tmp_path, learning_rate_mapping=mapping, encoder_learning_rate=encoders, weight_decay=0.1)
    for name, rate in rates(trainer).items():
        if "embeddings" in name:
            expected = 1e-5 if "encoders.text" in name else 2e-5
        elif name.startswith("classifier"):
            expected = 0.5
        else:
            expected = 0.1 if "encoders.image" in name else 0.2 if "encoders.text" in name else 1e-2
        assert rate == expected, name
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0, 0.1}


def test_a_schedule_says_what_it_does_not_take(tmp_path: Path) -> None:
    trainer = make(tmp_path, lr_scheduler_type="linear", lr_scheduler_kwargs={"num_cycles": 3})
    with pytest.raises(ValueError, match="lr_scheduler_kwargs: .*`linear` does not take.*num_cycles"):
        trainer.train()


def test_a_learning_rate_of_zero_moves_nothing(tmp_path: Path) -> None:
    trainer = make(tmp_path, learning_rate_mapping={"layer.*attention": 0.0, "layers": 0.0})
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    for name, value in trainer.model.named_parameters():
        still = "layers" in name or ("layer" in name and "attention" in name.split("layer", 1)[1])
        if still or "patch" in name:
            assert torch.equal(value, before[name]) == still, name


def test_a_parameter_of_two_encoders_gets_the_higher_rate() -> None:
    model = make_toy(TiedEncoders)
    with disentangle(model, model.declared()) as handle:
        found = learning_rates(model, handle.partition, {"image": 0.1, "text": 0.2}, {})
    assert found[id(model.enc_image[0].weight)] == 0.2 and found[id(model.enc_image[0].bias)] == 0.1


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        (r"encoders\.imag\.", "cross_modal.encoders.image."),
        (r"^clasifier", "classifier."),
        ("modality_embedings.weight", "cross_modal.fusion.modality_embeddings.weight"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(tmp_path: Path, pattern: str, nearest: str) -> None:
    trainer = make(tmp_path, learning_rate_mapping={pattern: 1e-3})
    with pytest.raises(ValueError, match="`learning_rate_mapping`: no parameter matches") as raised:
        trainer.create_optimizer()
    assert f"The nearest one is called '{nearest}" in str(raised.value)


def test_a_pattern_that_changes_nothing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mapping = {r"encoders\.image": 1.0, "classifier": 1.0, "classifier.bias": 2.0}
    with caplog.at_level(logging.WARNING):
        make(tmp_path, learning_rate_mapping=mapping, freeze=["image"]).create_optimizer()
    assert [word in caplog.text for word in (r"encoders\\.image'", "'classifier' changes", "bias' changes")] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"(": 1.0}, "is no regular expression"),
        ({"classifier": "fast"}, "expected a number for 'classifier', got 'fast'"),
        ("1e-3", "expected `pattern: learning rate` entries, got '1e-3'"),
    ],
)
def test_mistakes_in_the_mapping(mapping: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"learning_rate_mapping: .*{message}"):
        DGLTrainingArguments("out", learning_rate_mapping=mapping)


# ---- frozen parts ----


@pytest.mark.parametrize("frozen", [["image"], ["image", "text"], ["fusion"]])
def test_frozen_parts_stay_as_they_are_and_cost_no_pass(tmp_path: Path, frozen: list[str]) -> None:
    trainer = make(tmp_path, freeze=frozen)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    owners = trainer.disentangled.partition.owners
    for name, value in trainer.model.named_parameters():
        group = next(iter(owners[name]), "fusion")
        if group in frozen:
            assert torch.equal(value, before[name]) and value.grad is None and not value.requires_grad
        else:
            assert value.requires_grad
    log = trainer.state.log_history[0]
    for name in ("image", "text"):
        assert (f"loss_{name}" in log) == (f"grad_norm_{name}" in log) == (name not in frozen)
    assert ("grad_norm_fusion" in log) == ("fusion" not in frozen)


def test_what_two_modalities_share_is_frozen_with_both() -> None:
    model = make_toy(TiedEncoders)
    with disentangle(model, model.declared()) as handle:
        freeze(handle.partition, ["image"])
        assert model.enc_image[0].weight.requires_grad and not model.enc_image[0].bias.requires_grad
        freeze(handle.partition, ["image", "text"])
        assert not model.enc_image[0].weight.requires_grad and model.head.weight.requires_grad


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["imag"], r"unknown part 'imag': did you mean 'image'\? Parts: \['image', 'text', 'fusion'\]"),
        (["image", "text", "fusion"], "leaves nothing to train"),
    ],
)
def test_mistakes_in_freeze(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, freeze=names)


def test_a_model_from_model_init_is_frozen_too(tmp_path: Path) -> None:
    trainer = make(tmp_path, model_init=lambda: tiny_model(**SINGLE), freeze=["text"])
    trainer.train()
    assert not any(p.requires_grad for p in trainer.model.cross_modal.encoders["text"].parameters())


# ---- clipping ----


def test_clipping_a_group_without_gradients() -> None:
    model = tiny_model().train()
    batch = tiny_batch()
    del batch["image"]
    with disentangle(model, modalities_of(model)) as handle:
        model(**batch).loss.backward()
        norms = clip_by_group(handle.partition, 1e-3)
    assert norms["image"] == 0 and norms["text"] > 1e-3
    gradients = [p.grad for p in model.cross_modal.encoders["text"].parameters() if p.grad is not None]
    assert torch.stack([gradient.norm() for gradient in gradients]).norm() <= 1e-3 * (1 + 1e-5)


# ---- the recipe and the command line ----


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("freeze", "image", ["image"]),
        ("freeze", ["image", "text"], ["image", "text"]),
        ("learning_rate_mapping", {"embeddings": "1e-5"}, {"embeddings": "1e-5"}),
    ],
)
def test_in_a_recipe(tmp_path: Path, key: str, value: Any, expected: Any) -> None:
    assert getattr(make_recipe(tiny_recipe(tmp_path, **{key: value})).training, key) == expected


def test_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe(tmp_path)))
    words = ["--freeze", "image", "text", "--learning_rate_mapping", r"encoders\.text=1e-5", "^classifier=1"]
    training = load_recipe(tmp_path / "tiny.yaml", words).training
    assert training.freeze == ["image", "text"]
    assert training.learning_rates_by_pattern() == {r"encoders\.text": 1e-5, "^classifier": 1.0}


# ---- learning rates by group, and optimizers that the Trainer does not make ----


class OwnOptimizer(DGLTrainer):
    def create_optimizer(self, model=None):
        self.optimizer = self.optimizer or torch.optim.SGD(self.model.parameters(), lr=0.1)
        return self.optimizer


class GroupsOfItsOwn(torch.optim.SGD):
    """Splits what it is given layer by layer, and makes groups anew whenever it is asked."""

    @property
    def param_groups(self):
        return [{"params": group["params"], "lr": 0.1} for group in self.__dict__["param_groups"]]

    @param_groups.setter
    def param_groups(self, value):
        self.__dict__["param_groups"] = value


RATES = [{"encoder_learning_rate": 0.01}, {"learning_rate_mapping": {"^head": 0.01}}]


@pytest.mark.parametrize("rates", RATES, ids=lambda rates: next(iter(rates)))
def test_rates_by_group_and_an_optimizer_of_the_users_own(tmp_path, rates):
    name, model = next(iter(rates)), small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=f"`{name}` sets the learning rates of an optimizer that the Trainer makes"):
        build(tmp_path, model=model, optimizers=(optimizer, None), **rates)
    later = build(tmp_path, model=model, **rates)
    later.optimizer = optimizer
    with pytest.raises(ValueError, match="it has another one .SGD"):
        later.train()
    with pytest.raises(ValueError, match=f"Remove `{name}`"):
        build(tmp_path, trainer=OwnOptimizer, **rates).train()
    with pytest.raises(ValueError, match="GroupsOfItsOwn groups parameters in its own way"):
        build(tmp_path, optimizer_cls_and_kwargs=(GroupsOfItsOwn, {"lr": 0.1}), **rates).train()


def test_an_optimizer_of_the_users_own_without_rates_by_group(tmp_path):
    model = small_model()
    build(tmp_path, model=model, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None)).train()
    build(tmp_path, trainer=OwnOptimizer).train()


def test_rates_by_group_in_a_second_training_and_for_a_class_of_the_users(tmp_path):
    kwargs = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1}), "encoder_learning_rate": 0.01}
    trainer = build(tmp_path, max_steps=1, **kwargs)
    for _ in range(2):
        trainer.train()
        assert [group["initial_lr"] for group in trainer.optimizer.param_groups] == [0.01, 0.1, 0.01, 0.1]
        logged = [log["learning_rate"] for log in trainer.state.log_history if "loss" in log]
        assert logged == [0.1]  # not the first group's


@pytest.mark.parametrize("scheduler", ["linear", "reduce_lr_on_plateau"])
def test_the_learning_rate_that_is_logged_is_the_one_that_is_set(tmp_path, scheduler):
    settings = {
        "lr_scheduler_type": scheduler,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_dataset": small_rows(4),
    }
    logged = []
    for rates in ({}, *RATES):
        trainer = build(tmp_path, max_steps=3, metric_for_best_model="loss", **settings, **rates)
        trainer.train()
        logged.append([log["learning_rate"] for log in trainer.state.log_history if "loss" in log])
    assert logged[0] == logged[1] == logged[2] and logged[0][0] == 0.05
