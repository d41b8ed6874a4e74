"""Other contents of the same kind for a model's inputs: what the leak check feeds it.

Only contents vary: the values of pixels, features and waveforms, and which words the text has. What says *where*
something is stays (grids, sizes, positions, boxes, masks, special tokens, the row and column numbers that some patches
carry): contents that no longer fit it are no input of this model, which then raises, or reads something else.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .outputs import map_tensors, tensors_in

STRUCTURE = re.compile(
    r"mask|position|box|token_type|type_ids|thw|grid|size|shape|ratio|structure|length|cutoffs|pooling|alignment|present"
    r"|(^|_)(pos|num|is|height|width|index|indices|per)(_|$)|^batch_"
)
"""Names of inputs that say where something is, rather than what it is."""

_TOKEN = re.compile(r"(token|image|img|video|vision|audio|media|speech).*_(id|ids|index)$")
"""Names in a config of tokens that are no words: they stand for something, or for the features of another modality."""


def varied(batch: Mapping[str, Any], keys: Sequence[str], special: Container[int] = ()) -> dict[str, Any]:
    """The batch with other contents of some of its inputs.

    Args:
        batch: Keyword arguments of a model's forward; dicts in it may be nested.
        keys: Those that are to vary.
        special: Token ids that stay in their places ([`special_tokens`]).

    Example:

        >>> varied({"input_ids": torch.tensor([[1, 7, 8, 9]]), "labels": torch.tensor([0])}, ["input_ids"], {1})
        {'input_ids': tensor([[1, 9, 7, 8]]), 'labels': tensor([0])}
    """
    return {key: _other(key, value, special) if key in keys else value for key, value in batch.items()}


def same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two batches have the same inputs with the same values."""
    pairs = zip(tensors_in(dict(first)), tensors_in(dict(second)), strict=False)
    return first.keys() == second.keys() and all(one is other or torch.equal(one, other) for one, other in pairs)


def special_tokens(model: nn.Module) -> frozenset[int]:
    """The ids of all tokens that the configs of a model and of its parts name: padding, `<bos>`, places of images."""
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    found: set[int] = set()
    for config in configs.values():
        _collect(config.to_dict() if hasattr(config, "to_dict") else getattr(config, "__dict__", config), found)
    return frozenset(found)


def _collect(settings: Any, found: set[int]) -> None:
    if not isinstance(settings, Mapping):
        return
    for key, value in settings.items():
        _collect(value, found)
        if isinstance(key, str) and _TOKEN.search(key):
            values = value if isinstance(value, (list, tuple)) else [value]
            found.update(v for v in values if isinstance(v, int) and not isinstance(v, bool))


def _other(name: str, value: Any, special: Container[int]) -> Any:
    if isinstance(value, Mapping):
        return type(value)({key: _other(key, inner, special) for key, inner in value.items()})  # type: ignore[call-arg]
    if STRUCTURE.search(name):
        return value
    return map_tensors(lambda tensor: _other_values(tensor, special), value)


def _other_values(tensor: torch.Tensor, special: Container[int]) -> torch.Tensor:
    if tensor.is_floating_point():
        return _other_floats(tensor)
    return tensor if tensor.dtype == torch.bool else _other_words(tensor, special)


def _other_floats(tensor: torch.Tensor) -> torch.Tensor:
    """Values from elsewhere in the tensor, scaled and shifted. Zeros are padding; a column of whole numbers is the
    patches' places (`flattened_patches` of Kosmos-2.5)."""
    stays = tensor == 0
    if tensor.dim() > 1:
        numbers = (tensor == tensor.round()).flatten(0, -2).all(0)
        if not bool(numbers.all()):
            stays = stays | numbers
    return torch.where(stays, tensor, tensor.flip(tuple(range(tensor.dim()))) * 1.5 + 0.5)


def _other_words(ids: torch.Tensor, special: Container[int]) -> torch.Tensor:
    """Every word becomes another one of the batch, the same everywhere. What is in every row may be a sign that the
    model looks for (the full stops of Grounding DINO, which no config names): it stays, if others are left."""
    every = [word for word in ids.unique().tolist() if word not in special]
    rare = [word for word in every if not bool((ids == word).flatten(1).any(1).all())] if ids.dim() > 1 else []
    words = torch.tensor(rare if len(rare) > 1 else every, dtype=ids.dtype, device=ids.device)
    if len(words) < 2:
        return ids
    places = torch.searchsorted(words, ids).clamp(max=len(words) - 1)
    return torch.where(words[places] == ids, words.roll(1)[places], ids)
