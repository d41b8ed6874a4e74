"""What whoever computes a loss keeps between steps: centres, queues, counters, sums of a metric.

A `compute_loss` is run once for each pass of a step. State that it changes would change as often, with the numbers of
each modality in turn: so it is looked at in the first step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any

from torch import Tensor, nn

_DEPTH = 3  # of containers in containers


def state_of(owner: Any, but: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The attributes of an object that a loss could change, by name; to be compared by [`changed`].

    Args:
        owner: The Trainer, or a loss function with attributes; modules are looked into.
        but: Attributes that are left out.

    Example:

        >>> before = state_of(trainer)
        >>> trainer.calls += 1
        >>> changed(before, state_of(trainer))
        ['calls']
    """
    found: dict[str, Any] = {}
    for name, value in vars(owner).items() if hasattr(owner, "__dict__") else ():
        if name not in but:
            found.update(_leaves(name, value))
    if isinstance(owner, nn.Module):
        found.update(_of_module("", owner))
    return found


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names whose value is another, or was written into."""
    return [name for name in sorted({*before, *after}) if not _same(before.get(name), after.get(name))]


def _leaves(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if isinstance(value, nn.Module):
        yield from _of_module(name, value)
    elif isinstance(value, Tensor):
        yield name, (value, value._version)  # the tensor is kept: another one cannot take its place in memory
    elif isinstance(value, (int, float)):
        yield name, value
    elif isinstance(value, Mapping) and depth < _DEPTH:
        yield f"{name} (its size)", len(value)
        for key, entry in list(value.items()):
            yield from _leaves(f"{name}[{key!r}]", entry, depth + 1)
    elif isinstance(value, (list, set)) and isinstance(value, Sized):
        yield f"{name} (its size)", len(value)


def _of_module(name: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, part in module.named_modules(prefix=name):
        for key, value in {**part._parameters, **part._buffers, **vars(part)}.items():
            if isinstance(value, (Tensor, int, float)):
                yield from _leaves(f"{path}.{key}" if path else key, value)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, tuple) and isinstance(second, tuple):
        return first[0] is second[0] and first[1] == second[1]
    return type(first) is type(second) and (first == second or first != first)
