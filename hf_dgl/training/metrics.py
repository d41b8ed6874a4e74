"""Metrics for fused and single-modality predictions: `evaluate` modules that need neither the Hub nor a cache folder.

| module | predictions | references | result | from |
|---|---|---|---|---|
| `Accuracy` | class ids `[N]` | class ids `[N]` | `accuracy` | scikit-learn `accuracy_score` |
| `F1` | class ids `[N]` or multi-hot `[N, C]` | the same | `f1` (macro), `f1_micro` | scikit-learn `f1_score` |
| `MeanAveragePrecision` | scores `[N, C]` | multi-hot `[N, C]` | `map` | scikit-learn `average_precision_score` |
| `MeanAbsoluteError` | floats `[N]` | floats `[N]` | `mae` | scikit-learn `mean_absolute_error` |
| `Pearson` | floats `[N]` | floats `[N]` | `pearson` | scipy `pearsonr` |
| `ModalityGap` | class ids `[N, M]`, one column per modality alone | class ids `[N]` | `modality_gap` | below |

*Modality gap* here is the gap in performance: the best modality's score alone minus the weakest one's. It is the
"performance discrepancy between modalities" that work on imbalanced multimodal learning starts from (Peng et al.,
"Balanced Multimodal Learning via On-the-fly Gradient Modulation", CVPR 2022; Wei et al., ICCV 2025). It is *not* the
distance between the centroids of image and text embeddings that Liang et al. ("Mind the Gap", NeurIPS 2022) call by
the same name: that one needs a shared embedding space, which a fusion model does not have. What each modality
contributes in the company of the others is another question: `analysis/contributions.py`.

`compute_metrics_for` puts them together for a Trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import scipy.stats
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, mean_absolute_error
from transformers import EvalPrediction

from hf_dgl.method.modalities import did_you_mean

IGNORED_LABEL = -100
"""Class id of a row that does not count, as in torch's cross-entropy."""

_INTEGER, _FLOAT = datasets.Value("int64"), datasets.Value("float64")


