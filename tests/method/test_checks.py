from __future__ import annotations

import pytest
import torch

from hf_dgl.architectures.attach import disentangle
from hf_dgl.method.checks import CheckError
from tests.oracle import TOYS, Attention, Concat, gradients, make_toy, toy_batch

from .test_disentangle import settings


@pytest.mark.parametrize("method", ["dgl", "auxiliary", "joint"])
@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.__name__)
def test_toys_pass(toy, method):
    model = make_toy(toy)
    with disentangle(model, model.declared(), **settings(method)) as handle:
        report = handle.check(toy_batch(model))
    assert report.passed
    assert max(report.gradient_error.values()) < 1e-12
    assert all(leak == 0 for leak in report.leak.values())


def test_the_model_is_left_as_it_was():
    model = make_toy(Concat)
    batch = toy_batch(model)
    with disentangle(model, model.declared()) as handle:
        model(**batch)["loss"].backward()
        before = gradients(model)
        torch.manual_seed(5)
        handle.check(batch)
        drawn = torch.rand(2)
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(2))
        assert model.training and model.head.training
        assert all(torch.equal(before[name], value) for name, value in gradients(model).items())


class SkipsTheEncoder(Concat):
    """The raw image reaches the fusion beside its encoder."""

    def forward(self, labels=None, only=None, **batch):
        features = self.features(batch)
        features["text"] = features["text"] + batch["image"].mean()
        logits = self.fuse(features)
        return {"logits": logits, "loss": torch.nn.functional.cross_entropy(logits, labels)}


def test_a_leak_is_found_and_named():
    model = make_toy(SkipsTheEncoder)
    with disentangle(model, model.declared()) as handle, pytest.raises(CheckError, match="text alone: LEAK"):
        handle.check(toy_batch(model))


def test_a_wrong_gradient_is_found():
    model = make_toy(Attention)
    batch = toy_batch(model)
    with disentangle(model, model.declared()) as handle:
        handle.partition.slots[:] = [slot for slot in handle.partition.slots if "in_proj_weight" not in slot[1]]
        with pytest.raises(CheckError, match="gradients of fusion: WRONG"):
            handle.check(batch)


def test_without_declared_inputs_the_leak_check_says_so():
    model = make_toy(Concat)
    with disentangle(model, {"image": "enc_image", "text": "enc_text"}) as handle:
        report = handle.check(toy_batch(model))
    assert report.leak == {"image": None, "text": None}
    assert "leak not checked" in str(report)


def test_a_batch_without_labels_is_refused():
    model = make_toy(Concat)
    batch = toy_batch(model)
    del batch["labels"]
    with disentangle(model, model.declared()) as handle, pytest.raises(ValueError, match="batch with labels"):
        handle.check(batch)


def test_a_loss_in_a_tuple_is_refused():
    class Tuple(Concat):
        def forward(self, **batch):
            return tuple(super().forward(**batch).values())

    model = make_toy(Tuple)
    with disentangle(model, model.declared()) as handle, pytest.raises(ValueError, match="Tuple returned none"):
        handle.check(toy_batch(model))
