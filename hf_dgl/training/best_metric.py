"""`metric_for_best_model`: does it exist, and which way is better?

Upstream takes every name that does not end in "loss" for one where greater is better, and learns at the first
evaluation whether there is such a metric. Here the direction comes from the metric ([`hf_dgl.training.metrics`]), and
a name that the toolkit's own metrics do not have is told before training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_dgl.method.modalities import did_you_mean

from .metrics import DIRECTIONS, DefaultMetrics

_ERRORS = frozenset(
    "loss error errors mae mse rmse rmsle mape smape medae wer cer ter per eer hter fpr fnr far frr ece nll nlpd "
    "logloss brier perplexity ppl bpc bpb fid fad divergence distance".split()
)
"""Words of a user's own metrics that get smaller as a model gets better: the last one, or before `rate` or `score`."""


def greater_is_better(metric: str, modalities: Sequence[str], dataset_names: Iterable[str] = ()) -> bool:
    """Whether the checkpoint with the greatest value is the best one.

    Args:
        metric: As `metric_for_best_model`, with or without `eval_`: `mae`, `mae_text`, `loss_image`, `eval_f1`.
        modalities: Whose names may stand at its end.
        dataset_names: Of several evaluation sets; they may stand at its beginning.

    Example:

        >>> greater_is_better("mae_text", ["image", "text"])
        False
    """
    name = _without_ends(metric, modalities, dataset_names)
    words = name.lower().replace("-", "_").split("_")
    last = words[-2] if len(words) > 1 and words[-1] in ("rate", "score") else words[-1]
    return DIRECTIONS.get(name, last not in _ERRORS and not name.lower().endswith("loss"))


def _without_ends(metric: str, modalities: Sequence[str], dataset_names: Iterable[str]) -> str:
    name = metric.removeprefix("eval_")
    for start in dataset_names:
        name = name.removeprefix(f"{start}_")
    return next((name.removesuffix(f"_{end}") for end in modalities if name.endswith(f"_{end}")), name)


def check_before_training(trainer: Any) -> None:
    """Refuses a name that the evaluations of this training will not have.

    Where the metrics are the user's own, nobody knows their names before the first evaluation: see
    [`check_measured`].

    Args:
        trainer: A [`~hf_dgl.DGLTrainer`].

    Raises:
        ValueError: names the nearest.
    """
    metric, own = trainer.args.metric_for_best_model, trainer.compute_metrics
    if metric is None or trainer.eval_dataset is None or str(trainer.args.eval_strategy) == "no":
        return
    modalities = list(trainer.disentangled.partition.modalities)
    if isinstance(own, DefaultMetrics):
        known = [] if trainer.args.prediction_loss_only else own.names
    elif own is None:
        known = []
    else:
        return
    known = [*known, "loss", *(f"loss_{name}" for name in modalities), *_OF_UPSTREAM]
    if isinstance(trainer.eval_dataset, Mapping):
        known = [f"{dataset}_{name}" for dataset in trainer.eval_dataset for name in known]
    if metric.removeprefix("eval_") not in known:
        raise _unknown(metric, known)


_OF_UPSTREAM = ("runtime", "samples_per_second", "steps_per_second")


def check_measured(metric: str | None, metrics: Mapping[str, float]) -> None:
    """As upstream at the first evaluation, and names the nearest.

    Example:

        >>> check_measured("accuracy", {"eval_accuracy": 0.5})
    """
    known = [name.removeprefix("eval_") for name in metrics]
    if metric is not None and metric.removeprefix("eval_") not in known:
        raise _unknown(metric, [name for name in known if not name.endswith(("epoch", *_OF_UPSTREAM))])


def _unknown(metric: str, known: Sequence[str]) -> ValueError:
    shown = [name for name in known if not name.endswith(_OF_UPSTREAM)]
    near = did_you_mean(metric.removeprefix("eval_"), shown)
    return ValueError(f"`metric_for_best_model: {metric}`: evaluations give no such metric{near} There are: {shown}.")
