r"""What the modalities tell when their answers are only added up: late fusion, followed during training.

Modality $m$ alone answers $f_m$ (logits), and the best constant answer is $b$. Late fusion answers
$b + \sum_m w_m (f_m - b)$: it believes each modality as far as that has paid, $w_m \ge 0$, and cannot combine them.
The weights are those of the least plain loss, by a Newton step on each batch with a running curvature. So an answer
that is too sure of itself, or of no meaning (a fusion that was never asked about one modality alone), is scaled, or
ignored; and of two that repeat one another only as much is believed as both together tell. A batch is answered before
the weights learn from it. Its parts, $b + w_m (f_m - b)$, are what each modality answers when it is believed as far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .chance import ChanceLevel

_STEP = 0.1  # of the weights towards what a batch asks for

_DECAY = 0.95  # of the running curvature, per step

_RIDGE = 1e-3  # where answers hardly differ from the constant one, nothing is learned of them


class LateFusion:
    """The weights $w$, and what moves them.

    Args:
        modalities: Their names.
        chance: Knows the labels, and the best constant answer once some were seen.

    Example:

        >>> late = LateFusion(["image", "text"], chance)
        >>> answers, evidence = late.answer({"image": image_logits, "text": text_logits}, rows, labels, counted)
        >>> late.step(evidence)  # once per step of the optimizer, summed over batches and processes
    """

    def __init__(self, modalities: Sequence[str], chance: ChanceLevel) -> None:
        self.names, self.chance = list(modalities), chance
        self._weights = torch.zeros(len(self.names), dtype=torch.float64)
        self._curvature: Tensor | None = None  # [M, M]

    @property
    def width(self) -> int:
        """Length of the evidence."""
        return 1 + len(self.names) + len(self.names) ** 2

    def answer(
        self, logits: Mapping[str, Tensor], rows: Mapping[str, Tensor], labels: Tensor, counted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Late fusion's answer, and what the batch says about its weights.

        Args:
            logits: Modality -> `[B, C]`, in the chance level's units; one that is not in the batch has none.
            rows: Modality -> bool `[B]`: which rows have it.
            labels: In the same units.
            counted: Bool `[B]`: rows that count.

        Returns:
            Logits, float64 `[1 + M, B, C]`: late fusion's, and those of its parts; and float64 `[width]`, to be added
            up over batches and processes.
        """
        constant = self.chance.constant().to(labels.device)  # [C]
        told = torch.stack([self._told(logits.get(n), rows.get(n), constant, len(labels)) for n in self.names])
        parts = self._weights.to(told.device)[:, None, None] * told
        answer = constant + parts.sum(0)
        wrong, told, variance = self._slopes(told, answer, labels)
        kept = counted.double()
        gradient = torch.einsum("mbc,bc,b->m", told, wrong, kept)
        curvature = torch.einsum("mbc,bc,nbc,b->mn", told, variance, told, kept)
        return torch.stack([answer, *(constant + parts)]), torch.cat(
            [kept.sum().view(1), gradient, curvature.flatten()]
        )

    def _told(self, logits: Tensor | None, rows: Tensor | None, constant: Tensor, num_rows: int) -> Tensor:
        """What a modality's answer adds to the constant one, `[B, C]`."""
        if logits is None:
            return constant.new_zeros(num_rows, len(constant))
        logits = logits.detach().double()
        if self.chance.problem_type == "single_label_classification":
            logits = logits.log_softmax(-1)
        told = logits.view(num_rows, -1) - constant
        return told if rows is None else torch.where(rows.view(-1, 1), told, 0.0)

    def _slopes(self, told: Tensor, answer: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the loss in the answers: its gradient `[B, C]`, and the directions and variances of its curvature."""
        if self.chance.problem_type == "single_label_classification":
            expected = answer.softmax(-1)
            truth = torch.nn.functional.one_hot(labels.view(-1).clamp(min=0), answer.shape[1])
            told = told - torch.einsum("bc,mbc->mb", expected, told).unsqueeze(-1)
            return expected - truth, told, expected
        truth = labels.double().view_as(answer)
        if self.chance.problem_type == "regression":
            return answer - truth, told, torch.ones_like(answer)
        expected = answer.sigmoid()
        return expected - truth, told, expected * (1 - expected)

    def step(self, evidence: Tensor) -> None:
        """Moves the weights; a step that is not finite, or of no rows, is left out."""
        m = len(self.names)
        rows, gradient, curvature = evidence.split([1, m, m * m])
        good = evidence.isfinite().all() & (rows > 0).all()
        gradient, curvature = (torch.where(good, part / rows, 0.0) for part in (gradient, curvature.view(m, m)))
        before = curvature if self._curvature is None else self._curvature.to(curvature.device)
        after = torch.where(good, _DECAY * before + (1 - _DECAY) * curvature, before)
        scale = self.chance.value().to(after.device) if self.chance.problem_type == "regression" else 1.0
        ridge = _RIDGE * scale * torch.eye(m, dtype=after.dtype, device=after.device)
        move, _ = torch.linalg.solve_ex(after + ridge, gradient)  # `solve` would wait for the device
        self._weights = (self._weights.to(after.device) - _STEP * move).clamp(min=0.0)
        self._curvature = after

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {
            "weights": self._weights.tolist(),
            "curvature": None if self._curvature is None else self._curvature.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what [`LateFusion.state_dict`] gave."""
        self._weights = torch.tensor(state["weights"], dtype=torch.float64)
        curvature = state["curvature"]
        self._curvature = None if curvature is None else torch.tensor(curvature, dtype=torch.float64)
