"""The figures of a run as one table: fused and each modality alone; before, after, and on the test split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

HEADLINES = {
    "single_label_classification": {"accuracy": "accuracy", "f1": "macro-F1"},
    "multi_label_classification": {"map": "mAP", "f1": "macro-F1"},
    "regression": {"mae": "MAE", "pearson": "Pearson"},
}
"""For each problem type the two metrics that are shown (key in the metrics -> how it is called)."""

STAGES = {"before": "before", "validation": "after", "test": "test"}
"""Key in metrics.json -> column. `before` and `after` are the validation split, untrained and trained."""


class Table(NamedTuple):
    """`columns` holds the headings, `rows` as many strings per row."""

    columns: list[str]
    rows: list[list[str]]


def results_table(
    metrics: Mapping[str, Mapping[str, float]],
    modalities: Sequence[str],
    problem_type: str = "single_label_classification",
    order: Sequence[str] = tuple(STAGES),
) -> Table:
    """One row for the fused prediction and one per modality alone; two metrics, before, after and on the test split.

    Args:
        metrics: Stage (`before`, `validation`, `test`) -> metrics as the Trainer names them without prefix
            (`accuracy`, `accuracy_image`). A stage that is not there has no column.
        modalities: Names, in the order of the rows.
        problem_type: Chooses the metrics that are shown.
        order: Of the stages.

    Example:

        >>> results_table({"test": {"accuracy": 0.9, "f1": 0.8, "accuracy_text": 0.7, "f1_text": 0.6}}, ["text"]).rows
        [['fused', '0.900', '0.800'], ['text alone', '0.700', '0.600']]
    """
    stages = [stage for stage in order if stage in metrics]
    measured = {metric for stage in stages for metric in metrics[stage]}
    headlines = {metric: title for metric, title in HEADLINES[problem_type].items() if metric in measured}
    headlines = headlines or {"loss": "loss"}  # a model that writes text
    columns = ["", *(f"{title} {STAGES[stage]}" for title in headlines.values() for stage in stages)]
    rows = []
    for name, suffix in [("fused", ""), *((f"{modality} alone", f"_{modality}") for modality in modalities)]:
        cells = [metrics[stage].get(f"{metric}{suffix}", math.nan) for metric in headlines for stage in stages]
        rows.append([name, *(f"{cell:.3f}" if math.isfinite(cell) else "–" for cell in cells)])
    return Table(columns, rows)


def results_so_far(log_history: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Stage -> metrics, as far as a run's log knows them: `before` training, and the last evaluation.

    Args:
        log_history: `trainer.state.log_history`.

    Example:

        >>> results_so_far([{"step": 0, "eval_accuracy": 0.1}, {"step": 50, "eval_accuracy": 0.6}])
        {'before': {'accuracy': 0.1}, 'validation': {'accuracy': 0.6}}
    """
    stages = {}
    for entry in log_history:
        metrics = plain_metrics(entry, "eval")
        if metrics:
            stages["validation" if entry["step"] else "before"] = metrics
    return stages


def plain_metrics(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """What a `Trainer.evaluate` measured, without its prefix and without timings.

    Example:

        >>> plain_metrics({"eval_accuracy": 0.5, "eval_runtime": 3.1, "epoch": 2.0}, "eval")
        {'accuracy': 0.5}
    """
    timings = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    found = {key.removeprefix(f"{prefix}_"): value for key, value in metrics.items() if key.startswith(f"{prefix}_")}
    return {key: value for key, value in found.items() if not key.endswith(timings)}


def finite(value: Any) -> Any:
    """NaN and infinity, which JSON does not know, as null; also inside of mappings and lists.

    Example:

        >>> finite({"accuracy": 0.5, "deviation": float("nan")})
        {'accuracy': 0.5, 'deviation': None}
    """
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
