"""Forwards that are no part of the training leave no trace in it: random numbers, buffers and counts as before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def random_numbers_kept(model: nn.Module) -> Iterator[None]:
    """Nothing that is drawn inside is missing from what comes after: torch's, NumPy's and Python's random numbers.

    Args:
        model: On whose devices there are generators, too.

    Example:

        >>> with random_numbers_kept(model):
        ...     model(**batch)  # dropout; SpecAugment, which draws by NumPy
    """
    before = RandomNumbers(model)
    try:
        yield
    finally:
        before.restore()


class RandomNumbers:
    """Where the generators of torch (also on the model's devices), NumPy and Python stand when this is made.

    Example:

        >>> before = RandomNumbers(model)
        >>> first = torch.rand(3)
        >>> before.restore()
        >>> torch.equal(first, torch.rand(3))
        True
    """

    def __init__(self, model: nn.Module) -> None:
        devices = {parameter.device for parameter in model.parameters()} if torch.cuda.is_available() else ()
        self._torch = torch.get_rng_state()
        self._cuda = [(device, torch.cuda.get_rng_state(device)) for device in devices if device.type == "cuda"]
        self._numpy, self._python = np.random.get_state(), random.getstate()

    def restore(self) -> None:
        """Puts them back there."""
        torch.set_rng_state(self._torch)
        for device, state in self._cuda:
            torch.cuda.set_rng_state(state, device)
        np.random.set_state(self._numpy)
        random.setstate(self._python)


@contextmanager
def without_a_trace(model: nn.Module) -> Iterator[set[tuple[nn.Module, str]]]:
    """As [`random_numbers_kept`]; and the modules' buffers and numbers are those from before again.

    Buffers that were written into get their values back, and buffers that were replaced (the tables of growing
    position encodings) are replaced again, together with the numbers that say how far they reach.

    Yields:
        What was other inside, when it ends: module, and name of a buffer or an attribute.

    Example:

        >>> with without_a_trace(model):
        ...     output = model(**batch)
    """
    before, moved = [_State(module) for module in model.modules()], set[tuple[nn.Module, str]]()
    try:
        with random_numbers_kept(model):
            yield moved
    finally:
        with torch.no_grad():
            for state in before:
                moved.update((state.module, name) for name in state.moved())
                state.restore()


class _State:
    """What a forward may change of one module beside its parameters.

    Other flags stay: they tell of what stays, too (upstream notes that it has put its hooks on a model).
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._buffers = dict(module._buffers)
        self._non_persistent = set(module._non_persistent_buffers_set)
        self._attributes = {n: value for n, value in vars(module).items() if n == "training" or _is_counted(value)}
        candidates: list[Any] = [*self._buffers.values(), *self._attributes.values()]
        # One that a graph made is not written into: a backward may still need it.
        tensors = [value for value in candidates if isinstance(value, torch.Tensor) and value.grad_fn is None]
        self._values = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self._versions = {id(tensor): tensor._version for tensor in tensors if not tensor.is_inference()}

    def moved(self) -> list[str]:
        """Names of the buffers and attributes that are others now, or were written into."""
        now = {**vars(self.module), **self.module._buffers}
        before = {**self._attributes, **self._buffers}
        return [name for name, value in before.items() if name != "training" and self._is_other(value, now.get(name))]

    def _is_other(self, before: Any, now: Any) -> bool:
        if before is now:
            return id(before) in self._versions and before._version != self._versions[id(before)]
        return isinstance(before, torch.Tensor) or isinstance(now, torch.Tensor) or bool(before != now)

    def restore(self) -> None:
        vars(self.module).update(self._attributes)
        self.module._buffers.clear()
        self.module._buffers.update(self._buffers)
        self.module._non_persistent_buffers_set.clear()
        self.module._non_persistent_buffers_set.update(self._non_persistent)
        for tensor, value in self._values:
            tensor.copy_(value)


def _is_counted(value: Any) -> bool:
    return isinstance(value, (int, float, torch.Tensor)) and not isinstance(value, bool)
