"""Is the cut between an encoder and the fusion clean? Read off the autograd graph of one forward.

An encoder's output may be computed once and reused by its unimodal pass only if everything the encoder's parameters do
to the loss goes through that output, and nothing but the encoder's parameters is behind it. Both are facts of the
autograd
graph, so they are read there rather than guessed from names: walk from the loss towards the leaves and stop at the
    encoders'
outputs (the *exits*); a parameter of an encoder met on that walk bypasses the exit. Then walk on from the exits;
whatever is met there is what the reused output depends on.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .modalities import Partition
from .outputs import loss_of, tensors_in
from .traces import without_a_trace

Call = tuple[str, int]
"""One call of an encoder module in a forward: (module path, how many times it was called before)."""


@dataclass(frozen=True)
class Cut:
    """How one modality's features reach the fusion.

    Attributes:
        exits: The encoder calls whose outputs the fusion reads.
        obstacle: Why those outputs cannot be reused (the encoder then runs again in its own pass); `""` if they can.
    """

    exits: frozenset[Call]
    obstacle: str = ""

    @property
    def reuse(self) -> bool:
        return not self.obstacle


def find_cuts(
    model: nn.Module,
    partition: Partition,
    present: Sequence[str],
    call: Mapping[str, Any],
    reads_all_outputs: bool = False,
) -> dict[str, Cut]:
    """Runs the model once, without a trace (`traces.py`), and reads the graph of its output.

    Args:
        present: The modalities in this batch.
        call: The arguments of the model's forward, by name.
        reads_all_outputs: Whether a loss is computed from anything that the model gives, not by the model only.

    Returns:
        The cut of every modality whose encoder takes part in the output's graph.

    Raises:
        ValueError: an encoder module of a present modality is never called; parameters that the partition does not
            know.
    """
    parameters = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    added = [name for name in parameters.values() if name not in partition.owners]
    if added:
        raise ValueError(f"Parameter {added[0]!r} was added after `disentangle`. Attach DGL last (after PEFT).")
    with without_a_trace(model) as moved, _recorded_calls(partition) as calls:
        output = model.forward(**call)
    is_zero3 = any(hasattr(parameter, "ds_status") for parameter in model.parameters())  # it counts on the modules
    partition.moved.update(place for place in moved if place[1] in place[0]._buffers or not is_zero3)
    called = {path for path, _ in calls}
    for name in present:
        for path in partition.encoders[name]:
            if path not in called:
                raise ValueError(_never_called(model, call, name, path))
    loss = None if reads_all_outputs else loss_of(output)
    return _analyse(output if loss is None else loss, calls, partition, parameters)


def _never_called(model: nn.Module, call: Mapping[str, Any], modality: str, path: str) -> str:
    """What to say of an encoder that the model does not call, with the modules that it does call."""
    called: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in model.named_modules()
        if name and next(module.parameters(), None) is not None
    ]
    try:
        with without_a_trace(model), torch.no_grad():
            model.forward(**call)
    finally:
        for hook in hooks:
            hook.remove()
    below = _outermost(name for name in called if name.startswith(f"{path}."))
    told = f"Module {path!r}, an encoder of modality {modality!r}, is never called by the model's forward."
    if below:
        return f"{told} These below it are: name them, or some of them, in `encoder`: {below}."
    return f"{told} Nor is anything below it. The model calls {_outermost(called)}, and what is below these."


def _outermost(paths: Iterable[str]) -> list[str]:
    """The paths that are below no other of them, the layers of a list as one."""
    found = set(paths)
    outer = [path for path in found if not any(path.startswith(f"{other}.") for other in found)]
    return sorted({re.sub(r"\.\d+(?=\.|$)", ".*", path) for path in outer})


@contextmanager
def _recorded_calls(partition: Partition) -> Iterator[dict[Call, list[Any]]]:
    """The autograd nodes of the outputs of every call of an encoder module inside the block."""
    calls: dict[Call, list[Any]] = {}

    def record(path: str, module: nn.Module, args: Any, output: Any) -> None:
        # Read at once: a model that writes into the output in place changes its tensors' nodes afterwards.
        calls[path, sum(known == path for known, _ in calls)] = nodes_of(output)

    modules = {path: module for found in partition.encoders.values() for path, module in found.items()}
    hooks = [module.register_forward_hook(functools.partial(record, path)) for path, module in modules.items()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _analyse(
    read: Any, calls: Mapping[Call, list[Any]], partition: Partition, parameters: Mapping[int, str]
) -> dict[str, Cut]:
    modality_of = {path: name for name, found in partition.encoders.items() for path in found}
    every_exit = {node: call for call, nodes in calls.items() for node in nodes}
    roots = nodes_of(read)
    exits: dict[str, set[Call]] = {}
    obstacles: dict[str, str] = {}
    while True:
        # An encoder that runs again is no end of the walk: layers that read the image between them (BLIP's text
        # encoder by name) have the image's exit behind theirs.
        exit_of = {node: call for node, call in every_exit.items() if modality_of[call[0]] not in obstacles}
        known = len(obstacles)
        reached = list(walk(roots, stop=exit_of))
        for node in reached:
            if node in exit_of:
                exits.setdefault(modality_of[exit_of[node][0]], set()).add(exit_of[node])
        for name in _leaf_names(reached, parameters):
            for owner in partition.owners[name]:
                obstacles.setdefault(
                    owner, f"parameter {name!r} reaches the fusion without passing through the encoder's output"
                )
        for modality, found in exits.items():
            if modality not in obstacles:
                obstacle = _behind_exits(modality, found, calls, exit_of, partition, parameters)
                if obstacle:
                    obstacles[modality] = obstacle
        if len(obstacles) == known:
            break
    return {
        modality: Cut(frozenset(exits.get(modality, ())), obstacles.get(modality, ""))
        for modality in {*exits, *obstacles}
    }


def _behind_exits(
    modality: str,
    exits: set[Call],
    calls: Mapping[Call, list[Any]],
    exit_of: Mapping[Any, Call],
    partition: Partition,
    parameters: Mapping[int, str],
) -> str:
    """What, apart from the modality's own parameters, its exits depend on."""
    for call in sorted(exits):
        behind = list(walk(calls[call]))
        for node in behind:
            other = exit_of.get(node)
            if other is not None and other != call and other in exits:
                return f"its outputs feed one another ({other[0]!r} feeds {call[0]!r}) and the fusion reads both"
        for name in _leaf_names(behind, parameters):
            if modality not in partition.owners[name]:
                return f"parameter {name!r}, which is not its own, feeds it"
    return ""


def walk(start: Iterable[Any], stop: Container[Any] = ()) -> Iterator[Any]:
    """Every autograd node reachable from `start`; nodes in `stop` are given, but not passed."""
    pending = list(start)
    seen = set(pending)
    while pending:
        node = pending.pop()
        yield node
        if node in stop:
            continue
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)


def nodes_of(tree: Any) -> list[Any]:
    """The autograd node of every tensor in a tree that has one."""
    return [tensor.grad_fn for tensor in tensors_in(tree) if tensor.grad_fn is not None]


def _leaf_names(nodes: Iterable[Any], parameters: Mapping[int, str]) -> list[str]:
    leaves = (getattr(node, "variable", None) for node in nodes)
    return sorted({parameters[id(leaf)] for leaf in leaves if leaf is not None and id(leaf) in parameters})
