"""What the processes of a distributed run say to one another in a training step: collectives and bytes.

Counted at the operations of `torch.distributed` themselves, so that whatever wraps the model (DDP, FSDP2) is counted
as it is. Bytes are those of the whole tensors: with N processes, (N - 1) / N of them travel to or from each.
"""

from __future__ import annotations

import copy
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from hf_dgl.architectures import disentangle, modalities_of

_KINDS = {
    "allgather_": "all-gather",
    "_allgather_base_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "reduce_scatter_": "reduce-scatter",
    "_reduce_scatter_base_": "reduce-scatter",
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "broadcast_": "broadcast",
}
"""Operation of `torch.ops.c10d` -> how it is called."""

WRAPPINGS = ("ddp", "fsdp", "fsdp, fusion kept")


class CommunicationCounter(TorchDispatchMode):
    """Counts what is said inside the block, by this process.

    Attributes:
        found: Kind -> number of collectives and bytes of their largest tensors.

    Example:

        >>> with CommunicationCounter() as counter:
        ...     model(**batch).loss.backward()
        >>> counter.found["all-gather"]
        {'collectives': 12, 'bytes': 340992}
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, dict[str, int]] = defaultdict(lambda: {"collectives": 0, "bytes": 0})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            kind = _KINDS.get(func.overloadpacket.__name__)
            if kind is not None:
                entry = self.found[kind]
                entry["collectives"] += 1
                entry["bytes"] += max(_bytes(args[:2]), default=0)
        return func(*args, **(kwargs or {}))


def _bytes(tree: Any) -> list[int]:
    """Of the arguments (outputs and inputs): each a tensor, or lists of tensors that are sent together."""
    found = []
    for entry in tree:
        if isinstance(entry, torch.Tensor):
            found.append(entry.numel() * entry.element_size())
        elif isinstance(entry, (list, tuple)):
            found.append(sum(_bytes(entry)))
    return found


def communication(model: nn.Module, batch: Mapping[str, Any], wrapping: str = "fsdp") -> dict[str, dict[str, Any]]:
    """A step of joint training and of DGL in a distributed run: collectives and bytes.

    Args:
        model: A [`CrossModalForSequenceClassification`]; a copy of it is wrapped.
        batch: Arguments of its forward, with labels: this process's rows.
        wrapping: One of `WRAPPINGS`. `fsdp`: each encoder, each layer of the fusion, and the rest are sharded by
            themselves (FSDP2); `fsdp, fusion kept`: the layers of the fusion stay whole between forward and backward
            (`reshard_after_forward=False`), so that DGL's passes do not gather them again.

    Returns:
        `joint` and `dgl` -> kind of collective -> `collectives` and `bytes`.

    Raises:
        ValueError: an unknown wrapping.

    Example:

        >>> communication(model, batch, "fsdp")["dgl"]["all-gather"]
        {'collectives': 25, 'bytes': 1228800}
    """
    if wrapping not in WRAPPINGS:
        raise ValueError(f"Got wrapping {wrapping!r}, expected one of {list(WRAPPINGS)}.")
    found = {}
    for method in ("joint", "dgl"):
        wrapped = _wrap(copy.deepcopy(model).train(), wrapping)
        inner = wrapped.module if isinstance(wrapped, DistributedDataParallel) else wrapped
        handle = disentangle(wrapped, modalities_of(inner)) if method == "dgl" else None
        wrapped(**batch)["loss"].backward()  # the first step also plans, and DDP and FSDP find their order
        with CommunicationCounter() as counter:
            wrapped(**batch)["loss"].backward()
        if handle is not None:
            handle.remove()
        found[method] = dict(counter.found)
    return found


def is_launched() -> bool:
    """Whether this process is one of several that a launcher (`torchrun`, `accelerate launch`) has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def communications(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """[`communication`] under each of `WRAPPINGS`, by the processes of a launcher, which all must call it.

    Example:

        >>> communications(model, batch)["ddp"]["joint"]["all-reduce"]
        {'collectives': 3, 'bytes': 10055684}
    """
    distributed = torch.distributed
    is_ours = not distributed.is_initialized()
    if is_ours:
        distributed.init_process_group("nccl" if next(model.parameters()).is_cuda else "gloo")
    try:
        return {wrapping: communication(model, batch, wrapping) for wrapping in WRAPPINGS}
    finally:
        if is_ours:
            distributed.destroy_process_group()


def _wrap(model: Any, wrapping: str) -> Any:
    if wrapping == "ddp":
        return DistributedDataParallel(model, find_unused_parameters=True)
    for encoder in model.cross_modal.encoders.values():
        fully_shard(encoder)
    for layer in _fusion_layers(model):
        fully_shard(layer, reshard_after_forward=wrapping != "fsdp, fusion kept")
    return fully_shard(model)


def _fusion_layers(model: Any) -> list[nn.Module]:
    is_layer: Callable[[nn.Module], bool] = lambda module: type(module).__name__ == "FusionLayer"  # noqa: E731
    return [module for module in model.cross_modal.fusion.modules() if is_layer(module)]


def on_paper(
    parameters: float, fusion_share: float, num_modalities: int, num_processes: int, bytes_per_parameter: int = 2
) -> dict[str, float]:
    """GB that each GPU receives in a step under FSDP2, by arithmetic: joint, DGL, and DGL with the fusion kept.

    Every shard is gathered in the forward and again in the backward, and its gradients are reduced once. Each unimodal
    pass of DGL gathers the fusion twice more (of cross-attention, its own modality's layers only: less); if the fusion
    stays whole between forward and backward, it is gathered twice in all (so [`communication`] counts).

    Args:
        parameters: Of the model.
        fusion_share: Of them in the fusion, 0 to 1.
        num_modalities, num_processes: Counts.
        bytes_per_parameter: 2 in bf16.

    Example:

        >>> {name: round(value, 1) for name, value in on_paper(7e9, 0.1, 2, 8).items()}
        {'joint': 36.8, 'dgl': 41.7, 'dgl, fusion kept': 36.8}
    """
    whole = parameters * bytes_per_parameter * (num_processes - 1) / num_processes / 1e9
    fusion, encoders = whole * fusion_share, whole * (1 - fusion_share)
    return {
        "joint": 3 * whole,
        "dgl": 3 * encoders + (3 + 2 * num_modalities) * fusion,
        "dgl, fusion kept": 3 * whole,
    }
