"""Watches one forward of a model: which inputs does each parameter meet, and what does each module read and give?

Every tensor is tagged with the inputs that its values depend on; each operation hands the tags of what it reads on to
what it writes. The tags sit on storages, so views and writes into them share one. Operations that take only the shape
of a tensor (`zeros_like`) hand nothing on, nor do comparisons of whole numbers: which tokens are an image's says where
it stands, and nothing of the words. A parameter seen before any input (class tokens, position tables) is carried along
until an input meets what was made of it.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from hf_dgl.method.outputs import loss_of, map_tensors, tensors_in
from hf_dgl.method.traces import without_a_trace

_SHAPE_ONLY = ("zeros", "ones", "full", "empty", "rand", "randn", "randint", "sym_")
"""Starts of the names of operations whose values do not depend on those of the tensors that they are given."""

_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge", "isin"}


class Tag(NamedTuple):
    """What a tensor's values depend on."""

    inputs: frozenset[str] = frozenset()
    parameters: int = 0  # all that had an influence, a bit each
    carried: int = 0  # of these, those that met no input yet


NOTHING = Tag()


@dataclass
class Seen:
    """What was seen of one module, over all its calls.

    Attributes:
        reads: Inputs that the tensors it was given depend on.
        gives: Inputs that its output depends on.
        within: Inputs that any operation inside it depended on.
        raw: Inputs that reach it unchanged, before any parameter.
        behind: Bits of the parameters that had an influence on what it was given.
    """

    reads: set[str] = field(default_factory=set)
    gives: set[str] = field(default_factory=set)
    within: set[str] = field(default_factory=set)
    raw: set[str] = field(default_factory=set)
    behind: int = 0


@dataclass
class Observation:
    """What [`observe`] saw.

    Attributes:
        parameters: Names of the model's parameters (one for each place), whose position is their bit.
        met: For each name, the inputs that the parameter met, in all places where it is used.
        modules: Path -> what was seen of each called module.
        blind: Names of parameters used only where the model forbids gradients (`torch.no_grad`).
        output: What the loss (without one: everything that the model returns) depends on.
        loss: The loss, if the model gave one.
    """

    parameters: list[str]
    met: dict[str, set[str]]
    modules: dict[str, Seen]
    blind: set[str]
    output: Tag
    loss: float | None

    def names(self, bits: int) -> set[str]:
        """The parameters of a set of bits."""
        return {name for position, name in enumerate(self.parameters) if bits >> position & 1}


def observe(
    model: nn.Module, batch: Mapping[str, Any], cut_at: Iterable[str] = (), unseen: Container[str] = ()
) -> Observation:
    """Runs `model` once, in eval mode and without a graph; flags, modes, buffers and random state are put back.

    Args:
        batch: Keyword arguments of its forward.
        cut_at: Paths of modules whose outputs count as depending on nothing: what is left at the output came past
            them.
        unseen: Inputs that count as nothing: those that say where something is.
    """
    watch = _Watch(model, frozenset(cut_at))
    batch = {name: map_tensors(torch.Tensor.clone, value) for name, value in batch.items()}  # labels may be the inputs
    for name, value in batch.items():
        for tensor in [] if name in unseen else tensors_in(value):
            watch.put(tensor, Tag(frozenset([name])))
    with _unobtrusive(model), watch.on_modules(), watch:
        output = model.forward(**batch)
    loss = loss_of(output)
    tag = watch.of(tensors_in(output if loss is None else loss))
    return Observation(
        parameters=watch.names,
        met=watch.met(),
        modules=watch.modules,
        blind=watch.named(watch.blind & ~watch.sighted),
        output=tag,
        loss=None if loss is None else float(loss.float().mean()),
    )


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """In eval mode and without a graph inside, and afterwards as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with without_a_trace(model), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _unobtrusive(model: nn.Module) -> Iterator[None]:
    """No graph because nothing requires gradients (rather than by `no_grad`: that of the model shall be seen)."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with evaluated(model), torch.enable_grad():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


