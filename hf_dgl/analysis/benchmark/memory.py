"""What a training step keeps in memory: all of it, or what autograd saves for the backward, by part of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from .procedures import Step

FUSION = "fusion"


def memory_of(model: nn.Module, step: Step) -> int:
    """Bytes of activations of one step.

    On a CPU, and of fake tensors: what autograd saves for the backward. On a GPU: the peak of allocated memory above
    that before the step, new gradients included.

    Example:

        >>> memory_of(model, procedures.dgl)
        123904
    """
    first = next(model.parameters())
    if first.device.type == "cuda" and not isinstance(first, FakeTensor):
        torch.cuda.reset_peak_memory_stats(first.device)
        before = torch.cuda.memory_allocated(first.device)
        step()
        return torch.cuda.max_memory_allocated(first.device) - before
    return sum(saved_by_part(model, {}, step).values())


def saved_by_part(model: nn.Module, encoders: Mapping[str, nn.Module], step: Step) -> dict[str, int]:
    """Bytes that autograd saves for the backward in one step, each storage once, parameters left out.

    Args:
        model: Its parameters are not counted.
        encoders: Part -> module: what is saved while it runs is its own; all else is the fusion's.
        step: Forward and backward.

    Returns:
        Part -> bytes; the first part that saves a storage has it.

    Example:

        >>> saved_by_part(model, {"image": model.cross_modal.encoders["image"]}, procedures.dgl)
        {'fusion': 61440, 'image': 62464}
    """
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, Any] = {}  # keeps the storages alive, so that no address comes twice
    sizes = dict.fromkeys([FUSION, *encoders], 0)

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters and storage._cdata not in saved:
            saved[storage._cdata] = storage
            sizes[running[-1]] += storage.nbytes()
        return tensor

    with _running(encoders) as running, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sizes


@contextmanager
def _running(encoders: Mapping[str, nn.Module]) -> Iterator[list[str]]:
    """A stack whose last entry is the part that runs."""
    running = [FUSION]

    def begins(name: str) -> Callable[..., None]:
        return lambda *_: running.append(name)

    hooks = []
    for name, module in encoders.items():
        hooks.append(module.register_forward_pre_hook(begins(name)))
        hooks.append(module.register_forward_hook(lambda *_: running.pop() and None, always_call=True))
    try:
        yield running
    finally:
        for hook in hooks:
            hook.remove()
