"""What the best constant answer scores: the floor under every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import datasets
import numpy as np

from .columns import LABEL_COLUMN
from .problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL

_STREAM_ROWS = 1000  # of a stream so many rows are looked at
_WHAT = {
    SINGLE_LABEL: "always the training split's most frequent class",
    MULTI_LABEL: "the same scores for every row",
    REGRESSION: "always the training split's median",
}


def best_constant(train: Sequence[Any], labels: Sequence[Any], problem_type: str) -> tuple[str, float]:
    """The metric that [`compute_metrics_for`] names first for a problem type, of the best constant answer.

    | problem type | metric | answer |
    |---|---|---|
    | `single_label_classification` | `accuracy` | the most frequent class |
    | `multi_label_classification` | `map` | any: its average precision is the share of rows that have the class |
    | `regression` | `mae` | the median of each quantity |

    Args:
        train: Encoded labels of the training split, from which the answer is taken.
        labels: Encoded labels that are scored.
        problem_type: See the table.

    Example:
        >>> best_constant([0, 1, 1], [1, 1, 0, 1], "single_label_classification")
        ('accuracy', 0.75)
    """
    known, wanted = np.asarray(train, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if problem_type == SINGLE_LABEL:
        classes, counts = np.unique(known, return_counts=True)
        return "accuracy", float(np.mean(wanted == classes[counts.argmax()]))
    if problem_type == MULTI_LABEL:
        shares = wanted.mean(axis=0)
        return "map", float(shares[shares > 0].mean()) if shares.any() else float("nan")
    return "mae", float(np.abs(wanted - np.median(known, axis=0)).mean())


def no_better_than_constant(metrics: Mapping[str, float], train: Any, scored: Any, problem_type: str) -> str | None:
    """What to tell the user of a run that ended no better than a constant answer; None if it did better.

    Args:
        metrics: Of the `scored` rows, without prefix.
        train, scored: Splits with encoded labels; of streams the first rows are looked at.
        problem_type: Of the model.

    Example:
        >>> rows = datasets.Dataset.from_dict({"label": [0, 1, 1, 1]})
        >>> no_better_than_constant({"accuracy": 0.5}, rows, rows, "single_label_classification")[:45]
        'accuracy 0.5 is no better than the 0.75 that '
    """
    name, constant = best_constant(_labels(train), _labels(scored), problem_type)
    score = metrics.get(name)
    if score is None or not np.isfinite(constant):
        return None
    if score < constant if name == "mae" else score > constant:
        return None
    return (
        f"{name} {score:.4g} is no better than the {constant:.4g} that a constant scores ({_WHAT[problem_type]}): the "
        "model is of no use as it is. Look at the data (`hf-dgl data`) and the losses in report.html; train longer, "
        "or with another learning_rate."
    )


def _labels(split: Any) -> list[Any]:
    if isinstance(split, datasets.IterableDataset):
        return [row[LABEL_COLUMN] for row in islice(split, _STREAM_ROWS)]
    return list(split.select_columns(LABEL_COLUMN)[LABEL_COLUMN][:])
