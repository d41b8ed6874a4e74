from __future__ import annotations

import pytest
import torch

from hf_dgl.architectures.attach import disentangle
from hf_dgl.architectures.lookup import modalities_of
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


class Noisy(Concat):
    """Draws noise in evaluation, too: in an encoder and in the fusion, as ViLT draws its patches."""

    def encode(self, name, x):
        return super().encode(name, x + torch.randn_like(x))

    def fuse(self, features):
        return super().fuse({name: f + torch.rand_like(f) for name, f in features.items()})


def test_noise_is_no_error():
    model = make_toy(Noisy)
    with disentangle(model, model.declared()) as handle:
        report = handle.check(toy_batch(model))
    assert max(report.gradient_error.values()) < 1e-12
    assert set(report.leak.values()) == {0.0}


class Masked(Concat):
    """A class that is masked out has the logit -inf, wherever the image is black (or, wrongly, wherever it is not)."""

    leaks = False

    def forward(self, labels=None, only=None, **batch):
        logits = self.fuse(self.features(batch))
        closed = torch.zeros_like(logits, dtype=torch.bool)
        closed[:, 2] = bool(batch["image"].mean() < 0.2) if self.leaks else True
        logits = logits.masked_fill(closed, -torch.inf)
        return {"logits": logits, "loss": torch.nn.functional.cross_entropy(logits, labels % 2)}


def test_infinite_logits_are_no_leak_where_they_stay():
    model = make_toy(Masked)
    with disentangle(model, model.declared()) as handle:
        assert set(handle.check(toy_batch(model)).leak.values()) == {0.0}
        model.leaks = True
        with pytest.raises(CheckError, match="text alone: LEAK, its output changes by inf"):
            handle.check(toy_batch(model))


def test_nan_is_not_lost():
    """In a group of several parameters, of which the first is fine."""

    class Undefined(Concat):
        def fuse(self, features):
            return super().fuse({name: f / f.abs().max() for name, f in features.items()})

    model = make_toy(Undefined)
    with disentangle(model, model.declared()) as handle, pytest.raises(CheckError) as error:
        handle.check(toy_batch(model))
    assert "gradients of fusion: WRONG (relative error nan)" in str(error.value)
    assert "image alone: UNDEFINED, its loss or logits are NaN" in str(error.value)


def test_pictures_of_any_shape_pass_on_a_known_class():
    """Tall, wide and square: each has another number of tokens, so their sizes must stay with their rows."""
    import transformers

    from tests.architectures_tiny import LLAMA, VISION

    config = transformers.LlavaNextConfig(
        text_config=LLAMA,
        vision_config={**VISION, "patch_size": 4, "model_type": "clip_vision_model"},
        image_token_index=60,
        image_grid_pinpoints=[[16, 16]],
    )
    model = transformers.LlavaNextForConditionalGeneration(config)
    sizes, places = torch.tensor([[16, 8], [8, 16], [16, 16]]), (28, 26, 36)
    ids = torch.zeros(3, 41, dtype=torch.long)
    for row, count in enumerate(places):
        ids[row, : count + 5] = torch.tensor([1, *[60] * count, 7, 8 + row, 9, 10])
    labels = ids.where((ids > 7) & (ids != 60), -100)
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels, "image_sizes": sizes}
    with disentangle(model, modalities_of(model)) as handle:
        assert handle.check({**batch, "pixel_values": torch.randn(3, 2, 3, 16, 16)}).passed
