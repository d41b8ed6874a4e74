"""Sums that run over the steps of a training: means of losses, and what a checkpoint keeps of them.

Upstream's Trainer begins its sums anew where it resumes; `train_loss`, `train_runtime` and the first losses that are
logged would then tell of the last part of a run only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SUMS = "Sums"
"""Where a checkpoint's `trainer_state.json` keeps them, among `stateful_callbacks`."""


class RunningMeans:
    """Weighted means by name since the last [`RunningMeans.clear`]; summed on the device, which nothing waits for.

    Example:

        >>> means = RunningMeans()
        >>> means.add("image", torch.tensor(1.0), weight=8)  # the mean of 8 rows
        >>> means.add("image", torch.tensor(4.0), weight=4)
        >>> means.means(["image", "text"], "cpu")
        {'image': 2.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # name -> [sum, weight]

    def add(self, name: str, value: Tensor, weight: Tensor | float = 1.0) -> None:
        """Counts one value, a scalar; one without weight does not count, whatever it is."""
        value = value.detach().to(_widest(value.device))
        weight = torch.as_tensor(weight, dtype=value.dtype, device=value.device)
        counted = torch.stack([torch.where(weight > 0, value * weight, 0.0), weight])
        before = self._sums.get(name)
        self._sums[name] = counted if before is None else before + counted.to(before.device)

    def clear(self) -> None:
        self._sums = {}

    def means(self, names: Sequence[str], device: Any, reduce: Callable[..., Any] | None = None) -> dict[str, float]:
        """Name -> mean, of those that were counted; waits for the device, once.

        Args:
            names: The same on every process, whatever each has seen.
            device: Of the sums.
            reduce: Adds a tensor up over the processes, as `Accelerator.reduce`. None: there is one.
        """
        totals = self.state_dict(names, device, reduce)
        return {name: total / weight for name, (total, weight) in totals.items() if weight}

    def state_dict(
        self, names: Sequence[str], device: Any, reduce: Callable[..., Any] | None = None
    ) -> dict[str, list[float]]:
        """Name -> `[sum, weight]` over all processes, for JSON."""
        if not names:
            return {}
        nothing = torch.zeros(2, dtype=_widest(torch.device(device)), device=device)
        sums = torch.stack([self._sums.get(name, nothing).to(nothing) for name in names])
        return dict(zip(names, (sums if reduce is None else reduce(sums, reduction="sum")).tolist(), strict=True))

    def load_state_dict(self, kept: Mapping[str, Sequence[float]], device: Any) -> None:
        """Goes on from what was kept; of several processes one does, and the others begin with nothing."""
        dtype = _widest(torch.device(device))
        self._sums = {name: torch.tensor(pair, dtype=dtype, device=device) for name, pair in kept.items() if pair[1]}


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64


class RememberSums(TrainerCallback):
    """Goes on with the sums of the checkpoint that a training resumes from.

    `SavingTrainer` writes them when it saves. Upstream has set them to zero just before this is called.

    Args:
        trainer: A `SavingTrainer`.

    Example:

        >>> trainer.add_callback(RememberSums(trainer))
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        states: Any = state.stateful_callbacks  # a dict by now, whatever its annotation says
        self._trainer.began = time.time()
        kept = states.get(SUMS)
        self._trainer.seconds_before = 0.0 if kept is None else float(kept["seconds"])
        if kept is not None:
            self._trainer.load_sums(kept)
