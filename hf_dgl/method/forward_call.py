"""A call of a model: its arguments by name, which modalities are in it, and the model below its wrappers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

NO_DATA_PARALLEL = "nn.DataParallel replicates modules and breaks the routing. Use `accelerate launch` (DDP) instead."


def bound_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `model(*args, **kwargs)` by name.

    Raises:
        ValueError: if some have no name that they could be given by.
    """
    if not args:
        return kwargs
    signature = inspect.signature(type(model).forward)
    names = [p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = names[1:]  # self
    if len(args) > len(names) or any(signature.parameters[n].kind == inspect.Parameter.POSITIONAL_ONLY for n in names):
        raise ValueError("Call a disentangled model with keyword arguments: `model(**batch)`.")
    return {**dict(zip(names, args, strict=False)), **kwargs}


def is_present(inputs: Iterable[str], call: Mapping[str, Any]) -> bool:
    """Whether a modality with these inputs is in the call (always, if it declares none)."""
    inputs = list(inputs)
    return not inputs or any(call.get(key) is not None for key in inputs)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP.

    Raises:
        ValueError: inside `nn.DataParallel`, where the routing breaks.
    """
    if isinstance(model, nn.DataParallel):
        raise ValueError(NO_DATA_PARALLEL)
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def below_adapters(model: nn.Module) -> nn.Module:
    """The model inside a PEFT model; any other as it is."""
    return getattr(model, "get_base_model", lambda: model)()
