"""The plain loss of a problem type, and what the best constant prediction leaves of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_IGNORED = -100  # label of a row that does not count


def plain_losses(problem_type: str, logits: Tensor, labels: Tensor) -> Tensor:
    """The plain loss of each row.

    Args:
        problem_type: See [`ChanceLevel`].
        logits: `[B, C]`.
        labels: As [`unfit`] expects them.

    Returns:
        Float64 `[B]`; 0 for a row without a label.

    Example:

        >>> plain_losses("regression", torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 2.0]))
        tensor([1., 0.], dtype=torch.float64)
    """
    logits = logits.detach().double()
    labels = labels.to(logits.device)
    if problem_type == "single_label_classification":
        labels = labels.view(-1)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=_IGNORED)
    targets = labels.double().view_as(logits)
    if problem_type == "regression":
        losses = (logits - targets).square()
    else:
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.mean(-1)


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

    def counts(self, labels: Tensor) -> Tensor:
        """Which rows have a label, bool `[B]`."""
        if self.problem_type == "single_label_classification":
            return labels.view(-1) != _IGNORED
        return torch.ones(len(labels), dtype=torch.bool, device=labels.device)

    @property
    def width(self) -> int:
        """Length of `statistics`."""
        return 1 + 2 * self.num_labels

    def statistics(self, labels: Tensor) -> Tensor:
        """What a batch adds, float64 `[1 + 2 C]`: rows, sums, sums of squares (to be added up over processes)."""
        counts = self.counts(labels)
        if self.problem_type == "single_label_classification":
            rows = torch.nn.functional.one_hot(labels.view(-1).clamp(min=0), self.num_labels) * counts.unsqueeze(1)
        else:
            rows = self.standardised(labels).view(len(labels), -1)
        rows = rows.double()
        return torch.cat([counts.sum().double().view(1), rows.sum(0), rows.square().sum(0)])

    def update(self, statistics: Tensor) -> None:
        """Counts what [`ChanceLevel.statistics`] gave."""
        self.sums = statistics if self.sums is None else self.sums.to(statistics.device) + statistics

    @property
    def is_known(self) -> bool:
        """Whether any labels were counted."""
        return self.sums is not None

    def constant(self) -> Tensor:
        """The best constant answer, in logits (or quantities): float64 `[C]`; half a row is added to each class."""
        assert self.sums is not None
        sums, rows = self.sums[1 : 1 + self.num_labels], self.sums[0]
        if self.problem_type == "regression":
            return sums / rows
        if self.problem_type == "single_label_classification":
            return ((sums + 0.5) / (rows + 0.5 * self.num_labels)).log()
        return ((sums + 0.5) / (rows + 1)).logit()

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
