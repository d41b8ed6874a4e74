"""The net below every way to a loss, and the warning of eval mode, in a loop of one's own."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hf_dgl import disentangle
from tests.oracle import Concat, ThreeConcat, make_toy, toy_batch


class Product(Concat):
    """The fusion multiplies: where the other is zero, nothing of a modality gets through."""

    def build(self):
        self.head = nn.Linear(self.width, 3)

    def fuse(self, features):
        return self.head(features["image"].mean(1) * features["text"].mean(1))


class Gated(Concat):
    """The image comes in through a gate that is closed at first, as in Mllama and IDEFICS."""

    def build(self):
        super().build()
        self.gate = nn.Parameter(torch.zeros(1))

    def fuse(self, features):
        return super().fuse({**features, "image": torch.tanh(self.gate) * features["image"]})


def step(model, optimizer, loss_of, seed=0):
    loss_of(model(**toy_batch(model, seed=seed))).backward()
    optimizer.step()
    optimizer.zero_grad()


def loop(model, loss_of, steps=3, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with disentangle(model, model.declared(), **settings) as handle:
        for seed in range(steps):
            step(model, optimizer, loss_of, seed)
        handle.net.verify()


SETTINGS = {
    "dgl": {},
    "unimodal_truncation": {"multimodal_to_encoders": 1.0},
    "auxiliary": {"unimodal_to_fusion": True},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("toy", [Concat, ThreeConcat])
def test_a_loss_of_the_fused_output_alone_is_an_error(toy, settings):
    labels = toy_batch(make_toy(toy))["labels"]
    with pytest.raises(RuntimeError, match="unimodal loss of '.*' trained nothing.*handle.loss"):
        loop(make_toy(toy), lambda output: cross_entropy(output["logits"], labels), **settings)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_total_is_none(settings):
    loop(make_toy(Concat), lambda output: output["loss"], **settings)
    loop(make_toy(Concat), lambda output: sum(output["losses"].values()), **settings)


def test_one_modality_left_out_is_named():
    with pytest.raises(RuntimeError, match="unimodal loss of 'text'"):
        loop(make_toy(Concat), lambda output: output["losses"]["multimodal"] + output["losses"]["image"])


def test_a_modality_without_a_pass_is_not_missed():
    loop(make_toy(Concat), lambda output: output["losses"]["multimodal"] + output["losses"]["image"],
         alpha={"image": 1.0, "text": 0.0})  # fmt: skip


def test_losses_may_have_a_backward_each():
    model = make_toy(Concat)
    with disentangle(model, model.declared()):
        for _ in range(2):
            losses = model(**toy_batch(model))["losses"]
            losses["multimodal"].backward(retain_graph=True)
            (losses["image"] + losses["text"]).backward()


def test_a_fusion_that_passes_nothing_on_is_an_error_that_says_so():
    with pytest.raises(RuntimeError, match="exactly zero there.*product with zeros.*absent=torch.ones_like"):
        loop(make_toy(Product), lambda output: output["loss"])


def test_a_gate_that_is_closed_at_first_is_told_and_waited_for(caplog):
    with caplog.at_level(logging.WARNING, logger="hf_dgl.method.net"):
        loop(make_toy(Gated), lambda output: output["loss"], steps=5)
    assert caplog.text.count("begin at zero, such as 'gate'") == 1


def test_a_batch_from_which_nothing_is_to_be_learned_is_no_error():
    model = make_toy(Concat)
    scales = iter([0.0, 1.0, 1.0])
    loop(model, lambda output: output["loss"] * next(scales))


@pytest.mark.parametrize("toy", [Concat, ThreeConcat])
def test_eval_mode_with_gradients_on_is_told_once(toy, caplog):
    model = make_toy(toy).eval()
    batch = toy_batch(model)
    with caplog.at_level(logging.WARNING, logger="hf_dgl"):
        with disentangle(model, model.declared()) as handle:
            with torch.no_grad():
                model(**batch)
            model.train()
            model(**batch)
            handle.check(batch)
            assert not caplog.text
            model.eval()
            for _ in range(2):
                model(**batch)["loss"].backward()
        assert caplog.text.count("Call `model.train()`") == 1
        caplog.clear()
        with disentangle(model, model.declared(), alpha=0.0, multimodal_to_encoders=1.0):
            model(**batch)  # joint training is what it is
    assert not caplog.text
