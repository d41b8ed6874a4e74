"""`class_weights`: rare classes count more in the loss that is trained.

| problem type | loss of a row | `balanced` |
|---|---|---|
| `single_label_classification` | cross-entropy times the weight of its class; the mean divides by the weights' sum | `rows / (classes * rows_of_class)` |
| `multi_label_classification` | binary cross-entropy per class, whose positive part is multiplied by the weight | `negative rows / positive rows` |

The first is torch's `cross_entropy(weight=...)` with scikit-learn's "balanced" weights, the second
`binary_cross_entropy_with_logits(pos_weight=...)`. Both are divided over the whole batch of an optimizer step, so that
8 x 1 rows are 1 x 8. Classes without rows weigh 1. What each modality explains is measured without weights.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from hf_dgl.data.problem_types import MULTI_LABEL, SINGLE_LABEL
from hf_dgl.method.modalities import did_you_mean
from hf_dgl.method.outputs import entry, first_prediction

_IGNORED = -100


class WeightedLoss:
    """The `compute_loss_func` of a Trainer with `class_weights`.

    Args:
        weights: float `[num_labels]`.
        problem_type: Single or multi label.

    Example:

        >>> loss = WeightedLoss(torch.tensor([1.0, 3.0]), "single_label_classification")
        >>> loss({"logits": torch.zeros(2, 2)}, torch.tensor([0, 1]))
        tensor(0.6931)
    """

    def __init__(self, weights: Tensor, problem_type: str) -> None:
        self.weights, self.problem_type = weights, problem_type
        self.was_called = False

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """The loss of one output; a share of the whole batch's if `num_items_in_batch` counts its [`items`]."""
        self.was_called = True
        logits = entry(outputs, "logits")
        logits = first_prediction(outputs) if logits is None else logits
        weights = self.weights.to(logits)
        if self.problem_type == SINGLE_LABEL:
            total = functional.cross_entropy(logits, labels, weight=weights, ignore_index=_IGNORED, reduction="sum")
        else:
            counts = (labels != _IGNORED).to(logits)
            terms = functional.binary_cross_entropy_with_logits(
                logits, labels.to(logits) * counts, weight=counts, pos_weight=weights, reduction="none"
            )
            total = terms.sum()
        return total / (self.items(labels) if num_items_in_batch is None else num_items_in_batch)

    def items(self, labels: Tensor) -> Tensor:
        """What the sum over rows is divided by: the weights of the labels, or the number of decisions; a scalar."""
        if self.problem_type != SINGLE_LABEL:
            return (labels != _IGNORED).sum()
        return self.weights.to(labels.device)[labels[labels != _IGNORED]].sum()


class CheckThatItCounts(TrainerCallback):
    """Refuses a `compute_loss` of the user's own that leaves the weights out.

    Raises:
        ValueError: after the first step.

    Example:

        >>> trainer.add_callback(CheckThatItCounts(weighted_loss))
    """

    def __init__(self, loss: WeightedLoss) -> None:
        self._loss = loss

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._loss.was_called:
            raise ValueError(
                "`class_weights` had no part in the loss: the Trainer's `compute_loss` is overridden and computes "
                "another one. Weigh the classes there, or remove `class_weights`."
            )


def weighted_loss(wanted: Mapping[str, float] | str, config: Any, train_dataset: Any) -> WeightedLoss:
    """The loss that `class_weights` asks for.

    Args:
        wanted: `balanced`, or class name (or id) -> weight; classes that are not named weigh 1.
        config: Of the model: `problem_type`, `num_labels`, `id2label`.
        train_dataset: Whose labels are counted, for `balanced`.

    Raises:
        ValueError: the labels are no classes, an unknown class, a weight that is no positive number, or labels that
            cannot be counted.

    Example:

        >>> weighted_loss({"cat": 2.0}, model.config, None).weights
        tensor([2., 1.])
    """
    problem_type = getattr(config, "problem_type", None)
    if problem_type not in (SINGLE_LABEL, MULTI_LABEL):
        raise ValueError(
            f"`class_weights` weighs classes, and the model's `config.problem_type` is {problem_type!r}: expected "
            f"{SINGLE_LABEL!r} or {MULTI_LABEL!r}. Set it, or remove `class_weights`."
        )
    if isinstance(wanted, Mapping):
        return WeightedLoss(_named(wanted, config), problem_type)
    counts, rows = _count(train_dataset, config.num_labels, problem_type)
    others = rows / config.num_labels if problem_type == SINGLE_LABEL else rows - counts
    weights = np.where((counts > 0) & (others > 0), others / np.maximum(counts, 1), 1.0)
    return WeightedLoss(torch.tensor(weights, dtype=torch.float32), problem_type)


def _named(wanted: Mapping[str, float], config: Any) -> Tensor:
    ids = {str(name): int(index) for index, name in (config.id2label or {}).items()}
    weights = torch.ones(config.num_labels)
    for name, weight in wanted.items():
        index = ids.get(str(name), int(name) if str(name).isdigit() else -1)
        if not 0 <= index < config.num_labels:
            raise ValueError(
                f"`class_weights` names an unknown class {name!r}{did_you_mean(str(name), list(ids))} Classes: "
                f"{list(ids)}."
            )
        weights[index] = weight
    return weights


def _count(dataset: Any, num_labels: int, problem_type: str) -> tuple[np.ndarray, int]:
    """Rows of each class, float `[num_labels]`, and rows in all, without those that have no label."""
    if dataset is None or not has_length(dataset):
        raise ValueError(
            "`class_weights: balanced` counts the labels before training, which needs a `train_dataset` with a "
            "length. Give the weights by name, e.g. `class_weights: {cat: 2.0, dog: 1.0}`."
        )
    labels = np.asarray(_labels_of(dataset))
    if not np.issubdtype(labels.dtype, np.number) or labels.ndim != (1 if problem_type == SINGLE_LABEL else 2):
        raise ValueError(
            f"`class_weights: balanced` expects {'class ids' if problem_type == SINGLE_LABEL else 'multi-hot rows'} "
            f"as labels, got {labels[:2].tolist()!r}, ...: give the weights by name, e.g. `class_weights: {{cat: 2}}`."
        )
    if problem_type == SINGLE_LABEL:
        kept = labels[labels != _IGNORED].astype(np.int64)
        return np.bincount(kept, minlength=num_labels).astype(np.float64), len(kept)
    kept = labels[(labels != _IGNORED).all(axis=1)]
    return kept.sum(axis=0).astype(np.float64), len(kept)


def _labels_of(dataset: Any) -> Sequence[Any]:
    for name in ("labels", "label"):
        if isinstance(dataset, datasets.Dataset):
            if name in dataset.column_names:
                return list(dataset[name])
        elif isinstance(dataset[0], Mapping) and name in dataset[0]:
            return [np.asarray(row[name]) for row in dataset]
    raise ValueError(
        "`class_weights: balanced` found no column `label` or `labels` to count: give the weights by name, e.g. "
        "`class_weights: {cat: 2.0, dog: 1.0}`."
    )
