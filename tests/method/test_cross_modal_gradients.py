"""DGL on our own model: gradients against the oracle for every fusion, two and three modalities, every method."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from hf_dgl.architectures import modalities_of
from hf_dgl.architectures.attach import disentangle
from hf_dgl.method.methods import METHODS
from hf_dgl.models.fusion import FUSIONS
from tests.devices import put
from tests.oracle import gradients, max_difference, oracle
from tests.tiny import tiny_batch, tiny_model

from .test_disentangle import EXACT, settings

pytestmark = pytest.mark.device

MODALITIES = [("image", "text"), ("image", "text", "audio")]


def to_double(tree):
    if isinstance(tree, dict):
        return {key: to_double(value) for key, value in tree.items()}
    return tree.double() if tree.is_floating_point() else tree


def make(modalities, fusion_type, **kwargs):
    model = tiny_model(modalities, fusion_type=fusion_type, **kwargs).double().train()
    return model, to_double(tiny_batch(modalities))


def model_losses(model, batch, criterion=None):
    """The model's own forward with the other modalities left out: needs no routing at all."""
    names = [name for name in batch if name != "labels"]

    def loss(kept):
        inputs = {name: batch[name] for name in kept}
        if criterion is None:
            return model(**inputs, labels=batch["labels"]).loss
        return criterion(model(**inputs))

    return {"multimodal": lambda: loss(names)} | {name: (lambda name=name: loss([name])) for name in names}


def expected(model, batch, chosen, owners, criterion=None):
    names = [name for name in batch if name != "labels"]
    alpha = dict.fromkeys(names, chosen["alpha"])
    shares = dict.fromkeys(names, chosen["multimodal_to_encoders"])
    return oracle(model, model_losses(model, batch, criterion), owners, alpha, shares, chosen["unimodal_to_fusion"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("modalities", MODALITIES, ids=len)
@pytest.mark.parametrize("fusion_type", FUSIONS)
def test_gradients_are_the_oracles(fusion_type, modalities, method):
    model, batch = make(modalities, fusion_type)
    chosen = settings(method)
    with disentangle(model, modalities_of(model), **chosen) as handle:
        model(**batch).loss.backward()
        owners = handle.partition.owners
        assert all(cut.reuse for cut in handle.cuts.values())
    actual = gradients(model)
    model.zero_grad()
    assert max_difference(actual, expected(model, batch, chosen, owners)) < EXACT


@pytest.mark.parametrize("fusion_type", FUSIONS)
def test_the_checks_pass(fusion_type):
    model, batch = make(("image", "text", "audio"), fusion_type)
    with disentangle(model, modalities_of(model)) as handle:
        report = handle.check(batch)
    assert set(report.leak.values()) == {0.0} and len(report.gradient_error) == 4


@pytest.mark.parametrize("fusion_type", FUSIONS)
@pytest.mark.parametrize("method", METHODS)
def test_accumulation_and_label_smoothing(fusion_type, method):
    model, batch = make(("image", "text"), fusion_type)
    chosen = settings(method)
    labels = batch.pop("labels")

    def loss_of(rows):
        inputs = {name: {key: value[rows] for key, value in part.items()} for name, part in batch.items()}
        output = model(**inputs)
        return handle.loss(output, lambda out: cross_entropy(out.logits, labels[rows], label_smoothing=0.1))

    with disentangle(model, modalities_of(model), **chosen) as handle:
        loss_of(slice(0, 4)).backward()
        whole = gradients(model)
        model.zero_grad()
        for start in (0, 2):
            (loss_of(slice(start, start + 2)) / 2).backward()
        owners = handle.partition.owners
    parts = gradients(model)
    model.zero_grad()
    assert max_difference(whole, parts) < EXACT
    want = expected(model, batch, chosen, owners, lambda out: cross_entropy(out.logits, labels, label_smoothing=0.1))
    assert max_difference(whole, want) < EXACT


@pytest.mark.parametrize("fusion_type", FUSIONS)
def test_frozen_encoder(fusion_type):
    model, batch = make(("image", "text"), fusion_type)
    model.cross_modal.encoders["image"].requires_grad_(False)
    with disentangle(model, modalities_of(model)) as handle:
        output = model(**batch)
        output.loss.backward()
        owners = handle.partition.owners
    assert set(output.losses) == {"multimodal", "text"}
    actual = gradients(model)
    model.zero_grad()
    assert max_difference(actual, expected(model, batch, settings("dgl", 1.0), owners)) < EXACT


@pytest.mark.parametrize("fusion_type", FUSIONS)
def test_a_modality_missing_from_the_batch_or_from_rows(fusion_type):
    model, batch = make(("image", "text"), fusion_type)
    with disentangle(model, modalities_of(model)):
        output = model(text=batch["text"], labels=batch["labels"])
        assert set(output.losses) == {"multimodal", "text"}
        batch["image"]["present"] = put(torch.tensor([True, False, True, False]))
        output = model(**batch)
        output.loss.backward()
    alone = {key: value[[0, 2]] for key, value in batch["image"].items() if key != "present"}
    want = model(image=alone, labels=batch["labels"][[0, 2]]).loss
    torch.testing.assert_close(output.losses["image"], want, rtol=0, atol=EXACT)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


def test_nothing_of_dgl_is_saved(tmp_path):
    model, batch = make(("image", "text"), "cross_attention", problem_type="single_label_classification")
    model.save_pretrained(tmp_path / "before")
    with disentangle(model, modalities_of(model)):
        model(**batch).loss.backward()
        model.save_pretrained(tmp_path / "during")
    files = sorted(path.name for path in (tmp_path / "before").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "during").iterdir())
    for name in files:
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "during" / name).read_bytes()
