r"""How much of the labels a modality explains by itself, followed during training.

Let $H$ be the loss of the best constant prediction (the labels' entropy, or variance), $L_m$ the running loss of what
the model predicts from modality $m$ alone, and $L_\tau$ from all. Modality $m$ alone *explains* $u_m = 1 - L_m / H$ of
the labels, all together explain $u_\tau$.

The losses are the plain ones of the problem type (see [`ChanceLevel`]), whichever loss trains: smoothed, weighted or
summed, it would have another chance level. They are summed over the rows of all micro-batches and processes of a step,
so what is explained does not depend on how a batch is cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .passes import MULTIMODAL
from .processes import sum_over_processes

_DECAY = 0.95  # of the running losses, per step

_IGNORED = -100  # label of a row that does not count


def plain_losses(problem_type: str, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The plain loss of each row, and which rows count.

    Args:
        problem_type: See [`ChanceLevel`].
        logits: `[B, C]`.
        labels: As [`unfit`] expects them.

    Returns:
        Float64 `[B]` and bool `[B]`.

    Example:

        >>> plain_losses("regression", torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 2.0]))
        (tensor([1., 0.], dtype=torch.float64), tensor([True, True]))
    """
    logits = logits.detach().double()
    labels = labels.to(logits.device)
    if problem_type == "single_label_classification":
        labels = labels.view(-1)
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=_IGNORED)
        return losses, labels != _IGNORED
    targets = labels.double().view_as(logits)
    if problem_type == "regression":
        losses = (logits - targets).square()
    else:
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.mean(-1), torch.ones(len(logits), dtype=torch.bool, device=logits.device)


def unfit(problem_type: str, num_labels: int, logits: Tensor, labels: Tensor) -> str:
    """Why the plain loss of a problem type cannot be computed from these; `""` if it can.

    Example:

        >>> unfit("single_label_classification", 3, torch.zeros(2, 3), torch.tensor([0.5, 1.0]))
        "labels are class ids in `single_label_classification`, got torch.float32 [2] for logits [2, 3]"
    """
    got = f"got {labels.dtype} {list(labels.shape)} for logits {list(logits.shape)}"
    if logits.dim() != 2 or logits.shape[1] != num_labels:
        return f"logits of {num_labels} labels are `[rows, {num_labels}]`, {got}"
    if problem_type == "single_label_classification":
        fits = not labels.is_floating_point() and labels.numel() == len(logits)
        return "" if fits else f"labels are class ids in `{problem_type}`, {got}"
    return "" if labels.numel() == logits.numel() else f"labels are as many as logits in `{problem_type}`, {got}"


class ChanceLevel:
    """The loss of the best constant prediction, from the labels seen so far; on their device, without waiting for it.

    | problem type | loss | chance level |
    |---|---|---|
    | `single_label_classification` | cross-entropy | entropy of the classes |
    | `multi_label_classification` | binary cross-entropy | mean of the labels' entropies |
    | `regression` | mean squared error | variance |

    Args:
        problem_type: See the table.
        num_labels: Width of the logits.
        scale: Of a regression mean and deviation of each quantity: so each counts alike, and large ones stay exact.

    Example:

        >>> chance = ChanceLevel("single_label_classification", 2)
        >>> chance.update(chance.statistics(torch.tensor([0, 1, 1, 0])))
        >>> float(chance.value())
        0.6931...
    """

    def __init__(
        self, problem_type: str, num_labels: int, scale: tuple[Sequence[float], Sequence[float]] | None = None
    ) -> None:
        self.problem_type, self.num_labels, self.scale = problem_type, num_labels, scale
        self.sums: Tensor | None = None

    def standardised(self, values: Tensor) -> Tensor:
        """Labels, or logits, as they are; float64 `[B, C]` without `scale`'s units."""
        if self.scale is None:
            return values
        mean, std = torch.tensor(self.scale, dtype=torch.float64, device=values.device)
        return (values.double().view(len(values), -1) - mean) / std

    @property
    def width(self) -> int:
        """Length of `statistics`."""
        return 1 + 2 * self.num_labels

    def statistics(self, labels: Tensor) -> Tensor:
        """What a batch adds, float64 `[1 + 2 C]`: rows, sums, sums of squares (to be added up over processes)."""
        if self.problem_type == "single_label_classification":
            labels = labels.view(-1)
            rows = torch.nn.functional.one_hot(labels.clamp(min=0), self.num_labels) * (labels != _IGNORED).unsqueeze(
                1
            )
            count = (labels != _IGNORED).sum().view(1)
        else:
            rows = self.standardised(labels).view(len(labels), -1)
            count = torch.full((1,), len(labels), device=labels.device)
        rows = rows.double()
        return torch.cat([count.double(), rows.sum(0), rows.square().sum(0)])

    def update(self, statistics: Tensor) -> None:
        """Counts what [`ChanceLevel.statistics`] gave."""
        self.sums = statistics if self.sums is None else self.sums.to(statistics.device) + statistics

    def value(self) -> Tensor:
        """The chance level, a scalar; NaN before any label was seen."""
        if self.sums is None:
            return torch.tensor(math.nan)
        means, squares = (self.sums[1:] / self.sums[0]).chunk(2)
        if self.problem_type == "regression":
            return (squares - means.square()).mean()
        if self.problem_type == "single_label_classification":
            return torch.special.entr(means).sum()
        return (torch.special.entr(means) + torch.special.entr(1 - means)).mean()


