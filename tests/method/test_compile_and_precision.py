"""torch.compile (on the whole model or on its parts), bf16 and fp16 give DGL's gradients."""

from __future__ import annotations

import pytest
import torch

from hf_dgl.architectures import modalities_of
from hf_dgl.architectures.attach import disentangle
from hf_dgl.method.methods import METHODS
from hf_dgl.models.fusion import FUSIONS
from tests.devices import current
from tests.oracle import gradients, max_difference
from tests.tiers import slow_but
from tests.tiny import tiny_batch, tiny_model
from tests.training.test_trainer import make as make_trainer
from tests.training.test_trainer import same, weights

from .test_cross_modal_gradients import expected
from .test_disentangle import settings

pytestmark = pytest.mark.device

NAMES = ("image", "text")


def relative(actual, reference):
    """Largest difference of a parameter's gradient, relative to the largest gradient there is."""
    return max_difference(actual, reference) / max(float(value.abs().max()) for value in reference.values())


def step(compiled=None, method="dgl"):
    model, batch = tiny_model(NAMES).train(), tiny_batch(NAMES)
    with disentangle(model, modalities_of(model), **settings(method)):
        call = torch.compile(model, backend="aot_eager") if compiled == "whole" else model
        if compiled == "in place":
            model.compile(backend="aot_eager")
        if compiled == "encoders":
            for encoder in model.cross_modal.encoders.values():
                encoder.compile(backend="aot_eager")
        for _ in range(2):  # the first step also decides on reuse
            model.zero_grad()
            call(**batch).loss.backward()
    return gradients(model)


@pytest.mark.parametrize("method", ["dgl", "auxiliary"])
@pytest.mark.parametrize("compiled", slow_but("encoders", of=["whole", "in place", "encoders"]))
def test_a_compiled_model_has_the_gradients_of_the_eager_one(compiled, method):
    assert max_difference(step(compiled, method), step(None, method)) < 1e-6


@pytest.mark.slow
def test_the_trainers_flag(tmp_path):
    results = []
    for kwargs in [{}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}]:
        trainer = make_trainer(tmp_path, max_steps=2, optim="sgd", **kwargs)
        trainer.train()
        results.append(weights(trainer))
    same(*results, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fusion_type", FUSIONS)
def test_bf16_is_the_oracle_in_bf16_and_near_fp32(fusion_type, method):
    model, batch = tiny_model(NAMES, fusion_type=fusion_type).train(), tiny_batch(NAMES)
    chosen = settings(method)
    with disentangle(model, modalities_of(model), **chosen) as handle:
        with torch.autocast(current().type, torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        owners = handle.partition.owners
    actual = gradients(model)
    model.zero_grad()
    in_fp32 = expected(model, batch, chosen, owners)
    with torch.autocast(current().type, torch.bfloat16):
        in_bf16 = expected(model, batch, chosen, owners)
    assert relative(actual, in_bf16) < 4e-2  # sums of rounded terms, in another order
    assert relative(actual, in_fp32) < 8e-2
    assert all(torch.isfinite(value).all() for value in actual.values())


@pytest.mark.parametrize("fusion_type", FUSIONS)
def test_fp16_with_a_loss_scaler(fusion_type):
    """One scaled total is one backward: every group is scaled alike, and unscaling gives DGL's gradients."""
    model, batch = tiny_model(NAMES, fusion_type=fusion_type).train(), tiny_batch(NAMES)
    scaler = torch.amp.GradScaler(current().type, init_scale=2.0**10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with disentangle(model, modalities_of(model)) as handle:
        with torch.autocast(current().type, torch.float16):
            loss = model(**batch).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        owners = handle.partition.owners
    actual = gradients(model)
    assert all(torch.isfinite(value).all() for value in actual.values())
    model.zero_grad()
    assert relative(actual, expected(model, batch, settings("dgl", 1.0), owners)) < 2e-2


@pytest.mark.parametrize("precision", ["bf16"])
def test_the_trainer_in_mixed_precision(tmp_path, precision):
    results = []
    for kwargs in [{}, {precision: True}]:
        trainer = make_trainer(tmp_path, max_steps=3, optim="sgd", learning_rate=1e-1, **kwargs)
        trainer.train()
        results.append(weights(trainer))
    same(*results, atol=5e-3)
    assert all(value.dtype == torch.float32 for value in results[1].values() if value.is_floating_point())
