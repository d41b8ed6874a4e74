"""Sums over the processes of a distributed run."""

from __future__ import annotations

import torch
import torch.distributed


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes, on each of them; the tensor itself where there is one process.

    Example:

        >>> sum_over_processes(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return tensor
    total = tensor.clone()
    distributed.all_reduce(total)
    return total
