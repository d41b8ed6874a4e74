"""Activation checkpointing recomputes the forward during backward: the recomputation must see the routing of its
pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_dgl.architectures import modalities_of
from hf_dgl.architectures.attach import disentangle
from hf_dgl.method.methods import METHODS
from hf_dgl.models.fusion import FUSIONS
from tests.oracle import (
    Attention,
    Bypass,
    Concat,
    Interleaved,
    TiedToHead,
    gradients,
    make_toy,
    max_difference,
    toy_batch,
)

from .test_cross_modal_gradients import expected, make
from .test_disentangle import EXACT, expected_gradients, settings

pytestmark = pytest.mark.device


def checkpointed(toy, use_reentrant=False):
    """The toy with every encoder and the fusion in a checkpointed region of its own."""

    class Checkpointed(toy):
        def encode(self, name, x):
            return checkpoint(super().encode, name, x, use_reentrant=use_reentrant)

        def fuse(self, features):
            return checkpoint(super().fuse, features, use_reentrant=use_reentrant)

    return Checkpointed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("toy", [Concat, Attention, Bypass, TiedToHead], ids=lambda toy: toy.__name__)
def test_checkpointed_regions_are_exact(toy, method):
    model = make_toy(checkpointed(toy))
    batch = toy_batch(model)
    with disentangle(model, model.declared(), **settings(method)) as handle:
        model(**batch)["loss"].backward()
        owners = handle.partition.owners
    actual = gradients(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.zero_grad()
    assert max_difference(actual, expected_gradients(model, batch, settings(method), owners)) < EXACT


class CoincidingShapes(Concat):
    """Two linear layers whose weights, inputs and outputs all have one shape: nothing but the values could tell."""

    def build(self):
        self.first = nn.Linear(self.width, self.width)
        self.second = nn.Linear(self.width, self.width)
        self.head = nn.Linear(self.width, 3)

    def fuse(self, features):
        mean = sum(feature.mean(1) for feature in features.values())
        return self.head(checkpoint(lambda x: self.second(torch.tanh(self.first(x))), mean, use_reentrant=False))


def test_the_coinciding_shapes_trap():
    model = make_toy(CoincidingShapes)
    batch = toy_batch(model, rows=model.width)  # batch = width: a wrong saved tensor would fit
    with disentangle(model, model.declared()) as handle:
        model(**batch)["loss"].backward()
        owners = handle.partition.owners
    actual = gradients(model)
    model.zero_grad()
    assert max_difference(actual, expected_gradients(model, batch, settings("dgl", 1.0), owners)) < EXACT


@pytest.mark.parametrize("toy", [Concat, Interleaved], ids=lambda toy: toy.__name__)
def test_nothing_is_left_behind(toy):
    import inspect

    default = inspect.unwrap(checkpoint).__kwdefaults__["context_fn"]
    model = make_toy(toy)
    with disentangle(model, model.declared()):
        model(**toy_batch(model))["loss"].backward()
        assert inspect.unwrap(checkpoint).__kwdefaults__["context_fn"] is default


def test_reentrant_checkpointing_is_refused():
    model = make_toy(checkpointed(Concat, use_reentrant=True))
    batch = toy_batch(model)
    for name in model.modalities:
        batch[name].requires_grad_(True)
    with disentangle(model, model.declared()), pytest.raises(ValueError, match="'use_reentrant': False"):
        model(**batch)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fusion_type", FUSIONS)
def test_our_model_by_its_own_method(fusion_type, method):
    model, batch = make(("image", "text"), fusion_type)
    model.gradient_checkpointing_enable()
    chosen = settings(method)
    with disentangle(model, modalities_of(model), **chosen) as handle:
        model(**batch).loss.backward()
        owners = handle.partition.owners
    actual = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_disable()
    assert max_difference(actual, expected(model, batch, chosen, owners)) < EXACT
