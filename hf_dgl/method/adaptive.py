r"""How much a modality explains by itself, kept during training; and `adaptive_dgl`, which decides by that.

Let $H$ be the loss of the best constant prediction (the labels' entropy, or variance), $L_m$ and $L_\tau$ the running
unimodal and multimodal losses. Modality $m$ alone *explains* $u_m = 1 - L_m / H$ of the labels, all together explain
$u_\tau$, and

$$R = \min(1, \textstyle\sum_m u_m / u_\tau)$$

says whether the modalities repeat or complete one another. Where they are independent given the label (two views of
one thing, each with its own noise), information theory has $\sum_m I(m; y) \ge I(all; y)$, so $R = 1$: each encoder
can learn from its own loss, which is what DGL is for. Where the label is told by their interplay, what each tells
alone adds up to less than what they tell together: $R < 1$, and a unimodal loss teaches its encoder little but noise.
Full DGL starves the encoders there.

`adaptive_dgl` is joint training, the multimodal gradient reaching every encoder. To it the unimodal losses are added
(they never reach the fusion, as in DGL) with the weights

    α_m = alpha_m · max(0.03, R¹² · min(1, 3 u_m / u_τ) · min(1, u_τ / 0.4)²)

R¹² closes at once where R falls below 1. The second factor spares a modality that says nothing, the third waits until
the fused loss has shown whether there is an interplay: what a modality tells alone is often learned first. The 0.03
keep the fusion's answers to one modality calibrated: without them an encoder that is never asked alone may look as if
it told nothing (a bilinear fusion), and the gate would stay shut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .disentangle import Disentangled
from .passes import MULTIMODAL

_DECAY = 0.95  # of the running losses, per step

_LEAST = 0.05  # of the labels explained, below which ratios to it mean nothing

_LEAST_WEIGHT = 0.03  # of a unimodal loss


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

    Example:

        >>> chance = ChanceLevel("single_label_classification", 2)
        >>> chance.update(chance.statistics(torch.tensor([0, 1, 1, 0])))
        >>> float(chance.value())
        0.6931...
    """

    def __init__(self, problem_type: str, num_labels: int) -> None:
        self.problem_type, self.num_labels = problem_type, num_labels
        self.sums: Tensor | None = None

    def statistics(self, labels: Tensor) -> Tensor:
        """What a batch adds, float64 `[1 + 2 C]`: rows, sums, sums of squares (to be added up over processes)."""
        if self.problem_type == "single_label_classification":
            labels = labels.view(-1)
            rows = torch.nn.functional.one_hot(labels.clamp(min=0), self.num_labels) * (labels != -100).unsqueeze(1)
            count = (labels != -100).sum().view(1)
        else:
            rows = labels.view(len(labels), -1)
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
        everywhere: Whether all processes of a distributed run shall know the same (one small exchange per step).

    Example:

        >>> explained = Explained(["image", "text"], ChanceLevel("single_label_classification", 10))
        >>> explained.update(out.losses, labels)  # at every step
        >>> explained.shares()  # tensors: at chance 0, perfect 1
        {'multimodal': tensor(0.8), 'image': tensor(0.4), 'text': tensor(0.)}
    """

    def __init__(self, modalities: list[str], chance: ChanceLevel, everywhere: bool = True) -> None:
        self.names, self.chance, self.everywhere = [MULTIMODAL, *modalities], chance, everywhere
        self._running: Tensor | None = None  # losses, in the order of names; NaN where there was none yet

    @torch.no_grad()
    def update(self, losses: Mapping[str, Tensor], labels: Tensor) -> None:
        """Counts one step (every process must do so if all shall know the same).

        Args:
            losses: Unweighted terms by name; a modality that is not in the batch has none.
            labels: As the model takes them.
        """
        nothing = torch.full((), math.nan, dtype=torch.float64, device=labels.device)
        found = [losses.get(name, nothing).detach().to(labels.device).double() for name in self.names]
        step, statistics = torch.stack(found), self.chance.statistics(labels)
        if self.everywhere:
            step, statistics = _over_processes(step, statistics)
        self.chance.update(statistics)
        if self._running is None:
            self._running = step
            return
        before = self._running.to(step.device)
        mixed = _DECAY * before + (1 - _DECAY) * step
        self._running = torch.where(step.isnan(), before, torch.where(before.isnan(), step, mixed))

    def shares(self) -> dict[str, Tensor]:
        """Name -> what it explains, 0 to 1; 0 before the first step."""
        if self._running is None:
            return {name: torch.zeros(()) for name in self.names}
        explained = (1 - self._running / self.chance.value().to(self._running.device)).nan_to_num(0.0).clamp(0.0, 1.0)
        return dict(zip(self.names, explained.unbind(), strict=True))

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


def adapt(handle: Disentangled, explained: Explained, alpha: Mapping[str, float]) -> None:
    """Sets the weights of the unimodal losses for the next step (the formula on top of this file).

    They are tensors on the device: nothing waits for it.

    Args:
        handle: Made with `multimodal_to_encoders=1.0`, see `METHODS["adaptive_dgl"]`.
        explained: Updated at every step.
        alpha: The user's factor for each modality.

    Example:

        >>> handle = disentangle(model, modalities, multimodal_to_encoders=1.0)
        >>> explained = Explained(["image", "text"], ChanceLevel("single_label_classification", 10))
        >>> for batch in loader:
        ...     adapt(handle, explained, {"image": 1.0, "text": 1.0})
        ...     out = model(**batch)
        ...     out.loss.backward()
        ...     explained.update(out.losses, batch["labels"])
    """
    shares = explained.shares()
    together = shares.pop(MULTIMODAL)
    reference = together.clamp(min=_LEAST)
    redundancy = (torch.stack(list(shares.values())).sum() / reference).clamp(max=1.0)
    gate = redundancy**12 * (together / 0.4).clamp(max=1.0) ** 2
    for name, share in shares.items():
        weight = (gate * (3 * share / reference).clamp(max=1.0)).clamp(min=_LEAST_WEIGHT)
        handle.alpha[name] = alpha[name] * weight.float()  # type: ignore[assignment]


def _over_processes(losses: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the losses over the processes that have them, and sum of the statistics, in one exchange."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return losses, statistics
    present = ~losses.isnan()
    gathered = torch.cat([losses.nan_to_num(0.0), present.double(), statistics])
    distributed.all_reduce(gathered)
    total, count, statistics = gathered.split([len(losses), len(losses), len(statistics)])
    return total / count, statistics  # 0 / 0: nobody had it
