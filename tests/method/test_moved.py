"""What a model's forward changes in itself (queues, centres, counters) is changed by the multimodal pass only."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from hf_dgl import disentangle
from tests.training.small import MODALITIES, small_model, small_rows


class Written(nn.Module):
    """A moving centre that is written into, and that the backward needs."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(8))

    def forward(self, x):
        self.centre.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x * self.centre.exp()


class Replaced(Written):
    def forward(self, x):
        self.centre = 0.9 * self.centre + 0.1 * x.detach().mean(0)
        return x - self.centre


class Counting(nn.Module):
    """A weight that grows from step to step, by a number and by a buffer."""

    def __init__(self):
        super().__init__()
        self.steps = 0
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.steps += 1
        self.calls += 1
        return x * min(1.0, self.steps / 10) * self.calls


class Queue(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.zeros(32, 8))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))
        self.register_buffer("eight_bits", torch.ones(2).to(torch.float8_e4m3fn))  # few operations are there for it

    def forward(self, x):
        place = int(self.place)
        similar = (x @ self.rows.clone().T).mean(1, keepdim=True)
        self.rows[place : place + len(x)] = x.detach()
        self.place[...] = (place + len(x)) % len(self.rows)
        return x + similar


def spectral():
    return nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))


def kept(module):
    numbers = {name: value for part in module.modules() for name, value in vars(part).items() if type(value) is int}
    return {**{name: value.clone() for name, value in module.named_buffers()}, **numbers}


@pytest.mark.parametrize("make", [Written, Replaced, Counting, Queue, spectral, lambda: nn.BatchNorm1d(8)])
@pytest.mark.parametrize("where", ["fusion", "encoder"])
def test_as_one_plain_forward_would(make, where):
    states = []
    for routed in (False, True):
        torch.manual_seed(0)
        model, module = small_model(), make()
        if where == "fusion":
            model.layer_norm = nn.Sequential(module, model.layer_norm)
        else:
            model.image_encoder = nn.Sequential(model.image_encoder, nn.ZeroPad1d((0, 4)), module, Half())
        handle = disentangle(model.train(), MODALITIES) if routed else None
        for seed in range(2):
            loss = model(**default_collate(small_rows(6, seed=seed))).loss
            loss.backward()
        assert handle is None or handle.passes
        states.append(kept(module))
    assert states[0].keys() == states[1].keys() and states[0]
    for name, value in states[0].items():
        assert torch.equal(torch.as_tensor(states[1][name]), torch.as_tensor(value)), name


class Half(nn.Module):
    def forward(self, x):
        return x[:, :4] + x[:, 4:]
