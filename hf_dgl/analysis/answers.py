"""What a trained model answers when it is given some of the modalities: one pass over the data, every question later.

Scores, Shapley values, missing modalities and calibration are all read from the same logits.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from hf_dgl.method.forward_call import below_adapters
from hf_dgl.method.outputs import map_tensors
from hf_dgl.recipe.finetune import trainer_to_score
from hf_dgl.recipe.recipe import Recipe
from hf_dgl.training.arguments import DGLTrainingArguments
from hf_dgl.training.metrics import SCORERS, labelled, only_rows


class Answers(NamedTuple):
    """The answers of a model to N rows with labels.

    Attributes:
        logits: Subset of the modalities -> float `[N, C]`; NaN in rows that have none of the subset.
        labels: Class ids `[N]`, multi-hot `[N, C]`, or floats.
        has: Modality -> bool `[N]`: which rows have it. In the model's order.
        problem_type: Of the model.
    """

    logits: dict[frozenset[str], np.ndarray]
    labels: np.ndarray
    has: dict[str, np.ndarray]
    problem_type: str

    @property
    def modalities(self) -> list[str]:
        """Their names."""
        return list(self.has)


def answers(
    model: Any,
    collator: Any,
    dataset: Any,
    wanted: Iterable[frozenset[str]],
    batch_size: int = 32,
    autocast: torch.dtype | None = None,
) -> Answers:
    """Runs a model once per batch and subset of its modalities, the others being left out of the call.

    Args:
        model: A `CrossModalForSequenceClassification`, of any fusion, perhaps with adapters. It is left in eval mode.
        collator: From rows of `dataset` to the model's arguments.
        dataset: Rows with labels. Those without are left out.
        wanted: Subsets; none is empty.
        batch_size: Rows at a time.
        autocast: Precision of the forward, as in mixed precision training.

    Raises:
        ValueError: a model that cannot be called without some of its modalities.

    Example:

        >>> heard = frozenset({"audio", "text"})
        >>> answers(model, collator, dataset, [heard]).logits[heard].shape
        (300, 10)
    """
    names = modalities_to_leave_out(model)
    wanted = list(dict.fromkeys(wanted))
    logits: dict[frozenset[str], list[np.ndarray]] = {subset: [] for subset in wanted}
    has: dict[str, list[np.ndarray]] = {name: [] for name in names}
    labels = []
    model.eval()
    device = next(model.parameters()).device
    for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collator):
        batch = map_tensors(lambda tensor: tensor.to(device), dict(batch))
        labels.append(batch.pop("labels").cpu().numpy())
        for name in names:
            has[name].append(_has(batch.get(name), len(labels[-1])))
        for subset in wanted:
            given = {name: batch[name] for name in names if name in subset and name in batch}
            with in_precision(autocast, device):
                logits[subset].append(_predict(model, given, len(labels[-1])))
    found = Answers(
        {subset: np.concatenate(parts) for subset, parts in logits.items()},
        np.concatenate(labels),
        {name: np.concatenate(parts) for name, parts in has.items()},
        model.config.problem_type,
    )
    return _that_count(found)


def answers_of(
    model_id: str | os.PathLike[str], recipe: Recipe, split: str | None = None, needs_subsets: bool = False
) -> Answers:
    """The answers of a fine-tuned model with all modalities, with all but each one, and with each alone.

    Args:
        model_id, recipe, split: As in [`hf_dgl.recipe.finetune.evaluate`].
        needs_subsets: With more than two modalities: with all but each one, too.

    Returns:
        Of a checkpoint with a fusion of its own: with all, and with each alone, as an evaluation has them.

    Raises:
        ValueError: as `evaluate`; a model that writes text; subsets of a checkpoint with more than two modalities.

    Example:

        >>> answers_of("outputs/image_text", load_recipe("outputs/image_text/recipe.yaml")).modalities
        ['image', 'text']
    """
    trainer, parts = trainer_to_score(model_id, recipe, split)
    (rows,) = parts.splits.values()
    problem_type = getattr(parts.model.config, "problem_type", None)
    if problem_type not in SCORERS:
        raise ValueError("These questions are about scores and probabilities, and a model that writes text has none.")
    names = getattr(below_adapters(parts.model).config, "modalities", None)
    if names:
        assert trainer.disentangled is not None
        trainer.disentangled.remove()
        everything = frozenset(names)
        wanted = [everything, *(frozenset({name}) for name in names)]
        wanted += [everything - {name} for name in names] if needs_subsets and len(names) > 1 else []
        model = parts.model.to(recipe.training.device)
        training = recipe.training
        return answers(
            model, parts.collator, rows, wanted, training.per_device_eval_batch_size, precision_of(training)
        )
    found: Any = trainer.predict_each_modality(rows)
    logits = {name: _two_dimensional(array) for name, array in found.predictions.items()}
    fused = logits.pop("logits")
    if needs_subsets and len(logits) > 2:
        raise ValueError(
            f"This checkpoint with a fusion of its own cannot be called with any subset of {list(logits)}: what it "
            "answers without one of more than two modalities is not known."
        )
    has = {name: ~np.isnan(array).all(axis=1) for name, array in logits.items()}
    by_subset = {frozenset(logits): fused, **{frozenset({name}): array for name, array in logits.items()}}
    return _that_count(Answers(by_subset, np.asarray(found.label_ids), has, problem_type))


def precision_of(training: DGLTrainingArguments) -> torch.dtype | None:
    """The mixed precision of a training, in which its evaluations are made, too; None: there is none."""
    return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None


def in_precision(autocast: torch.dtype | None, device: torch.device) -> torch.autocast:
    """A context in which modules compute in a mixed precision, or as they are."""
    return torch.autocast(device.type, autocast, enabled=autocast is not None)


def modalities_to_leave_out(model: Any) -> list[str]:
    """Modalities of a model that can be called without some of them."""
    names = getattr(getattr(model, "config", None), "modalities", None)
    if not names:
        raise ValueError(
            f"{type(model).__name__} cannot be called with any subset of its modalities, as a model that is built "
            "from `encoders` can. For two modalities use `contributions_of_two` on the metrics of an evaluation."
        )
    return list(names)


def best_constant(labels: np.ndarray, problem_type: str, num_labels: int) -> np.ndarray:
    """Outputs `[C]` that, given for every row, score best: the most frequent class, each class's share, the median.

    Example:

        >>> best_constant(np.array([0, 1, 1, 2]), "single_label_classification", 3)
        array([0., 1., 0.])
    """
    if problem_type == "single_label_classification":
        return np.eye(num_labels)[np.bincount(labels, minlength=num_labels).argmax()]
    if problem_type == "multi_label_classification":
        share = labels.mean(axis=0).clip(1e-6, 1 - 1e-6)
        return np.log(share / (1 - share))
    return np.atleast_1d(np.median(labels, axis=0))


def score_of(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> float:
    """The main metric (accuracy; mAP; mean absolute error); a row of NaN counts as the best constant answer.

    Example:

        >>> score_of(np.array([[2.0, 0.0], [np.nan, np.nan]]), np.array([0, 0]), "single_label_classification")
        1.0
    """
    score, metric = SCORERS[problem_type]
    constant = best_constant(labels, problem_type, logits.shape[1])
    return score(np.where(np.isnan(logits), constant, logits), labels)[metric]


def _that_count(found: Answers) -> Answers:
    """Rows with a label only."""
    counts = labelled(found.labels, found.problem_type)
    logits = {subset: array[counts] for subset, array in found.logits.items()}
    return found._replace(logits=logits, labels=found.labels[counts], has=only_rows(found.has, counts))


def _has(inputs: Mapping[str, Any] | None, num_rows: int) -> np.ndarray:
    if inputs is None:
        return np.zeros(num_rows, dtype=bool)
    present = inputs.get("present")
    return np.ones(num_rows, dtype=bool) if present is None else present.bool().cpu().numpy()


@torch.no_grad()
def _predict(model: Any, given: Mapping[str, Any], num_rows: int) -> np.ndarray:
    """Logits `[B, C]`; NaN in rows that have none of the given modalities."""
    if not given:
        return np.full((num_rows, model.config.num_labels), np.nan)
    flags = [part.get("present") for part in given.values()]
    logits = model(**given).logits.float().cpu().numpy()
    if all(flag is not None for flag in flags):
        some = torch.stack([flag.bool() for flag in flags]).any(dim=0).cpu().numpy()
        logits[~some] = np.nan
    return logits


def _two_dimensional(predictions: Any) -> np.ndarray:
    first = predictions[0] if isinstance(predictions, (tuple, list)) else predictions
    array = np.asarray(first, dtype=float)
    return array.reshape(len(array), -1)


def without(modality: str, modalities: Sequence[str]) -> frozenset[str]:
    """All modalities but one."""
    return frozenset(modalities) - {modality}
