r"""How much of the labels a modality explains by itself, followed during training.

Let $H$ be the loss of the best constant prediction (the labels' entropy, or variance), $L_m$ the running loss of what
the model predicts from modality $m$ alone, and $L_\tau$ from all. Modality $m$ alone *explains* $u_m = 1 - L_m / H$ of
the labels, all together explain $u_\tau$, and their answers alone, added up, $u_{late}$ (`late_fusion.py`).

The losses are the plain ones of the problem type (`chance.py`), whichever loss trains: smoothed, weighted or summed,
it would have another chance level. They are summed over the rows of all micro-batches and processes of a step, so what
is explained does not depend on how a batch is cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .chance import ChanceLevel, plain_losses, unfit
from .late_fusion import LateFusion
from .passes import MULTIMODAL
from .processes import sum_over_processes

LATE_FUSION = "late_fusion"
"""Name of what the answers of the modalities explain when they are added up."""


def part_of_late_fusion(modality: str) -> str:
    """Name of what a modality's answer explains when it is believed as far as late fusion believes it."""
    return f"{LATE_FUSION}_{modality}"


_DECAY = 0.95  # of the running losses, per step


class Explained:
    """Running shares of the labels that each modality alone, all together, and their answers added up explain.

    Args:
        modalities: Their names.
        chance: The loss that explains nothing.

    Example:

        >>> explained = Explained(["image", "text"], ChanceLevel("single_label_classification", 10))
        >>> explained.count({"multimodal": out.logits, "image": out.unimodal["image"].logits}, labels)  # per batch
        >>> explained.step()  # once per step of the optimizer
        >>> explained.shares()  # tensors: at chance 0, perfect 1
        {'multimodal': tensor(0.8), 'image': tensor(0.4), 'text': tensor(0.), 'late_fusion': tensor(0.4),
         'late_fusion_image': tensor(0.4), 'late_fusion_text': tensor(0.)}
    """

    def __init__(self, modalities: list[str], chance: ChanceLevel) -> None:
        self.names = [MULTIMODAL, *modalities, LATE_FUSION, *map(part_of_late_fusion, modalities)]
        self.chance = chance
        self.late_fusion = LateFusion(modalities, chance)
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
        targets = self.chance.standardised(labels)
        answers, counted = {}, {}
        for name in [name for name in self.names if name in logits]:
            problem = unfit(self.chance.problem_type, self.chance.num_labels, logits[name], labels)
            if problem:
                raise ValueError(f"What {name!r} explains cannot be measured: {problem}.")
            answers[name] = self.chance.standardised(logits[name]).to(labels.device)
            counted[name] = self.chance.counts(labels)
            if rows is not None and name in rows:
                counted[name] = counted[name] & rows[name].view(-1).to(labels.device)
        evidence = torch.zeros(self.late_fusion.width, dtype=torch.float64, device=labels.device)
        if answers.keys() - {MULTIMODAL} and self.chance.is_known:
            of_all = counted.get(MULTIMODAL, self.chance.counts(labels))
            (added_up, *parts), evidence = self.late_fusion.answer(answers, counted, targets, of_all)
            answers[LATE_FUSION], counted[LATE_FUSION] = added_up, of_all
            for name, part in zip(self.late_fusion.names, parts, strict=True):
                if name in answers:
                    answers[part_of_late_fusion(name)] = part
                    counted[part_of_late_fusion(name)] = counted[name]
        sums = torch.zeros(2, len(self.names), dtype=torch.float64, device=labels.device)
        for name, answer in answers.items():
            losses = plain_losses(self.chance.problem_type, answer, targets)
            found = [torch.where(counted[name], losses, 0.0).sum(), counted[name].sum().double()]
            sums[:, self.names.index(name)] = torch.stack(found)
        counted_now = torch.cat([sums.flatten(), self.chance.statistics(labels), evidence])
        self._open = counted_now if self._open is None else self._open + counted_now.to(self._open.device)

    @torch.no_grad()
    def step(self, device: Any = "cpu") -> None:
        """Ends a step of the optimizer; every process must do so.

        Args:
            device: Of a process that has counted nothing.
        """
        widths = [len(self.names), len(self.names), self.chance.width, self.late_fusion.width]
        nothing = torch.zeros(sum(widths), dtype=torch.float64, device=device)
        counted, self._open = sum_over_processes(nothing if self._open is None else self._open), None
        sums, rows, statistics, evidence = counted.split(widths)
        self.chance.update(statistics)
        self.late_fusion.step(evidence)
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
            return {name: torch.zeros((), dtype=torch.float64) for name in self.names}
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
        plain = {key: None if value is None else value.tolist() for key, value in lists.items()}
        return {**plain, LATE_FUSION: self.late_fusion.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what [`Explained.state_dict`] gave."""
        kept = {
            key: None if state[key] is None else torch.tensor(state[key], dtype=torch.float64)
            for key in ("running", "sums")
        }
        self._running, self.chance.sums = kept["running"], kept["sums"]
        if LATE_FUSION in state:
            self.late_fusion.load_state_dict(state[LATE_FUSION])
        elif self._running is not None:  # of a checkpoint from before answers were added up
            new = torch.full((len(self.names) - len(self._running),), math.nan, dtype=torch.float64)
            self._running = torch.cat([self._running, new])
