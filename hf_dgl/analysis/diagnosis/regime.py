r"""Are the labels redundant, mixed or synergistic? Read off held-out losses of models trained alone and together.

What a model *explains* is $u = 1 - L / H$: $L$ its loss on the validation split, $H$ that of the best constant
answer. Three kinds of model are compared: each modality trained alone ($u_m$); their *late fusion*
$\sum_m w_m f_m(x_m) + b$, which adds up what each says but cannot combine it ($u_{late}$); and joint training
($u_{joint}$), which can. With $u = \max(u_{joint}, u_{late})$:

| regime | what the losses say | example |
|---|---|---|
| `unclear` | $u$ is near 0 | nothing was learned yet |
| `synergy` | joint training explains clearly more than late fusion, which explains little | parity |
| `mixed` | joint training explains clearly more than late fusion, which explains a part | a class, and its parity |
| `useless` | no such gain, and only one modality is of any use | noise as second input |
| `redundant` | no such gain: adding up what each says is enough | the same class, seen and heard |

Comparing joint training with *late fusion* is what tells interplay from complementary noise: two noisy views of one
class explain more together than each alone, and late fusion explains as much. Comparing it with the sum of the $u_m$
would call the two alike.

All losses are *calibrated* first (scale $w$ and offset $b$ fitted on the other folds of the validation split), as
short runs on little data are too sure of themselves. How sure the answer is comes from resampling the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hf_dgl.training.metrics import labelled

REDUNDANT, MIXED, SYNERGY, USELESS, UNCLEAR = "redundant", "mixed", "synergy", "useless", "unclear"
REGIMES = (REDUNDANT, MIXED, SYNERGY, USELESS, UNCLEAR)

LEARNED = 0.05  # of the labels explained, below which nothing was learned
INTERPLAY = 0.15  # share of what is explained that late fusion does not reach, above which modalities are combined
LITTLE = 0.25  # share of what is explained that late fusion reaches, below which it is synergy
IDLE = 0.05  # share of what is explained, below which a modality is of no use

_NUM_FOLDS, _PENALTY = 5, 1e-3


@dataclass(frozen=True)
class Explained:
    """Shares of the labels that are explained on held-out rows; 1 is all, 0 what a constant explains.

    Args:
        alone: Modality -> by the model that was trained on it alone.
        late: By late fusion of these.
        joint: By joint training.
        missed: Modality -> what joint training explains less when the modality's values are shuffled over the rows.
    """

    alone: Mapping[str, float]
    late: float
    joint: float
    missed: Mapping[str, float]

    @property
    def together(self) -> float:
        """The most that was explained with all modalities."""
        return max(self.joint, self.late)

    @property
    def interplay(self) -> float:
        """Share of it that comes from combining the modalities."""
        return (self.joint - max(self.late, *self.alone.values())) / self.together if self.together > 0 else 0.0

    def useless(self) -> list[str]:
        """Modalities that explain nothing alone, and that joint training does not miss."""
        least = IDLE * self.together
        return [name for name, share in self.alone.items() if share < least and self.missed[name] < least]

    def regime(self) -> str:
        """One of [`REGIMES`]: the table on top of this file."""
        if self.together < LEARNED:
            return UNCLEAR
        if self.interplay > INTERPLAY:
            return SYNERGY if self.late < LITTLE * self.together else MIXED
        return USELESS if len(self.alone) - len(self.useless()) < 2 else REDUNDANT


@dataclass(frozen=True)
class Regime:
    """The answer, and how sure it is.

    Args:
        name: One of [`REGIMES`].
        explained: What it follows from.
        votes: Regime -> share of the resamplings of the validation rows that give it.
        intervals: What is explained -> its 95 % interval over the resamplings.
        dominant: The modality that joint training relies on most; None if none stands out.
        num_rows: Validation rows.
    """

    name: str
    explained: Explained
    votes: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    dominant: str | None = None
    num_rows: int = 0


def find_regime(
    alone: Mapping[str, np.ndarray],
    joint: np.ndarray,
    shuffled: Mapping[str, np.ndarray],
    labels: np.ndarray,
    problem_type: str,
    num_resamplings: int = 1000,
) -> Regime:
    """The regime of a task from predictions on held-out rows.

    Args:
        alone: Modality -> outputs `[N, C]` (logits, or quantities `[N]`) of the model trained on it alone. NaN: the
            row lacks it.
        joint: Outputs of joint training.
        shuffled: Modality -> outputs of joint training with the modality's values shuffled over the rows.
        labels: `[N]` or `[N, C]`, as the model takes them. Rows without a label do not count.
        problem_type: As in the model's config.
        num_resamplings: Of the rows, for the intervals and votes.

    Raises:
        ValueError: fewer than ten rows with a label.

    Example:

        >>> label = np.arange(40) % 2
        >>> sees = np.stack([1.0 - label, label], axis=1) * 5
        >>> blind = np.zeros((40, 2))
        >>> find_regime({"a": blind, "b": blind}, sees, {"a": blind, "b": blind}, label,
        ...             "single_label_classification").name
        'synergy'
    """
    counts = labelled(labels, problem_type)
    if counts.sum() < 2 * _NUM_FOLDS:
        raise ValueError(f"A diagnosis needs at least {2 * _NUM_FOLDS} validation rows with a label: {counts.sum()}.")
    alone, shuffled = ({k: v[counts] for k, v in each.items()} for each in (alone, shuffled))
    joint, labels = joint[counts], labels[counts]
    names = list(alone)
    rows = [calibrated_losses([alone[name]], labels, problem_type)[0] for name in names]
    rows += calibrated_losses(list(alone.values()), labels, problem_type)
    rows += calibrated_losses([joint], labels, problem_type, [[shuffled[name]] for name in names])
    rows += calibrated_losses([], labels, problem_type)
    losses = np.stack(rows)  # [M + late + joint + M + constant, N]
    resampled = np.random.default_rng(0).integers(losses.shape[1], size=(num_resamplings, losses.shape[1]))
    found = _explained(names, losses.mean(axis=1))
    others = [_explained(names, losses[:, rows].mean(axis=1)) for rows in resampled]
    votes = Counter(other.regime() for other in others)
    return Regime(
        found.regime(),
        found,
        {name: votes[name] / num_resamplings for name in REGIMES if votes[name]},
        {"late fusion": _interval([o.late for o in others]), "joint": _interval([o.joint for o in others])}
        | {name: _interval([o.alone[name] for o in others]) for name in names},
        _dominant(found, others),
        losses.shape[1],
    )


def _explained(names: Sequence[str], means: np.ndarray) -> Explained:
    m, constant = len(names), max(means[-1], 1e-12)
    share = 1 - means[:-1] / constant
    missed = (means[m + 2 : -1] - means[m + 1]) / constant
    return Explained(
        dict(zip(names, share[:m].tolist(), strict=True)),
        float(share[m]),
        float(share[m + 1]),
        dict(zip(names, missed.tolist(), strict=True)),
    )


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _dominant(found: Explained, resampled: Sequence[Explained]) -> str | None:
    """The modality that joint training misses most: clearly (one and a half times the next) and in 95 % of cases."""
    if len(found.missed) < 2:
        return None
    first, second = sorted(found.missed, key=lambda name: -found.missed[name])[:2]
    if found.missed[first] < max(LEARNED, 1.5 * found.missed[second]):
        return None
    wins = np.mean([max(other.missed, key=other.missed.__getitem__) == first for other in resampled])
    return first if wins >= 0.95 else None


# ---- calibrated losses -----------------------------------------------------------------------------------------


def calibrated_losses(
    parts: Sequence[np.ndarray],
    labels: np.ndarray,
    problem_type: str,
    also: Sequence[Sequence[np.ndarray]] = (),
) -> list[np.ndarray]:
    """Cross-validated losses of $\\sum_m w_m f_m + b$: weights `w` and offset `b [C]` are fitted on the other folds.

    Args:
        parts: Outputs `f_m`, each `[N, C]` (or `[N]`); several are fused late, none leaves the best constant answer.
        labels: `[N]` or `[N, C]`.
        problem_type: Cross-entropy, binary cross-entropy (mean over classes), or squared error.
        also: Further outputs in the places of `parts`, to which the same weights are applied.

    Returns:
        Losses `[N]` of `parts`, and of each of `also`.
    """
    features = [[_features(part, labels, problem_type) for part in each] for each in (parts, *also)]
    targets = _targets(labels, problem_type)
    constant = int(targets.max()) + 1 if targets.ndim == 1 else targets.shape[1]
    width = max([part.shape[1] for part in features[0]], default=constant)
    folds = np.random.default_rng(0).permutation(len(labels)) % _NUM_FOLDS
    losses = [np.empty(len(labels)) for _ in features]
    for fold in range(_NUM_FOLDS):
        inside, outside = torch.from_numpy(folds != fold), torch.from_numpy(folds == fold)
        weights, offset = _fit([part[inside] for part in features[0]], targets[inside], width, problem_type)
        for each, out in zip(features, losses, strict=True):
            predicted = _combine([part[outside] for part in each], weights, offset, int(outside.sum()))
            out[outside.numpy()] = _losses(predicted, targets[outside], problem_type).numpy()
    return losses


def _features(part: np.ndarray, labels: np.ndarray, problem_type: str) -> Tensor:
    tensor = torch.from_numpy(np.asarray(part, dtype=np.float64).reshape(len(labels), -1))
    if problem_type == "single_label_classification":
        tensor = tensor.log_softmax(dim=1)
        tensor = tensor - tensor.mean(dim=1, keepdim=True)
    elif problem_type == "regression":
        tensor = (tensor - labels.mean()) / max(labels.std(), 1e-9)
    return tensor.nan_to_num(0.0)  # a row that lacks the modality: it says nothing


def _targets(labels: np.ndarray, problem_type: str) -> Tensor:
    if problem_type == "single_label_classification":
        return torch.from_numpy(np.asarray(labels, dtype=np.int64).reshape(-1))
    targets = torch.from_numpy(np.asarray(labels, dtype=np.float64).reshape(len(labels), -1))
    return (targets - labels.mean()) / max(labels.std(), 1e-9) if problem_type == "regression" else targets


def _combine(parts: Sequence[Tensor], weights: Tensor, offset: Tensor, num_rows: int) -> Tensor:
    total = offset.expand(num_rows, -1)
    for weight, part in zip(weights, parts, strict=True):
        total = total + weight * part
    return total


def _losses(predicted: Tensor, targets: Tensor, problem_type: str) -> Tensor:
    if problem_type == "single_label_classification":
        return torch.nn.functional.cross_entropy(predicted, targets, reduction="none")
    if problem_type == "regression":
        return (predicted - targets).square().mean(dim=1)
    return torch.nn.functional.binary_cross_entropy_with_logits(predicted, targets, reduction="none").mean(dim=1)


def _fit(parts: Sequence[Tensor], targets: Tensor, width: int, problem_type: str) -> tuple[Tensor, Tensor]:
    weights = torch.full((len(parts),), 0.5, dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(width, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, offset], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _losses(_combine(parts, weights, offset, len(targets)), targets, problem_type).mean()
        loss = loss + _PENALTY * (weights.square().sum() + offset.square().sum())
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach(), offset.detach()
