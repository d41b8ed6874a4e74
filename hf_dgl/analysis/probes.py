"""Linear probes: how much of the labels a linear model can read from an encoder's features, the encoder being frozen.

The features are the encoder's tokens, averaged over those that are real (before projection and fusion), standardised
by the training rows. Logistic regression or, for quantities, ridge regression (scikit-learn) is fitted on training
rows and scored on others, so an encoder is judged by what it knows, not by what the fusion makes of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader, Subset

from hf_dgl.method.forward_call import below_adapters
from hf_dgl.method.outputs import map_tensors
from hf_dgl.models.encoders import encode
from hf_dgl.models.fusion import masked_mean
from hf_dgl.recipe.assembly import parts_to_score
from hf_dgl.recipe.recipe import Recipe
from hf_dgl.training.metrics import SCORERS, labelled

from .answers import in_precision, precision_of

MAX_ROWS = 4000
"""Training rows that a probe is fitted on: drawn at random, where there are more."""

Features = dict[str, np.ndarray]


def linear_probes(
    model: Any,
    collator: Any,
    train_dataset: Any,
    dataset: Any,
    batch_size: int = 32,
    max_rows: int = MAX_ROWS,
    autocast: torch.dtype | None = None,
) -> dict[str, float]:
    """Score of a linear probe of each encoder (accuracy; mAP; mean absolute error).

    Args:
        model: A `CrossModalForSequenceClassification`, with or without adapters. It is left in eval mode.
        collator: From rows to the model's arguments.
        train_dataset: Rows with labels that the probes are fitted on.
        dataset: Rows with labels that they are scored on.
        batch_size: Rows at a time.
        max_rows: At most so many training rows, drawn at random (always the same).
        autocast: Precision of the encoders' forward, as in mixed precision training.

    Returns:
        Modality -> score on `dataset`, over the rows that have the modality and a label.

    Raises:
        ValueError: a model that is not built from encoders; rows of which none can be used.

    Example:

        >>> parts = assemble(load_recipe("recipes/quickstart/image_text.yaml"))
        >>> linear_probes(parts.model, parts.collator, parts.splits["train"], parts.splits["validation"])
        {'image': 0.31, 'text': 0.55}
    """
    if hasattr(train_dataset, "__len__") and len(train_dataset) > max_rows:
        chosen = np.random.default_rng(0).permutation(len(train_dataset))[:max_rows]
        train_dataset = Subset(train_dataset, sorted(chosen.tolist()))
    train, train_labels = pooled_features(model, collator, train_dataset, batch_size, max_rows, autocast)
    test, labels = pooled_features(model, collator, dataset, batch_size, autocast=autocast)
    base: Any = below_adapters(model)
    problem_type = base.config.problem_type
    return {name: _score(train[name], train_labels, test[name], labels, problem_type) for name in train}


def pooled_features(
    model: Any,
    collator: Any,
    dataset: Any,
    batch_size: int = 32,
    max_rows: int | None = None,
    autocast: torch.dtype | None = None,
) -> tuple[Features, np.ndarray]:
    """What each encoder says of each row.

    Args: As [`linear_probes`].

    Returns:
        Modality -> float32 `[N, D]`, NaN in rows that lack it; and the labels `[N]` or `[N, C]`.
    """
    base: Any = below_adapters(model)
    if not hasattr(base, "cross_modal"):
        raise ValueError(
            f"Got {type(base).__name__}: linear probes read the encoders of models that are built from `encoders`. A "
            "checkpoint with a fusion of its own has none that stand apart."
        )
    model.eval()
    device = next(base.parameters()).device
    names = list(base.config.modalities)
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    labels: list[np.ndarray] = []
    for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collator):
        batch = map_tensors(lambda tensor: tensor.to(device), dict(batch))
        labels.append(batch["labels"].cpu().numpy())
        for name in names:
            with in_precision(autocast, device):
                found[name].append(_pooled(base, name, batch.get(name), len(labels[-1])))
        if max_rows is not None and sum(map(len, labels)) >= max_rows:  # of a stream
            break
    return {name: np.concatenate(parts) for name, parts in found.items()}, np.concatenate(labels)


@torch.no_grad()
def _pooled(base: Any, name: str, inputs: Mapping[str, Any] | None, num_rows: int) -> np.ndarray:
    encoder = base.cross_modal.encoders[name]
    if inputs is None:
        return np.full((num_rows, base.cross_modal.projections[name].norm.normalized_shape[0]), np.nan, np.float32)
    given = dict(inputs)
    present = given.pop("present", None)
    tokens, mask, _ = encode(name, encoder, given)
    pooled = masked_mean(tokens.float(), mask)
    if present is not None:
        pooled[~present.bool()] = torch.nan
    return pooled.cpu().numpy()


def _score(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, labels: np.ndarray, problem_type: str
) -> float:
    kept = labelled(train_labels, problem_type) & np.isfinite(train).all(axis=1)
    scored = labelled(labels, problem_type) & np.isfinite(test).all(axis=1)
    if not kept.any() or not scored.any():
        raise ValueError("Linear probes: no row has both this modality and a label.")
    train, train_labels, test, labels = train[kept], train_labels[kept], test[scored], labels[scored]
    score, metric = SCORERS[problem_type]
    if problem_type == "regression":
        return score(make_pipeline(StandardScaler(), Ridge()).fit(train, train_labels).predict(test), labels)[metric]
    logistic = LogisticRegression(max_iter=2000)
    if problem_type == "multi_label_classification":
        return score(_one_per_class(train, train_labels, test, logistic), labels)[metric]
    if len(np.unique(train_labels)) < 2:  # nothing to tell apart
        return float(np.mean(labels == train_labels[0]))
    probe = make_pipeline(StandardScaler(), logistic).fit(train, train_labels)
    return float(np.mean(probe.predict(test) == labels))


def _one_per_class(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, logistic: Any) -> np.ndarray:
    """Log odds `[N, C]`; zero for classes that all or none of the training rows have."""
    varies = np.ptp(train_labels, axis=0) > 0
    odds = np.zeros((len(test), train_labels.shape[1]))
    if varies.any():
        probe = make_pipeline(StandardScaler(), MultiOutputClassifier(logistic)).fit(train, train_labels[:, varies])
        likely = np.stack([classes[:, 1] for classes in probe.predict_proba(test)], axis=1).clip(1e-9, 1 - 1e-9)
        odds[:, varies] = np.log(likely / (1 - likely))
    return odds


def evaluate_probes(
    model_id: str | os.PathLike[str], recipe: Recipe, split: str | None = None
) -> dict[str, dict[str, float]]:
    """Linear probes of a fine-tuned model's encoders: fitted on a recipe's training split, scored on another.

    Args:
        model_id, recipe, split: As in [`hf_dgl.recipe.finetune.evaluate`].

    Returns:
        `probes`: modality -> score.

    Raises:
        ValueError: as `evaluate`; a model that is not built from encoders.

    Example:

        >>> evaluate_probes("outputs/image_text", load_recipe("outputs/image_text/recipe.yaml"))
        {'probes': {'image': 0.73, 'text': 0.59}}
    """
    scored = parts_to_score(model_id, recipe, split)
    train = parts_to_score(model_id, recipe, "train")
    model = scored.model.to(recipe.training.device)
    (rows,), (train_rows,) = scored.splits.values(), train.splits.values()
    batch_size, autocast = recipe.training.per_device_eval_batch_size, precision_of(recipe.training)
    return {"probes": linear_probes(model, scored.collator, train_rows, rows, batch_size, autocast=autocast)}
