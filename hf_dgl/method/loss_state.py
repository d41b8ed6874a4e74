"""What whoever computes a loss keeps between steps: centres, queues, counters, sums of a metric, a momentum teacher.

A function that computes a loss is run once for each pass of a step. State that it changes would change as often, with
the numbers of each modality in turn: so what it can reach is looked at before and after. That is what is kept in
attributes, in objects of the user's own, in closures, default arguments and global variables; what belongs to
libraries (a data loader, a logger) is not looked into.
"""

from __future__ import annotations

import functools
import itertools
import random
import types
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_DEEP = 20  # containers and objects in one another
_FEW = 64  # entries of a container that are looked at, of its beginning and of its end
_MANY = 20_000  # names in all
_SMALL = 2**16  # numbers of a tensor that is kept whole; of a larger one the sum is
_PLAIN = (bool, int, float, complex, str, bytes, np.generic, type(None))
_CONTAINERS = (dict, list, tuple, deque, set, frozenset)
_LOOKED_INTO = (
    *(Tensor, np.ndarray, torch.Generator, np.random.Generator, np.random.RandomState, random.Random, nn.Module),
    *(*_CONTAINERS, functools.partial, types.MethodType, types.FunctionType),
)
_LIBRARIES = frozenset(
    "torch transformers accelerate datasets peft hf_dgl numpy pandas scipy sklearn PIL tokenizers logging wandb "
    "tensorboard tqdm matplotlib optuna deepspeed lightning pytorch_lightning builtins collections threading "
    "types".split()
)
_OF_MODULES = frozenset(vars(nn.Module()))
_SIZE = " (its size)"


class _Written(NamedTuple):
    """A tensor, and what tells that it was written into (a write to its `.data` leaves the version as it is)."""

    tensor: Tensor
    version: int
    values: Any


def state_of(owner: Any, but: Iterable[str] = (), unseen: Iterable[Any] = ()) -> dict[str, Any]:
    """What can be reached from an object that a loss could change, by name; to be compared by [`changed`].

    Args:
        owner: The Trainer, or a loss function: with attributes, a closure, a partial one, a method.
        but: Attributes of `owner` that are left out.
        unseen: Objects that are left out wherever they are reached; of modules, all in them.

    Example:

        >>> before = state_of(trainer)
        >>> trainer.calls += 1
        >>> changed(before, state_of(trainer))
        ['calls']
    """
    found: dict[str, Any] = {}
    seen = {id(part) for thing in unseen for part in (thing.modules() if isinstance(thing, nn.Module) else [thing])}
    for name, value in _walk("", owner, frozenset(but), seen, 0):
        found[name] = value
        if len(found) == _MANY:
            break
    return found


def state_beside(model: nn.Module) -> dict[str, Any]:
    """What functions and objects keep that are attributes of modules (`model.loss_function`, `self.queue`), and that
    are no library's; parameters, buffers and numbers of the modules are not among it."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in _OF_MODULES or isinstance(value, (*_PLAIN, *_CONTAINERS, Tensor)) or _is_opaque(value):
                continue
            place = f"{path}.{name}" if path else name
            leaves = state_of(value, unseen=[model])
            found |= {f"{place}.{key}" if key else place: leaf for key, leaf in leaves.items()}
    return found


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names whose value is another, or was written into; of a container whose size is another, only that."""
    names = [name for name in sorted({*before, *after}) if not _same(before.get(name), after.get(name))]
    grown = tuple(name.removesuffix(_SIZE) + "[" for name in names if name.endswith(_SIZE))
    return [name for name in names if not name.startswith(grown)]


