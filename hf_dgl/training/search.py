"""Hyperparameter search with the Trainer's own `hyperparameter_search`: the knobs of the method that matter.

    def model_init():
        return CrossModalForSequenceClassification.from_encoders(encoders, num_labels=10)

    trainer = DGLTrainer(
        model_init=model_init,
        args=DGLTrainingArguments("out", eval_strategy="epoch"),
        train_dataset=train, eval_dataset=validation, data_collator=collator, processing_class=processor,
    )
    best = trainer.hyperparameter_search(
        hp_space(alpha=(0.5, 4.0), encoder_learning_rate=(1e-6, 1e-4)),
        objective("accuracy"),
        n_trials=20,
        direction="maximize",
    )
    print(best.hyperparameters)

`model_init` is called for each trial, and the method attached to what it returns with the trial's settings. The
default objective of upstream is the sum of all metrics, in which each modality's own would count like the fused one:
hence [`objective`]. Trials are chosen by the validation split; the test split stays for the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers.trainer_utils import default_compute_objective

from hf_dgl.models.extras import require

Range = tuple[float, float]


def hp_space(
    alpha: Range | None = (0.25, 4.0),
    multimodal_to_encoders: Range | None = (0.0, 1.0),
    learning_rate: Range | None = (1e-5, 1e-3),
    encoder_learning_rate: Range | None = (1e-6, 1e-3),
    **others: Range,
) -> Callable[[Any], dict[str, float]]:
    """A search space for `trainer.hyperparameter_search(hp_space(...))` by Optuna.

    With optimisers of the Adam family `alpha` acts through gradient clipping only (README): there leave it out
    (`alpha=None`), and search `encoder_learning_rate`.

    What is searched must be one number, or unset, in the arguments that the Trainer is made with: upstream turns a
    trial's values into the type that is there.

    Args:
        alpha, learning_rate, encoder_learning_rate: Lowest and highest value, drawn on a logarithmic scale. None: not
            searched.
        multimodal_to_encoders: Lowest and highest share, drawn evenly; for methods that do not fix it.
        **others: Further numbers among the training arguments, drawn evenly: `ogm_alpha=(0.1, 1.0)`.

    Returns:
        A function of an Optuna trial that gives the values of these training arguments.

    Raises:
        ValueError: Optuna is not installed; a range is not `(low, high)`, or a logarithmic one does not begin above 0.

    Example:

        >>> space = hp_space(alpha=None, learning_rate=(1e-4, 1e-2))
        >>> trainer.hyperparameter_search(space, objective("accuracy"), n_trials=10, direction="maximize")
    """
    require("A hyperparameter search", "optuna", "optuna")
    logarithmic = {"alpha": alpha, "learning_rate": learning_rate, "encoder_learning_rate": encoder_learning_rate}
    even = {"multimodal_to_encoders": multimodal_to_encoders, **others}
    ranges = {name: _checked(name, bounds, name in logarithmic) for name, bounds in (logarithmic | even).items()}

    def space(trial: Any) -> dict[str, float]:
        return {
            name: trial.suggest_float(name, *bounds, log=name in logarithmic)
            for name, bounds in ranges.items()
            if bounds is not None
        }

    return space


def objective(metric: str) -> Callable[[Mapping[str, float]], float]:
    """What a search makes large or small (`direction="maximize"`, `"minimize"`): one metric of the validation split.

    Args:
        metric: `accuracy`, `accuracy_image`, `loss`, ..., with or without `eval_`.

    Raises:
        ValueError: when it is called, if there is no such metric (names those there are).

    Example:

        >>> objective("accuracy")({"eval_accuracy": 0.8, "eval_loss": 0.5})
        0.8
    """
    key = metric if metric.startswith("eval_") else f"eval_{metric}"

    def value(metrics: Mapping[str, float]) -> float:
        if key not in metrics:
            known = [name.removeprefix("eval_") for name in metrics if name.startswith("eval_")]
            raise ValueError(f"objective: there is no metric {metric!r}. There are: {known}.")
        return metrics[key]

    return value


def default_objective(modalities: Sequence[str]) -> Callable[[Mapping[str, float]], float]:
    """Upstream's default objective (the loss, or else the sum of all metrics), of the fused predictions alone.

    Args:
        modalities: Whose own scores do not count.

    Example:

        >>> default_objective(["image"])({"eval_loss": 0.5, "eval_accuracy": 0.8, "eval_accuracy_image": 0.6})
        0.8
    """
    own = tuple(f"_{name}" for name in modalities)

    def value(metrics: Mapping[str, float]) -> float:
        fused = {key: score for key, score in metrics.items() if not key.endswith((*own, "modality_gap"))}
        return default_compute_objective(fused)

    return value


def _checked(name: str, bounds: Range | None, above_zero: bool) -> Range | None:
    if bounds is None:
        return None
    if not (isinstance(bounds, (tuple, list)) and len(bounds) == 2 and bounds[0] <= bounds[1]):
        raise ValueError(f"{name}: expected (lowest, highest), e.g. (0.5, 4.0), got {bounds!r}.")
    if above_zero and bounds[0] <= 0:
        raise ValueError(f"{name}: is drawn on a logarithmic scale, so its lowest value is above 0, got {bounds!r}.")
    return bounds
