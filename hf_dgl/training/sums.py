"""Means of losses over the steps since the last log, per row, however the batches were cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class RunningMeans:
    """Weighted means by name since the last [`RunningMeans.clear`]; summed on the device, which nothing waits for.

    Example:

        >>> means = RunningMeans()
        >>> means.add("image", torch.tensor(1.0), weight=8)  # mean of 8 rows
        >>> means.add("image", torch.tensor(4.0), weight=4)
        >>> means.means(["image", "text"], "cpu")
        {'image': 2.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # name -> [sum, weight]

    def add(self, name: str, value: Tensor, weight: Tensor | float = 1.0) -> None:
        """Counts one value, a scalar, with its weight."""
        value = value.detach().to(_widest(value.device))
        weight = torch.as_tensor(weight, dtype=value.dtype, device=value.device)
        counted = torch.stack([torch.where(weight > 0, value * weight, 0.0), weight])
        before = self._sums.get(name)
        self._sums[name] = counted if before is None else before + counted.to(before.device)

    def clear(self) -> None:
        """Begins anew."""
        self._sums = {}

    def means(self, names: Sequence[str], device: Any, reduce: Callable[..., Any] | None = None) -> dict[str, float]:
        """Name -> mean, of those that were counted; waits for the device, once.

        Args:
            names: The same on every process, whatever each has seen.
            device: Of the sums.
            reduce: Adds a tensor up over the processes, as `Accelerator.reduce`. None: there is one.
        """
        nothing = torch.zeros(2, dtype=_widest(torch.device(device)), device=device)
        sums = torch.stack([self._sums.get(name, nothing).to(nothing) for name in names])
        totals = (sums if reduce is None else reduce(sums, reduction="sum")).tolist()
        return {name: total / weight for name, (total, weight) in zip(names, totals, strict=True) if weight}


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
