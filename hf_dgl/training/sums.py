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
    """Means by name since the last [`RunningMeans.clear`]; summed on the device, which nothing waits for.

    Example:

        >>> means = RunningMeans()
        >>> means.add("image", torch.tensor(1.0)); means.add("image", torch.tensor(3.0))
        >>> means.means(["image", "text"], "cpu")
        {'image': 2.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Counts one value, a scalar."""
        value = value.detach().to(_widest(value.device))
        before = self._sums.get(name)
        self._sums[name] = value.clone() if before is None else before + value.to(before.device)
        self._counts[name] = self._counts.get(name, 0) + 1

    def clear(self) -> None:
        self._sums, self._counts = {}, {}

    def means(self, names: Sequence[str], device: Any, reduce: Callable[..., Any] | None = None) -> dict[str, float]:
        """Name -> mean, of those that were counted; waits for the device, once.

        Args:
            names: The same on every process, whatever each has seen.
            device: Of the sums.
            reduce: Adds a tensor up over the processes, as `Accelerator.reduce`. None: there is one.
        """
        totals = self._totals(names, device, reduce)
        return {name: total / count for name, (total, count) in totals.items() if count}

    def state_dict(self, names: Sequence[str], device: Any, reduce: Callable[..., Any] | None = None) -> Any:
        """Name -> `[sum, count]` over all processes, for JSON."""
        return {name: [total, int(count)] for name, (total, count) in self._totals(names, device, reduce).items()}

    def load_state_dict(self, kept: Mapping[str, Sequence[float]], device: Any) -> None:
        """Goes on from what was kept; of several processes one does, and the others begin with nothing."""
        counted = {name: pair for name, pair in kept.items() if pair[1]}
        dtype = _widest(torch.device(device))
        self._sums = {name: torch.tensor(pair[0], dtype=dtype, device=device) for name, pair in counted.items()}
        self._counts = {name: int(pair[1]) for name, pair in counted.items()}

    def _totals(self, names: Sequence[str], device: Any, reduce: Callable[..., Any] | None) -> dict[str, list[float]]:
        if not names:
            return {}
        zero = torch.zeros((), dtype=_widest(torch.device(device)), device=device)
        sums = torch.stack([self._sums.get(name, zero).to(zero) for name in names])
        counts = torch.tensor([float(self._counts.get(name, 0)) for name in names]).to(zero)
        both = torch.stack([sums, counts], dim=1)
        return dict(zip(names, (both if reduce is None else reduce(both, reduction="sum")).tolist(), strict=True))


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
