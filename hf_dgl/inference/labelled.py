"""From logits to what a pipeline answers: labels with scores, or quantities."""

from __future__ import annotations

from typing import Any

import torch


def labelled(logits_BC: torch.Tensor, config: Any, top_k: int | None = None) -> list[dict[str, Any]]:
    """Logits of a batch -> one answer per row.

    Args:
        logits_BC: B rows, C outputs, of any dtype and on any device.
        config: Of the model: `problem_type` and `id2label`.
        top_k: `scores` holds only the so many best, best first. Default: all, in the model's order.

    Returns:
        `label`, `score` and `scores` of each row; of a regression its `score`, or `scores` by name.

    Example:

        >>> labelled(torch.tensor([[0.0, 2.0]]), model.config)[0]["label"]
        'dog'
    """
    problem_type, names = config.problem_type, config.id2label
    logits_BC, num_outputs = logits_BC.float(), logits_BC.shape[1]
    is_regression = problem_type == "regression" or problem_type is None and num_outputs == 1  # upstream's rule
    if is_regression and num_outputs == 1:
        return [{"score": value} for (value,) in logits_BC.tolist()]
    if is_regression:
        return [{"scores": {names[i]: value for i, value in enumerate(row)}} for row in logits_BC.tolist()]
    is_multi_label = problem_type == "multi_label_classification"
    answers = []
    for row in (logits_BC.sigmoid() if is_multi_label else logits_BC.softmax(-1)).tolist():
        scores = {names[index]: score for index, score in enumerate(row)}
        best = max(scores, key=scores.__getitem__)
        label = [name for name, score in scores.items() if score >= 0.5] if is_multi_label else best
        answer = {"label": label, "score": scores[best]}
        if top_k is not None:
            scores = dict(sorted(scores.items(), key=lambda item: -item[1])[:top_k])
        answers.append({**answer, "scores": scores})
    return answers
