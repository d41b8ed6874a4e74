"""What models return, handled without knowing the model: trees of tensors, losses, and outputs with further
entries."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree


@dataclasses.dataclass
class DisentangledOutput:
    """Stands for the output of a model that returns a tensor or a tuple, which cannot carry more than it has.

    Attributes:
        output: What the model returned, from all modalities.
        loss: The DGL total, or None if the model computes no loss (see [`Disentangled.loss`]).
        losses: Each term by name (`multimodal` and the modalities), unweighted.
        unimodal: What the model returned for each modality alone.
        encoder_share: Only where a share of the multimodal gradient goes to an encoder that cannot be reused: outputs
            whose loss is added for its gradient.
    """

    output: Any = None
    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    unimodal: dict[str, Any] | None = None
    encoder_share: dict[float, Any] | None = None


def map_tensors(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """A new tree of the same containers with `function` applied to every tensor; other leaves are kept."""

    def leaf(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return function(value)
        if dataclasses.is_dataclass(value) and not isinstance(
            value, type
        ):  # not known to pytree: rebuilt without calling __init__
            copied = object.__new__(type(value))
            copied.__dict__.update({key: map_tensors(function, entry) for key, entry in vars(value).items()})
            return copied
        return value

    return pytree.tree_map(leaf, tree)


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """All tensors of a tree, in order."""
    found: list[torch.Tensor] = []
    map_tensors(found.append, tree)
    return found


def loss_of(output: Any) -> torch.Tensor | None:
    """The `loss` of a model's output, if it has one: of a tuple, a scalar in its first place (`return_dict=False`)."""
    if isinstance(output, tuple):
        loss = output[0] if output and isinstance(output[0], torch.Tensor) and output[0].dim() == 0 else None
    else:
        loss = entry(output, "loss")
    return loss if isinstance(loss, torch.Tensor) else None


def entry(output: Any, key: str) -> Any:
    """An entry of a dict or an attribute of an object; None if there is none."""
    return output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)


def first_prediction(output: Any) -> Any:
    """What a model predicts, a tensor: the first entry of its output that is no loss, or the output itself; None if
    that is no tensor."""
    if isinstance(output, Mapping):
        first = next((value for key, value in output.items() if key != "loss"), None)
    elif isinstance(output, tuple):
        first = next(iter(output[0 if loss_of(output) is None else 1 :]), None)
    else:
        first = output
    return first if isinstance(first, torch.Tensor) else None


def extended(output: Any, extra: dict[str, Any]) -> Any:
    """`output` with further entries: of the same type where it is a dict or `ModelOutput`, else a
    [`DisentangledOutput`]."""
    if isinstance(output, Mapping):
        if dataclasses.is_dataclass(output):
            return _extended_type(type(output))(**{**output, **extra})
        return type(output)({**output, **extra})  # type: ignore[call-arg]
    return DisentangledOutput(output=output, **{"loss": loss_of(output), **extra})


@functools.cache
def _extended_type(output_type: type) -> type:
    """A `ModelOutput` class with the fields of DGL: wrappers (Accelerate, FSDP) rebuild outputs from their type and
    entries."""
    added = [("loss", Any), ("losses", Any), ("unimodal", Any), ("encoder_share", Any)]
    known = {field.name for field in dataclasses.fields(output_type)}
    new_fields = [(name, kind, None) for name, kind in added if name not in known]
    return dataclasses.make_dataclass(
        f"Disentangled{output_type.__name__}", new_fields, bases=(output_type,), namespace={"__module__": __name__}
    )