def _walk(name: str, value: Any, but: frozenset[str], seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    """Names and leaves; nothing twice, so that circles end."""
    if isinstance(value, _PLAIN):
        yield name, value
        return
    if id(value) in seen or depth > _DEEP or (depth and _is_opaque(value)):
        return
    seen.add(id(value))
    leaf = _leaf(value)
    if leaf is not None:
        yield name, leaf
    elif isinstance(value, (set, frozenset)):
        yield name + _SIZE, len(value)
        yield name, frozenset(map(hash, value))
    elif isinstance(value, _CONTAINERS):
        yield name + _SIZE, len(value)
        for key, entry in _entries(value):
            yield from _walk(f"{name}[{key!r}]", entry, frozenset(), seen, depth + 1)
    else:
        for key, entry in _parts(value):
            if key not in but:
                path = f"{name}.{key}" if name and key else name or key
                yield from _walk(path, entry, frozenset(), seen, depth + 1)


def _is_opaque(value: Any) -> bool:
    """Whether it is a library's, other than what holds numbers, and is not the owner itself."""
    return _is_of_a_library(type(value).__module__) and not isinstance(value, _LOOKED_INTO)


def _leaf(value: Any) -> Any:
    """What an object that holds numbers is compared by; None for others."""
    if isinstance(value, Tensor):
        return _Written(value, 0 if value.is_inference() else value._version, _values(value))
    if isinstance(value, np.ndarray):
        return value.shape, repr(value.dtype), _checksum(value)
    if isinstance(value, torch.Generator):
        return zlib.crc32(value.get_state().numpy().tobytes())
    if isinstance(value, (np.random.Generator, np.random.RandomState)):
        return repr(value.bit_generator.state if isinstance(value, np.random.Generator) else value.get_state())
    return hash(value.getstate()) if isinstance(value, random.Random) else None


def _checksum(array: np.ndarray) -> Any:
    if array.dtype.hasobject:
        return None
    if array.size > _SMALL and isinstance(array, np.memmap):  # data on the disk are not read for this
        return zlib.crc32(array.reshape(-1)[:: array.size // _SMALL].tobytes())
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data) if array.size else 0


@torch.no_grad()
def _values(tensor: Tensor) -> Any:
    if tensor.is_meta or tensor.layout != torch.strided or type(tensor) not in (Tensor, nn.Parameter):
        return None
    if tensor.numel() <= _SMALL:
        return tensor.detach().clone()
    with suppress(NotImplementedError, RuntimeError):  # no sum of this type: the version tells
        if tensor.is_complex():
            return tensor.sum().item()
        return tensor.sum(dtype=torch.float32 if tensor.device.type == "mps" else torch.float64).item()
    return None


def _entries(container: Any) -> list[tuple[Any, Any]]:
    pairs = container.items() if isinstance(container, dict) else enumerate(container)
    if len(container) <= 2 * _FEW:
        return list(pairs)
    if isinstance(container, dict):
        return list(itertools.islice(pairs, _FEW))
    ends = [*range(_FEW), *range(len(container) - _FEW, len(container))]
    return [(index, container[index]) for index in ends]


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object that is no container consists of."""
    if isinstance(value, functools.partial):
        yield from [("", value.func), *((f"args[{i}]", entry) for i, entry in enumerate(value.args))]
        yield from value.keywords.items()
    elif isinstance(value, types.MethodType):
        yield from [("", value.__func__), ("", value.__self__)]
    elif isinstance(value, types.FunctionType):
        if not _is_of_a_library(value.__module__):
            yield from _kept_by(value)
    elif isinstance(value, nn.Module):
        yield from {**value._parameters, **value._buffers, **value._modules}.items()
        yield from ((key, entry) for key, entry in vars(value).items() if key not in _OF_MODULES)
    elif not isinstance(value, (type, types.ModuleType)):
        yield from getattr(value, "__dict__", {}).items()
        for cls in type(value).__mro__:
            if not _is_of_a_library(cls.__module__):
                yield from ((key, entry) for key, entry in vars(cls).items() if _is_kept_by_a_class(key, entry))
                slots = [key for key, entry in vars(cls).items() if isinstance(entry, types.MemberDescriptorType)]
                yield from ((key, getattr(value, key)) for key in slots if hasattr(value, key))


def _is_kept_by_a_class(name: str, value: Any) -> bool:
    return isinstance(value, (*_PLAIN, *_CONTAINERS, Tensor)) and not name.startswith("__")


def _kept_by(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Variables of the functions around it, default arguments, and the global variables that it names."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from ((f"(default {index})", value) for index, value in enumerate(function.__defaults__ or ()))
    yield from (function.__kwdefaults__ or {}).items()
    yield from vars(function).items()
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    names = {name for part in [code, *inner] for name in part.co_names}
    yield from ((name, function.__globals__[name]) for name in sorted(names) if name in function.__globals__)


def _is_of_a_library(module: str | None) -> bool:
    return (module or "builtins").partition(".")[0] in _LIBRARIES


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, _Written) and isinstance(second, _Written):
        if first.tensor is not second.tensor:
            return _equal(first.values, second.values)
        return first.version == second.version and (first.values is None or _equal(first.values, second.values))
    if type(first) is not type(second):
        return False
    return bool(first == second or first != first)


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        alike = first.shape == second.shape and first.dtype == second.dtype and first.device == second.device
        return alike and torch.equal(_bytes(first), _bytes(second))  # NaN is NaN
    return first is not None and type(first) is type(second) and bool(first == second or first != first)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
