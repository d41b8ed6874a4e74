"""The gradients at the encoders' outputs: measured right, and nothing else changed by it."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from hf_dgl.architectures import modalities_of
from hf_dgl.architectures.attach import disentangle
from hf_dgl.method.gradient_meter import COSINE, RATIO, GradientMeter
from hf_dgl.method.methods import METHODS
from hf_dgl.models.fusion import FUSIONS
from tests.devices import current, put
from tests.oracle import (
    TOYS,
    Bypass,
    CalledTwice,
    Concat,
    InPlace,
    Interleaved,
    Streams,
    ThreeConcat,
    TiedToHead,
    gradients,
    make_toy,
    max_difference,
    toy_batch,
)

from .test_checkpointing import checkpointed
from .test_cross_modal_gradients import make
from .test_disentangle import EXACT, expected_gradients, settings

pytestmark = pytest.mark.device

MEASURABLE = [Concat, ThreeConcat, CalledTwice, Streams]
ROUTES = [method for method in METHODS if method != "multimodal_truncation"]


def by_definition(model, batch, name: str) -> tuple[float, float]:
    """Ratio and cosine of the two gradients at the output of encoder `name`, by `torch.autograd.grad`."""
    found = []
    for only in (None, name):
        outputs: list[torch.Tensor] = []
        hook = getattr(model, f"enc_{name}").register_forward_hook(
            lambda module, args, output, kept=outputs: (kept.append(output), output.clone())[1]  # written in place
        )
        loss = model(**batch, only=only)["loss"]
        hook.remove()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, outputs)]))
    together, alone = found
    return float(together.norm() / alone.norm()), float(nn.functional.cosine_similarity(together, alone, dim=0))


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("toy", MEASURABLE, ids=lambda toy: toy.__name__)
def test_measured_are_the_gradients_of_the_definition(toy, method):
    model = make_toy(toy)
    batch = toy_batch(model)
    with disentangle(model, model.declared(), **settings(method)) as handle:
        handle.meter = GradientMeter()
        (128 * model(**batch)["loss"]).backward()  # a scale of the loss is no part of it
        (measured,) = handle.meter.take()
    assert set(measured) == set(model.modalities)
    for name, pair in measured.items():
        assert pair.dtype == torch.float64
        ratio, cosine = by_definition(model, batch, name)
        assert float(pair[RATIO]) == pytest.approx(ratio, rel=1e-9)
        assert float(pair[COSINE]) == pytest.approx(cosine, rel=1e-9)


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.__name__)
def test_the_gradients_stay_exact(toy, method):
    model = make_toy(toy)
    batch = toy_batch(model)
    with disentangle(model, model.declared(), **settings(method)) as handle:
        handle.meter = GradientMeter()
        model(**batch)["loss"].backward()
        owners = handle.partition.owners
    actual = gradients(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.zero_grad()
    assert max_difference(actual, expected_gradients(model, batch, settings(method), owners)) < EXACT


@pytest.mark.parametrize("method", ["joint", "dgl", "unimodal_truncation"])
def test_under_activation_checkpointing(method):
    model = make_toy(checkpointed(Concat))
    batch = toy_batch(model)
    with disentangle(model, model.declared(), **settings(method)) as handle:
        handle.meter = GradientMeter()
        model(**batch)["loss"].backward()
        (measured,) = handle.meter.take()
        owners = handle.partition.owners
    actual = gradients(model)
    model.zero_grad()
    assert max_difference(actual, expected_gradients(model, batch, settings(method), owners)) < EXACT
    plain = make_toy(Concat)
    for name, pair in measured.items():
        assert pair.tolist() == pytest.approx(by_definition(plain, batch, name), rel=1e-9)


@pytest.mark.parametrize("fusion_type", FUSIONS)
@pytest.mark.parametrize("method", ["joint", "dgl"])
def test_our_model(fusion_type, method):
    """Checkpointed, with two micro-batches, and with a modality missing from some rows: the same gradients."""
    found, measured = [], []
    for metered in (False, True):
        torch.manual_seed(0)
        model, batch = make(("image", "text"), fusion_type)
        model.gradient_checkpointing_enable()
        batch["image"]["present"] = put(torch.tensor([True, False, True, True]))
        with disentangle(model, modalities_of(model), **settings(method)) as handle:
            handle.meter = GradientMeter() if metered else None
            for _ in range(2):
                (model(**batch).loss / 2).backward()
            measured = handle.meter.take() if handle.meter else []
        found.append(gradients(model))
    assert max_difference(*found) < EXACT
    assert len(measured) == 2 and all(set(step) == {"image", "text"} for step in measured)
    assert all(pair.isfinite().all() for step in measured for pair in step.values())


def test_lora():
    peft = pytest.importorskip("peft")
    found = []
    for metered in (False, True):
        torch.manual_seed(0)
        model, batch = make(("image", "text"), "cross_attention")
        config = peft.LoraConfig(r=2, target_modules=["query", "q_proj"], modules_to_save=["classifier"])
        wrapped = peft.get_peft_model(model, config).train()
        torch.manual_seed(1)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:  # zero at the start, and then so would be the gradients of lora_A
                nn.init.normal_(parameter)
        with disentangle(wrapped, modalities_of(wrapped)) as handle:
            handle.meter = GradientMeter() if metered else None
            wrapped(**batch).loss.backward()
            if handle.meter:
                assert {name for step in handle.meter.take() for name in step} == {"image", "text"}
        found.append(gradients(wrapped))
    assert max_difference(*found) < EXACT


def test_dropout_draws_the_same_numbers_with_and_without_measuring_passes():
    class Dropping(Concat):
        def fuse(self, features):
            return super().fuse({name: nn.functional.dropout(f, 0.5) for name, f in features.items()})

    found = []
    for metered in (False, True):
        model = make_toy(Dropping)
        torch.manual_seed(3)
        with disentangle(model, model.declared(), **settings("joint")) as handle:
            handle.meter = GradientMeter() if metered else None
            for _ in range(3):
                model(**toy_batch(model))["loss"].backward()
        found.append(gradients(model))
    assert max_difference(*found) == 0


def test_a_loss_that_is_computed_outside():
    model = make_toy(Concat)
    batch = toy_batch(model)
    labels = batch.pop("labels")
    with disentangle(model, model.declared(), **settings("joint")) as handle:
        handle.meter = GradientMeter()
        output = model(**batch)
        total = handle.loss(output, lambda out: nn.functional.cross_entropy(out["logits"], labels))
        total.backward()
        assert float(total.detach()) == float(
            output["losses"]["multimodal"].detach()
        )  # a measuring pass adds nothing to the value
        (measured,) = handle.meter.take()
    for name, pair in measured.items():
        assert pair.tolist() == pytest.approx(by_definition(model, {**batch, "labels": labels}, name), rel=1e-9)


@pytest.mark.parametrize("toy", [TiedToHead, Bypass, Interleaved, InPlace], ids=lambda toy: toy.__name__)
def test_what_cannot_be_measured_is_told_and_left_out(toy, caplog):
    model = make_toy(toy)
    with disentangle(model, model.declared(), **settings("joint")) as handle:
        handle.meter = GradientMeter()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                model(**toy_batch(model))["loss"].backward()
        obstacles = {name: cut.obstacle for name, cut in handle.cuts.items() if not cut.reuse}
        measured = {name for step in handle.meter.take() for name in step}
    assert obstacles and measured == set(model.modalities) - set(obstacles)
    told = [record.getMessage() for record in caplog.records if "not measured" in record.getMessage()]
    assert len(told) == len(obstacles)  # once
    assert all(any(obstacle in message for message in told) for obstacle in obstacles.values())


def test_frozen_encoders_are_not_measured():
    model = make_toy(Concat)
    model.enc_image.requires_grad_(False)
    with disentangle(model, model.declared(), **settings("joint")) as handle:
        handle.meter = GradientMeter()
        model(**toy_batch(model))["loss"].backward()
        (measured,) = handle.meter.take()
    assert set(measured) == {"text"}


def test_every_so_manieth_call():
    model = make_toy(Concat)
    with disentangle(model, model.declared(), **settings("joint")) as handle:
        handle.meter = GradientMeter(every=3)
        with_terms = []
        for _ in range(7):
            output = model(**toy_batch(model))
            output["loss"].backward()
            with_terms.append("losses" in output)
        assert with_terms == [True, False, False, True, False, False, True]
        assert len(handle.meter.take()) == 3 and handle.meter.take() == []
    with pytest.raises(ValueError, match="at least 1"):
        GradientMeter(every=0)


def test_no_gradient_gives_no_number():
    model = make_toy(Concat)
    with disentangle(model, model.declared(), **settings("dgl")) as handle:
        handle.meter = GradientMeter()
        handle.alpha["image"] = put(torch.tensor(0.0, dtype=torch.float64))  # as adaptive_dgl may set it
        model(**toy_batch(model))["loss"].backward()
        means = handle.meter.means(["image", "text"], current())
    assert list(means) == ["grad_ratio_text", "grad_cosine_text"]


@pytest.mark.slow
def test_under_compilation():
    model, batch = make(("image", "text"), "cross_attention")
    found = []
    for compiled in (False, True):
        with disentangle(model, modalities_of(model)) as handle:
            handle.meter = GradientMeter()
            call = torch.compile(model, backend="aot_eager") if compiled else model
            for _ in range(2):  # the first step also decides on reuse
                torch.manual_seed(0)
                model.zero_grad()
                call(**batch).loss.backward()
            found.append((gradients(model), handle.meter.take()[-1]))
    (plain, measured), (compiled_gradients, compiled_measured) = found
    assert max_difference(plain, compiled_gradients) < 1e-9
    for name in ("image", "text"):
        torch.testing.assert_close(measured[name], compiled_measured[name], rtol=1e-7, atol=1e-9)
