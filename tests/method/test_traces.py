"""What a forward that is no part of the training, and a copy of the model, must not take along."""

from __future__ import annotations

import copy
import io
import pickle
import random

import numpy as np
import pytest
import torch

from hf_dgl.architectures.attach import disentangle
from hf_dgl.method.traces import without_a_trace
from tests.oracle import Concat, make_toy, toy_batch


class Leaves(Concat):
    """Draws from every generator; writes into one buffer, replaces one, makes one; counts its calls."""

    def build(self):
        super().build()
        self.register_buffer("written", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(1))
        self.register_buffer("empty", None)
        self.reach, self.table = 0, torch.zeros(1)

    def fuse(self, features):
        self.written += 1
        self.replaced = torch.ones(len(self.replaced) + 1)
        self.empty = torch.ones(1)
        self.table += 1
        self.reach += 1
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.ones(1), persistent=False)
        drawn = random.random() + np.random.rand() + float(torch.rand(()))
        return super().fuse(features) * (1 + 0.1 * drawn)


def drawn():
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def seed():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def test_nothing_remains_of_a_forward():
    model = make_toy(Leaves)
    replaced, kept = model.replaced, copy.deepcopy(model.state_dict())
    seed()
    expected = drawn()
    seed()
    with without_a_trace(model):
        model(**toy_batch(model))
        assert model.reach == 1 and len(model.replaced) == 2
    assert drawn() == expected
    assert model.replaced is replaced and model.empty is None and model.reach == 0 and model.table == 0
    assert not hasattr(model, "late") and not model._non_persistent_buffers_set
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name])


def test_what_a_graph_made_is_not_written_into():
    model = make_toy(Concat)
    model.last = model.head.weight.tanh()
    with without_a_trace(model):
        pass
    model.last.sum().backward()  # raises if it was modified in place


@pytest.mark.parametrize("method", ["dgl", "joint"])
def test_the_first_step_equals_one_whose_cut_is_known(method):
    results = []
    for warm in (False, True):
        model = make_toy(Leaves)
        batch = toy_batch(model)
        settings = {"alpha": 0.0, "multimodal_to_encoders": 1.0} if method == "joint" else {}
        with disentangle(model, model.declared(), **settings) as handle:
            if warm and method == "dgl":
                handle._plan(["image", "text"], batch)
            seed()
            loss = model(**batch)["loss"]
            results.append([loss.item(), *drawn(), model.reach, len(model.replaced), model.written.tolist()])
    assert results[0] == results[1]


def test_evaluating_each_modality_draws_no_random_number():
    model = make_toy(Leaves).eval()
    batch, after = toy_batch(model), []
    for alone in (False, True):
        with disentangle(model, model.declared()) as handle, torch.no_grad():
            seed()
            if alone:
                with handle.unimodal_outputs():
                    model(**batch)
            else:
                model(**batch)
        after.append(drawn())
    assert after[0] == after[1]


def _pickled(model):
    return pickle.loads(pickle.dumps(model))


def _saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": _pickled, "torch.save": _saved}


@pytest.mark.parametrize("how", COPIES)
def test_copies_carry_nothing_of_ours(how):
    model = make_toy(Concat)
    foreign = model.register_forward_hook(_foreign, with_kwargs=True)
    with disentangle(model, model.declared()) as handle:
        handle.stay_behind()
        model(**toy_batch(model))["loss"].backward()
        other = COPIES[how](model)
        alone = COPIES[how](model.enc_image)
        for dumps in (pickle.dumps, pickle._dumps):  # in C, in Python
            assert b"hf_dgl" not in dumps(model) and b"hf_dgl" not in dumps(model.enc_image)
        for module in [*other.modules(), *alone.modules()]:
            if how != "copy" or module in (other, alone):
                assert "__getstate__" not in vars(module)
                hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
                assert hooks == ([_foreign] if module is other else [])
        assert list(other._forward_hooks_with_kwargs) == [foreign.id]
    assert "__getstate__" not in vars(model) and not model.enc_image._forward_hooks
    output = other(**toy_batch(other))
    assert "unimodal" not in output


def _foreign(module, args, kwargs, output):
    """A hook of somebody else."""


def test_a_class_with_a_state_of_its_own():
    model = make_toy(OwnState)
    with disentangle(model, model.declared()) as handle:
        handle.stay_behind()
        other = copy.deepcopy(model)
    assert other.restored and not other._forward_hooks


class OwnState(Concat):
    def __getstate__(self):
        return {**vars(self), "restored": True}