class Explained:
    """Running shares of the labels that each modality alone, and all together, explain.

    Args:
        modalities: Their names.
        chance: The loss that explains nothing.

    Example:

        >>> explained = Explained(["image", "text"], ChanceLevel("single_label_classification", 10))
        >>> explained.count({"multimodal": out.logits, "image": out.unimodal["image"].logits}, labels)  # per batch
        >>> explained.step()  # once per step of the optimizer
        >>> explained.shares()  # tensors: at chance 0, perfect 1
        {'multimodal': tensor(0.8), 'image': tensor(0.4), 'text': tensor(0.)}
    """

    def __init__(self, modalities: list[str], chance: ChanceLevel) -> None:
        self.names, self.chance = [MULTIMODAL, *modalities], chance
        self._running: Tensor | None = None  # losses, in the order of names; NaN where there was none yet
        self._open: Tensor | None = None  # what was counted of this step

    @torch.no_grad()
    def count(self, logits: Mapping[str, Tensor], labels: Tensor, rows: Mapping[str, Tensor] | None = None) -> None:
        """Counts a batch, or a part of one; nothing waits for the device.

        Args:
            logits: By name, `[B, C]`; a modality that is not in the batch has none.
            labels: As the model takes them.
            rows: By name, bool `[B]`: which rows have the modality. Default: all.

        Raises:
            ValueError: the shapes are not those of the problem type.
        """
        sums = torch.zeros(2, len(self.names), dtype=torch.float64, device=labels.device)
        for column, name in enumerate(self.names):
            if name not in logits:
                continue
            problem = unfit(self.chance.problem_type, self.chance.num_labels, logits[name], labels)
            if problem:
                raise ValueError(f"What {name!r} explains cannot be measured: {problem}.")
            scaled = self.chance.standardised(logits[name]), self.chance.standardised(labels)
            losses, counted = plain_losses(self.chance.problem_type, *scaled)
            if rows is not None and name in rows:
                counted = counted & rows[name].view(-1).to(counted.device)
            found = torch.stack([torch.where(counted, losses, 0.0).sum(), counted.sum().double()])
            sums[:, column] = found.to(sums.device)
        counted_now = torch.cat([sums.flatten(), self.chance.statistics(labels)])
        self._open = counted_now if self._open is None else self._open + counted_now.to(self._open.device)

    @torch.no_grad()
    def step(self, device: Any = "cpu") -> None:
        """Ends a step of the optimizer; every process must do so.

        Args:
            device: Of a process that has counted nothing.
        """
        width = 2 * len(self.names) + self.chance.width
        nothing = torch.zeros(width, dtype=torch.float64, device=device)
        counted, self._open = sum_over_processes(nothing if self._open is None else self._open), None
        sums, rows, statistics = counted.split([len(self.names), len(self.names), self.chance.width])
        self.chance.update(statistics)
        now = sums / rows  # 0 / 0 is NaN: nobody had it
        if self._running is None:
            self._running = torch.where(now.isfinite(), now, torch.nan)
            return
        before = self._running.to(now.device)
        mixed = torch.where(before.isnan(), now, _DECAY * before + (1 - _DECAY) * now)
        self._running = torch.where(now.isfinite(), mixed, before)

    def shares(self) -> dict[str, Tensor]:
        """Name -> what it explains, 0 to 1; 0 before the first step."""
        if self._running is None:
            return {name: torch.zeros(()) for name in self.names}
        explained = (1 - self._running / self.chance.value().to(self._running.device)).nan_to_num(0.0).clamp(0.0, 1.0)
        return dict(zip(self.names, explained.unbind(), strict=True))

    def known(self) -> dict[str, float]:
        """As [`Explained.shares`], in plain numbers, without what was never measured; waits for the device."""
        if self._running is None:
            return {}
        shares = zip(self.shares().items(), self._running.tolist(), strict=True)
        return {name: float(share) for (name, share), running in shares if not math.isnan(running)}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        lists = {"running": self._running, "sums": self.chance.sums}
        return {key: None if value is None else value.tolist() for key, value in lists.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what [`Explained.state_dict`] gave."""
        kept = {
            key: None if value is None else torch.tensor(value, dtype=torch.float64) for key, value in state.items()
        }
        self._running, self.chance.sums = kept["running"], kept["sums"]
