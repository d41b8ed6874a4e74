"""Whatever a loss can keep and however it changes it: it is seen."""

from __future__ import annotations

import functools
import random
from collections import Counter, deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hf_dgl.method.loss_state import changed, state_of


class Queue:
    """Of the user's own; no module."""

    __slots__ = ("rows", "place", "drawn")
    of_all = 0

    def __init__(self):
        self.rows, self.place, self.drawn = torch.zeros(8, 2), 0, random.Random(0)

    def push(self):
        self.rows[self.place] = 1
        self.place += 1


class Holder:
    pass


def holding(**attributes):
    found = Holder()
    vars(found).update(attributes)
    return found


def closing_over():
    store, total = [], 0

    def loss(outputs):
        nonlocal total
        total += 1
        store.append(outputs)

    return loss


GLOBAL = []


def keeping_globally(outputs):
    helper(outputs)


def helper(outputs):
    GLOBAL.append(outputs)


def momentum(teacher):
    for parameter in teacher.parameters():
        parameter.data.mul_(0.9)


LARGE = nn.Linear(300, 300)

CHANGES = [
    ("an attribute", holding(a=0), lambda o: setattr(o, "a", 1), ["a"]),
    ("None", holding(a=None), lambda o: setattr(o, "a", torch.ones(1)), ["a"]),
    ("a word", holding(a=""), lambda o: setattr(o, "a", "b"), ["a"]),
    ("a list", holding(a=[]), lambda o: o.a.append(1), ["a (its size)"]),
    ("in a list", holding(a=[0, 1]), lambda o: o.a.__setitem__(0, 2), ["a[0]"]),
    ("a full queue", holding(a=deque([1, 2], 2)), lambda o: o.a.append(3), ["a[0]", "a[1]"]),
    ("a set", holding(a={1}), lambda o: (o.a.remove(1), o.a.add(2)), ["a"]),
    ("a count", holding(a=Counter(x=1)), lambda o: o.a.update("x"), ["a['x']"]),
    ("deep down", holding(a={"b": {"c": ({"d": []},)}}), lambda o: o.a["b"]["c"][0]["d"].append(1),
     ["a['b']['c'][0]['d'] (its size)"]),
    ("an array", holding(a=np.zeros(3)), lambda o: o.a.__iadd__(1), ["a"]),
    ("a tensor", holding(a=torch.zeros(3)), lambda o: o.a.add_(1), ["a"]),
    ("a tensor's data", holding(a=torch.zeros(3)), lambda o: o.a.data.add_(1), ["a"]),
    ("a teacher", holding(a=nn.Linear(2, 2)), lambda o: momentum(o.a), ["a.bias", "a.weight"]),
    ("a large teacher", holding(a=LARGE), lambda o: momentum(o.a), ["a.bias", "a.weight"]),
    ("many of eight bits", holding(a=torch.ones(70_000).to(torch.float8_e4m3fn)), lambda o: o.a.zero_(), ["a"]),
    ("a module's attribute", holding(a=nn.ReLU()), lambda o: setattr(o.a, "calls", 1), ["a.calls"]),
    ("an object", holding(a=Queue()), lambda o: o.a.push(), ["a.place", "a.rows"]),
    ("its class", holding(a=Queue()), lambda o: setattr(Queue, "of_all", Queue.of_all + 1), ["a.of_all"]),
    ("torch's generator", holding(a=torch.Generator()), lambda o: torch.rand(1, generator=o.a), ["a"]),
    ("NumPy's generator", holding(a=np.random.default_rng(0)), lambda o: o.a.random(), ["a"]),
    ("Python's generator", holding(a=Queue()), lambda o: o.a.drawn.random(), ["a.drawn"]),
    ("a closure", closing_over(), lambda f: f(1), ["store (its size)", "total"]),
    ("a partial", functools.partial(Queue.push, Queue()), lambda f: f(), ["args[0].place", "args[0].rows"]),
    ("a method", Queue().push, lambda f: f(), ["place", "rows"]),
    ("a global variable", keeping_globally, lambda f: f(1), ["helper.GLOBAL (its size)"]),
    ("a default", lambda o, a=[]: a.append(o), lambda f: f(1), ["(default 0) (its size)"]),  # noqa: B006
]  # fmt: skip


@pytest.mark.parametrize(("owner", "change", "names"), [case[1:] for case in CHANGES], ids=[c[0] for c in CHANGES])
def test_it_is_seen(owner, change, names):
    before = state_of(owner)
    assert changed(before, state_of(owner)) == []
    change(owner)
    assert changed(before, state_of(owner)) == names


UNCHANGED = [
    ("the same anew", holding(a=torch.ones(2)), lambda o: setattr(o, "a", torch.ones(2))),
    ("nothing is not a number", holding(a=float("nan"), b=torch.tensor([torch.nan])), lambda o: None),
    (
        "eight bits",
        holding(a=torch.ones(2).to(torch.float8_e4m3fn), b=torch.ones(2, dtype=torch.bool)),
        lambda o: None,
    ),
    ("train and eval", holding(a=nn.Dropout()), lambda o: o.a.eval()),
    ("a library's", holding(a=torch.optim.SGD([torch.zeros(1)])), lambda o: setattr(o.a, "calls", 1)),
    ("a circle", SimpleNamespace(a=[]), lambda o: None),
]
UNCHANGED[-1][1].a.append(UNCHANGED[-1][1])


@pytest.mark.parametrize(("owner", "change"), [case[1:] for case in UNCHANGED], ids=[c[0] for c in UNCHANGED])
def test_it_is_none(owner, change):
    before = state_of(owner)
    change(owner)
    assert changed(before, state_of(owner)) == []


def test_what_is_left_out():
    model = nn.Linear(2, 2)
    owner = holding(a=1, model=model, kept=[model])
    assert state_of(owner, but=["a"], unseen=[model]) == {"kept (its size)": 1}
