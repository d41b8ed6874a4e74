"""G-Blending: all losses weighed by how they overfit and generalise, a baseline (`method: g_blending`).

Source: Wang, Tran, Feiszli, "What Makes Training Multi-modal Classification Networks Hard?", CVPR 2020, arXiv
1905.12681, equation 3 and proposition 1. Nothing is truncated; the loss is `sum_i w_i L_i` over the multimodal loss
and those of each modality alone. With training and validation losses L^T, L^V at the ends of two super-epochs:

    G_i = L^V_i(before) - L^V_i(now)                                              what it gained on new data
    O_i = (L^V_i - L^T_i)(now) - (L^V_i - L^T_i)(before)                         what the gap to the training data grew
    w_i = (G_i / O_i^2) / Z,   Z = sum_i G_i / O_i^2

A super-epoch lasts from one evaluation to the next. The weights are equal until two of them can be compared; an
evaluation before the first step (`eval_on_start`, which `hf-dgl train` sets) counts as one, with no gap.

What is *not* the paper's: it measures G_i and O_i on copies of the model that are trained for a super-epoch by loss i
only and then thrown away (k + 2 times the training). Here they are measured on the model that is trained, by all
losses together, so that the weights cost nothing but the evaluations; and the losses of one modality alone come
through the shared fusion, not through a head of their own.

Choices that it leaves open: a loss that gained nothing (G_i <= 0) gets no weight for the next super-epoch, and if none
gained, all weights stay; |O_i| counts as 1e-4 at least. The training loss is the mean over the super-epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_dgl.method.passes import MULTIMODAL
from hf_dgl.method.processes import sum_over_processes

_LEAST_OVERFITTING = 1e-4


def blend_weights(
    before: Mapping[str, tuple[float, float]], now: Mapping[str, tuple[float, float]]
) -> dict[str, float] | None:
    """The weights of the losses after a super-epoch (proposition 1, with the estimates of equation 3).

    Args:
        before, now: Loss -> its value on the training and on the validation data, at the beginning and at the end.

    Returns:
        Loss -> weight, 0 or more, 1 together; None if no loss gained anything on the validation data.

    Example:

        >>> blend_weights({"image": (2.0, 2.0), "text": (2.0, 2.0)}, {"image": (1.0, 1.5), "text": (1.0, 2.0)})
        {'image': 1.0, 'text': 0.0}
    """
    worth = {}
    for name in now:
        (train_before, new_before), (train, new) = before[name], now[name]
        gained, overfitted = new_before - new, (new - train) - (new_before - train_before)
        worth[name] = max(gained, 0.0) / max(abs(overfitted), _LEAST_OVERFITTING) ** 2
    total = sum(worth.values())
    return {name: value / total for name, value in worth.items()} if total > 0 else None


class Blending:
    """The weights of one training run, and the losses from which they are estimated.

    Args:
        modalities: Their names.

    Attributes:
        weights: Loss (`multimodal` and the modalities) -> weight; they are 1 together.

    Example:

        >>> blending = Blending(["image", "text"])
        >>> loss = blending.total(out.losses)  # at every step
        >>> blending.count(out.losses)
        >>> blending.end_of_super_epoch({"multimodal": 1.1, "image": 1.5, "text": 1.4})  # losses on new data
    """

    def __init__(self, modalities: list[str]) -> None:
        self.names = [MULTIMODAL, *modalities]
        self.weights = dict.fromkeys(self.names, 1 / len(self.names))
        self._trained: Tensor | None = None  # [2, 1 + M]: sums and counts of the losses since the last evaluation
        self._resumed: list[list[float]] | None = None  # the same of a checkpoint, over all processes
        self._before: dict[str, tuple[float, float]] | None = None

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The loss that is trained, a scalar.

        Args:
            losses: Unweighted terms by name. A modality that is not in the batch has none.
        """
        return torch.stack([self.weights[name] * losses[name] for name in self.names if name in losses]).sum()

    @torch.no_grad()
    def count(self, losses: Mapping[str, Tensor], rows: Mapping[str, Tensor | float] | None = None) -> None:
        """Counts the losses of a batch, or of a part of one; nothing waits for the device.

        Args:
            losses: As for `total`, but means over rows.
            rows: How many rows each is a mean of. Default: they weigh alike.
        """
        device = losses[MULTIMODAL].device
        found = torch.zeros(2, len(self.names), dtype=torch.float64, device=device)
        for column, name in enumerate(self.names):
            if name in losses:
                weight = torch.as_tensor(1.0 if rows is None else rows[name], dtype=torch.float64, device=device)
                found[0, column], found[1, column] = losses[name].detach().double() * weight, weight
        self._trained = found if self._trained is None else self._trained + found

    def end_of_super_epoch(self, validation: Mapping[str, float]) -> None:
        """Estimates the weights anew; every process must call it.

        Args:
            validation: Loss -> its mean over the validation data.
        """
        sums, counts = self._sums_and_counts()
        self._trained = self._resumed = None
        if self._before is not None and not any(counts):
            return  # another evaluation of the same weights
        now = {}
        for name, total, count in zip(self.names, sums, counts, strict=True):
            now[name] = (total / count if count else validation[name], validation[name])
        if self._before is not None:
            self.weights = blend_weights(self._before, now) or self.weights
        self._before = now

    def logs(self) -> dict[str, float]:
        """`weight_multimodal`, `weight_image`, ..."""
        return {f"weight_{name}": weight for name, weight in self.weights.items()}

    def _sums_and_counts(self) -> list[list[float]]:
        """Of the training losses in this super-epoch, over all processes."""
        found = torch.tensor(self._resumed or [[0.0] * len(self.names)] * 2, dtype=torch.float64)
        if self._trained is not None:
            found = found + sum_over_processes(self._trained).cpu()
        return found.tolist()

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"weights": self.weights, "before": self._before, "super_epoch": self._sums_and_counts()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what [`Blending.state_dict`] gave."""
        self.weights, self._before = dict(state["weights"]), state["before"]
        self._trained, self._resumed = None, state["super_epoch"]