class OfflineMetric(evaluate.Metric):
    """An `evaluate.Metric` defined in code, kept in memory.

    Predictions and references are whole arrays: the Trainer has already gathered them from all processes and cut off
    the rows that padded the last uneven batch, so nothing has to be exchanged through files.
    """

    description: str
    inputs: str
    columns: Any  # datasets.Features, or a list of alternatives

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description=self.inputs,
            features=self.columns,
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return self.score(np.asarray(predictions), np.asarray(references))

    @staticmethod
    def score(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """`compute` for arrays at hand, without the round trip through Arrow."""
        raise NotImplementedError

    def _build_data_dir(self) -> str:
        return ""  # upstream makes a folder in ~/.cache even for metrics in memory; a home may be read-only


def _features(prediction: Any, reference: Any) -> datasets.Features:
    return datasets.Features({"predictions": prediction, "references": reference})


class Accuracy(OfflineMetric):
    """Share of rows whose class is right.

    Example:
        >>> Accuracy().compute(predictions=[0, 1, 1], references=[0, 1, 0])
        {'accuracy': 0.6666666666666666}
    """

    description = "Share of rows whose class is right."
    inputs = "predictions, references: class ids [N]"
    columns = _features(_INTEGER, _INTEGER)

    @staticmethod
    def score(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class F1(OfflineMetric):
    """F1, the mean over classes (macro) and over all decisions (micro).

    As in scikit-learn, classes that occur neither in predictions nor in references do not count towards the mean.

    Example:
        >>> F1().compute(predictions=[0, 1, 1], references=[0, 1, 0])
        {'f1': 0.6666666666666666, 'f1_micro': 0.6666666666666666}
    """

    description = "F1: macro (mean over classes) and micro (over all decisions)."
    inputs = "predictions, references: class ids [N], or multi-hot [N, C]"
    columns = [_features(_INTEGER, _INTEGER), _features(datasets.List(_INTEGER), datasets.List(_INTEGER))]

    @staticmethod
    def score(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {
            "f1": float(f1_score(references, predictions, average="macro", zero_division=0)),
            "f1_micro": float(f1_score(references, predictions, average="micro", zero_division=0)),
        }


class MeanAveragePrecision(OfflineMetric):
    """Mean over classes of the average precision (area under the precision-recall steps). NaN if nothing is positive.

    Classes without a positive row have no average precision and do not count.

    Example:
        >>> MeanAveragePrecision().compute(predictions=[[0.9, 0.2], [0.1, 0.3]], references=[[1, 0], [0, 1]])
        {'map': 1.0}
    """

    description = "Mean average precision over the classes that occur."
    inputs = "predictions: scores [N, C], any increasing function of the probability; references: multi-hot [N, C]"
    columns = _features(datasets.List(_FLOAT), datasets.List(_INTEGER))

    @staticmethod
    def score(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        occurs = references.any(axis=0)
        if not occurs.any():
            return {"map": float("nan")}
        return {"map": float(average_precision_score(references[:, occurs], predictions[:, occurs], average="macro"))}


class MeanAbsoluteError(OfflineMetric):
    """Mean absolute error, in the label's unit; lower is better.

    Example:
        >>> MeanAbsoluteError().compute(predictions=[1.0, 2.0], references=[1.0, 4.0])
        {'mae': 1.0}
    """

    description = "Mean absolute error; lower is better."
    inputs = "predictions, references: floats [N]"
    columns = _features(_FLOAT, _FLOAT)

    @staticmethod
    def score(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"mae": float(mean_absolute_error(references, predictions))}


class Pearson(OfflineMetric):
    """Pearson's correlation coefficient; of several quantities `[N, C]` the mean of theirs.

    NaN for fewer than two rows, or where one side does not vary.

    Example:
        >>> round(Pearson().compute(predictions=[1.0, 2.0, 3.0], references=[2.0, 4.0, 6.0])["pearson"], 6)
        1.0
    """

    description = "Pearson's correlation coefficient."
    inputs = "predictions, references: floats [N]"
    columns = _features(_FLOAT, _FLOAT)

    @staticmethod
    def score(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        if predictions.ndim == 2:
            columns = zip(predictions.T, references.T, strict=True)
            return {"pearson": float(np.mean([Pearson.score(*column)["pearson"] for column in columns]))}
        if len(predictions) < 2 or np.ptp(predictions) == 0 or np.ptp(references) == 0:
            return {"pearson": float("nan")}
        return {"pearson": float(scipy.stats.pearsonr(predictions, references).statistic)}


class ModalityGap(OfflineMetric):
    """Accuracy of the best modality alone minus that of the weakest alone (definition: top of this file).

    A modality that is missing in a row has the prediction -100 there, and is scored on its other rows.

    Example:
        >>> ModalityGap().compute(predictions=[[0, 0], [1, 0], [1, -100]], references=[0, 1, 1])
        {'modality_gap': 0.5}
    """

    description = "Accuracy of the best modality alone minus that of the weakest alone."
    inputs = (
        "predictions: class ids [N, M], a column per modality, -100 where it is missing; references: class ids [N]"
    )
    columns = _features(datasets.List(_INTEGER), _INTEGER)

    @staticmethod
    def score(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        scores = [
            accuracy_score(references[column != IGNORED_LABEL], column[column != IGNORED_LABEL])
            for column in predictions.T
            if (column != IGNORED_LABEL).any()
        ]
        return {"modality_gap": float(max(scores) - min(scores)) if scores else float("nan")}


def compute_metrics_for(problem_type: str, modalities: Sequence[str]) -> DefaultMetrics:
    """The `compute_metrics` of a Trainer whose predictions are fused and per-modality logits.

    | problem type | metrics | gap in |
    |---|---|---|
    | `single_label_classification` | `accuracy`, `f1` (macro), `f1_micro` | `accuracy` |
    | `multi_label_classification` | `map`, `f1` (macro), `f1_micro`, at probability 0.5 | `map` |
    | `regression` | `mae`, `pearson` | `mae` |

    Each appears without suffix for the fused prediction and as `accuracy_image`, ... for a modality alone. A modality
    is scored on the rows that have it; the fused prediction on all rows. A modality that no row has gets no entry.

    Args:
        problem_type: as in the model's config.
        modalities: names of the modalities.

    Returns:
        A function of an `EvalPrediction` with
        - `predictions`: `{"logits": float [N, C], modality: float [N, C], ...}` (regression: `[N]` or `[N, 1]`), or
          the fused array alone; rows of NaN: the modality is missing in the row,
        - `label_ids`: int `[N]`, -100 = the row does not count; multi-hot `[N, C]`, likewise with -100 anywhere in
          the row; or float `[N]`, with NaN.

        It returns Python floats. `modality_gap` is there with two modalities or more.

    Raises:
        ValueError: unknown `problem_type`; no row to score; NaN in the fused prediction.

    Example:
        >>> compute = compute_metrics_for("single_label_classification", ["image"])
        >>> logits = np.array([[2.0, 0.0], [0.0, 1.0]])
        >>> compute(EvalPrediction({"logits": logits, "image": -logits}, np.array([0, 1])))["accuracy_image"]
        0.0
    """
    return DefaultMetrics(problem_type, modalities)


class DefaultMetrics:
    """What [`compute_metrics_for`] returns.

    Attributes:
        names: Of all metrics that it may give.
    """

    def __init__(self, problem_type: str, modalities: Sequence[str]) -> None:
        if problem_type not in SCORERS:
            raise ValueError(f"Unknown problem_type {problem_type!r}{did_you_mean(problem_type, list(SCORERS))}")
        self._problem_type, self._modalities = problem_type, list(modalities)
        self._score, self._headline = SCORERS[problem_type]
        self._each = per_modality(self._score_labelled_rows, self._modalities)
        plain = NAMES[problem_type]
        self.names = [f"{name}{suffix}" for suffix in ("", *(f"_{m}" for m in modalities)) for name in plain]
        self.names += ["modality_gap"] if len(self._modalities) > 1 else []

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        outputs = prediction.predictions
        fused = _first(outputs["logits"] if isinstance(outputs, Mapping) else outputs)
        if self._problem_type != "regression" and fused.ndim != 2:
            raise ValueError(
                f"The metrics of {self._problem_type!r} are computed from logits of shape [rows, classes], got "
                f"{list(fused.shape)}. Pass a `compute_metrics` that goes with your `preprocess_logits_for_metrics`."
            )
        num_nan = int(np.isnan(fused).sum())
        if num_nan:  # argmax would call them class 0
            raise ValueError(
                f"{num_nan} fused predictions are NaN: the model has diverged. Lower the learning rate, or clip "
                "gradients (max_grad_norm)."
            )
        metrics = self._each(prediction)
        if not metrics:
            num_rows = len(_first(prediction.label_ids))
            raise ValueError(f"None of the {num_rows} evaluated rows has a label, so there is nothing to score.")
        headlines = (f"{self._headline}_{name}" for name in self._modalities)
        alone = [metrics[headline] for headline in headlines if headline in metrics]
        return metrics | ({"modality_gap": max(alone) - min(alone)} if len(alone) > 1 else {})

    def _score_labelled_rows(self, prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = _first(prediction.predictions), _first(prediction.label_ids)
        counts = labelled(labels, self._problem_type)
        return self._score(logits[counts], labels[counts]) if counts.any() else {}


def per_modality(
    compute_metrics: Callable[..., Mapping[str, float]], modalities: Sequence[str] | None = None
) -> Callable[..., dict[str, float]]:
    """Makes metrics of one array of predictions into metrics of the fused prediction and of each modality alone.

    Args:
        compute_metrics: as a Trainer takes it; sees an `EvalPrediction` whose `predictions` are the model's own.
        modalities: which to score; None: all that there are predictions of.

    Returns:
        A function of an `EvalPrediction` whose predictions are `{"logits": fused, modality: array, ...}`. The metrics
        of the fused ones keep their names, those of a modality alone get it as a suffix; rows that lack it (NaN) are
        left out there. Predictions that are no such dictionary pass through, as do keyword arguments.

    Example:
        >>> compute = per_modality(lambda prediction: {"mean": float(prediction.predictions.mean())})
        >>> compute(EvalPrediction({"logits": np.ones((2, 1)), "text": np.array([[3.0], [np.nan]])}, np.zeros(2)))
        {'mean': 1.0, 'mean_text': 3.0}
    """

    def compute_each(prediction: EvalPrediction, **kwargs: Any) -> dict[str, float]:
        outputs, labels = prediction.predictions, prediction.label_ids
        inputs, losses = prediction.inputs, prediction.losses
        if not isinstance(outputs, Mapping):
            return dict(compute_metrics(prediction, **kwargs))
        metrics = dict(compute_metrics(EvalPrediction(outputs["logits"], labels, inputs, losses), **kwargs))
        for name in modalities if modalities is not None else [key for key in outputs if key != "logits"]:
            if outputs.get(name) is None:
                continue
            predicted = _first(outputs[name])
            rows = ~np.isnan(predicted.reshape(len(predicted), -1)).any(axis=1)
            if rows.any():
                parts = (only_rows(part, rows) for part in (outputs[name], labels, inputs, losses))
                alone = compute_metrics(EvalPrediction(*parts), **kwargs)
                metrics |= {f"{key}_{name}": value for key, value in alone.items()}
        return metrics

    return compute_each


def _first(arrays: Any) -> np.ndarray:
    """The logits of a model that predicts several things: by convention the first."""
    return np.asarray(arrays[0] if isinstance(arrays, (tuple, list)) else arrays)


def only_rows(tree: Any, rows: Any) -> Any:
    """Some rows of an array or tensor, or of all in a dictionary or tuple.

    Args:
        tree: Arrays `[N, ...]`. What is beyond `N` is kept; arrays with fewer entries are not by row, and stay.
        rows: bool `[N]`, an array or a tensor.
    """
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {key: only_rows(value, rows) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return tuple(only_rows(value, rows) for value in tree)
    found = tree if isinstance(tree, torch.Tensor) else np.asarray(tree)
    if not found.shape or len(found) < len(rows):
        return tree
    kept = np.ones(len(found), dtype=bool)
    kept[: len(rows)] = np.asarray(rows.cpu() if isinstance(rows, torch.Tensor) else rows)
    return found[torch.from_numpy(kept).to(found.device) if isinstance(found, torch.Tensor) else kept]


def labelled(labels: np.ndarray, problem_type: str) -> np.ndarray:
    """bool `[N]`: which rows count. -100 is a possible value of a regression label, so there only NaN is skipped."""
    if problem_type == "regression":
        return ~np.isnan(labels.reshape(len(labels), -1)).any(axis=1)
    return (labels.reshape(len(labels), -1) != IGNORED_LABEL).all(axis=1)


def _score_single_label(logits_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    predicted = logits_NC.argmax(axis=1)
    return Accuracy.score(predicted, labels_N) | F1.score(predicted, labels_N)


def _score_multi_label(logits_NC: np.ndarray, labels_NC: np.ndarray) -> dict[str, float]:
    labels = labels_NC.astype(np.int64)
    predicted = (logits_NC > 0).astype(np.int64)  # a logit of 0 is a probability of one half
    return MeanAveragePrecision.score(logits_NC, labels) | F1.score(predicted, labels)


def _score_regression(outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    outputs = outputs.reshape(len(outputs), -1)
    labels = labels.reshape(outputs.shape)
    return MeanAbsoluteError.score(outputs, labels) | Pearson.score(outputs, labels)


SCORERS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], dict[str, float]], str]] = {
    "single_label_classification": (_score_single_label, "accuracy"),
    "multi_label_classification": (_score_multi_label, "map"),
    "regression": (_score_regression, "mae"),
}
"""Problem type -> what scores its predictions, and the metric of which the modality gap is told."""

NAMES: dict[str, tuple[str, ...]] = {
    "single_label_classification": ("accuracy", "f1", "f1_micro"),
    "multi_label_classification": ("map", "f1", "f1_micro"),
    "regression": ("mae", "pearson"),
}
"""Problem type -> the metrics that its scorer gives."""

DIRECTIONS: dict[str, bool] = {
    **dict.fromkeys(("accuracy", "f1", "f1_micro", "map", "pearson"), True),
    **dict.fromkeys(("loss", "mae", "modality_gap"), False),
}
"""Metric -> whether greater is better."""