class _Watch(TorchDispatchMode):
    """Sees every operation, and keeps the tags."""

    def __init__(self, model: nn.Module, cut_at: frozenset[str]) -> None:
        super().__init__()
        self.model, self.cut_at = model, cut_at
        self.modules: dict[str, Seen] = {}
        self.blind = self.sighted = 0  # parameters used without and with gradients allowed
        self._active: list[Seen] = []
        self._tags: dict[int, tuple[StorageWeakRef, Tag]] = {}  # the reference keeps an address from being used again
        self._met: dict[str, int] = {}  # input -> parameters
        self.names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        # Parameters by storage: several may lie in one (an LSTM's weights), so by their places in it.
        self._places: dict[int, list[tuple[int, int, int]]] = {}
        for position, (_, parameter) in enumerate(model.named_parameters(remove_duplicate=False)):
            start, end = _extent(parameter)
            self._places.setdefault(parameter.untyped_storage()._cdata, []).append((start, end, 1 << position))

    # ---- tags of tensors ----

    def put(self, tensor: torch.Tensor, tag: Tag) -> None:
        storage = tensor.untyped_storage()
        self._tags[storage._cdata] = (StorageWeakRef(storage), tag)

    def of(self, tensors: Iterable[torch.Tensor]) -> Tag:
        """The union of the tags."""
        inputs: frozenset[str] = frozenset()
        parameters = carried = 0
        for tensor in tensors:
            address = tensor.untyped_storage()._cdata
            if address in self._places:
                start, end = _extent(tensor)
                for first, last, bit in self._places[address]:
                    if first < end and start < last:
                        parameters |= bit
                        carried |= bit
            elif address in self._tags:
                tag = self._tags[address][1]
                inputs |= tag.inputs
                parameters |= tag.parameters
                carried |= tag.carried
        return Tag(inputs, parameters, carried)

    def named(self, bits: int) -> set[str]:
        return {name for position, name in enumerate(self.names) if bits >> position & 1}

    def met(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {name: set() for name in self.names}
        for inputs, bits in self._met.items():
            for name in self.named(bits):
                found[name].add(inputs)
        return found

    # ---- operations ----

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors_in((args, kwargs))
        tag = self.of(given)
        output = func(*args, **kwargs)
        if func.__name__.removeprefix("new_").startswith(_SHAPE_ONLY):
            return output
        if func.__name__.split(".")[0] in _COMPARISONS and not any(t.is_floating_point() for t in given):
            return output
        self._note(tag)
        if tag.inputs:  # what was carried has met them
            tag = tag._replace(carried=0)
        if tag != NOTHING:
            for tensor in [*tensors_in(output), *_written(func, args, kwargs)]:
                address = tensor.untyped_storage()._cdata
                if address not in self._places and (address not in self._tags or self._tags[address][1] != tag):
                    self.put(tensor, _union(self.of([tensor]), tag) if address in self._tags else tag)
        return output

    def _note(self, tag: Tag) -> None:
        if tag.carried:
            if torch.is_grad_enabled():
                self.sighted |= tag.carried
            else:
                self.blind |= tag.carried
        if tag.inputs:
            for name in tag.inputs:
                self._met[name] = self._met.get(name, 0) | tag.carried
            for seen in self._active:
                seen.within |= tag.inputs

    # ---- modules ----

    @contextmanager
    def on_modules(self) -> Iterator[None]:
        hooks: list[Any] = []
        for path, module in self.model.named_modules():
            if path:
                before = functools.partial(self._before, path)
                after = functools.partial(self._after, path)
                hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
                hooks.append(module.register_forward_hook(after, with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _before(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        seen = self.modules.setdefault(path, Seen())
        for tensor in tensors_in((args, kwargs)):
            tag = self.of([tensor])
            seen.reads |= tag.inputs
            seen.behind |= tag.parameters
            if not tag.parameters:
                seen.raw |= tag.inputs
        self._active.append(seen)

    def _after(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        seen = self._active.pop()
        seen.gives |= self.of(tensors_in(output)).inputs
        return map_tensors(self._forgotten, output) if path in self.cut_at else None

    def _forgotten(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy that depends on nothing."""
        copy = tensor.clone()
        self.put(copy, NOTHING)
        return copy


def _union(first: Tag, second: Tag) -> Tag:
    inputs = first.inputs | second.inputs
    carried = 0 if inputs else first.carried | second.carried
    return Tag(inputs, first.parameters | second.parameters, carried)


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The bytes of its storage that a tensor may touch: from, to."""
    if not tensor.numel():
        return 0, 0
    start = int(tensor.storage_offset())
    steps = sum(int((size - 1) * stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start * tensor.element_size(), (start + steps + 1) * tensor.element_size()


def _written(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The arguments that an operation writes into."""
    found: list[torch.Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[position] if position < len(args) else None)
            found += tensors_in(value)
    return found
