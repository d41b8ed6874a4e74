"""What each modality contributes to a model's score: Shapley values over the subsets of modalities.

Let $v(S)$ be the score of the model when it is given the modalities $S$ only, and $v(\\emptyset)$ that of the best
constant answer (the most frequent class). The Shapley value of modality $m$ out of $M$ is the mean of what it adds,
over all orders in which the modalities may be brought in (Shapley 1953; SHAPE, IJCAI 2022, for modalities):

$$\\phi_m = \\sum_{S \\not\\ni m} \\frac{|S|! (M - |S| - 1)!}{M!} (v(S \\cup m) - v(S))$$

So the contributions add up to $v(all) - v(\\emptyset)$; modalities that are interchangeable get the same; one that
never changes the score gets 0. BalanceBenchmark (arXiv 2502.10816) reports the imbalance of a model by them; its code
adds the gains of all subsets without the factor, so its figures are on another scale.

For two modalities $\\phi_a = \\frac12 (v(a) - v(\\emptyset) + v(ab) - v(b))$, hence $\\phi_a - \\phi_b = v(a) - v(b)$:
the difference in contribution is the modality gap ([`hf_dgl.training.metrics`]), whatever the fusion adds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from hf_dgl.recipe.assembly import parts_to_score
from hf_dgl.recipe.finetune import evaluate
from hf_dgl.recipe.recipe import Recipe
from hf_dgl.training.metrics import SCORERS, labelled

from .answers import answers, best_constant, modalities_to_leave_out, precision_of, score_of

Subsets = dict[frozenset[str], float]
"""$v$: the score for every subset of the modalities, the empty one included."""


def shapley(values: Mapping[frozenset[str], float], modalities: Sequence[str] | None = None) -> dict[str, float]:
    """The Shapley values of the game `values`.

    Args:
        values: Score of every subset of the modalities.
        modalities: Their names, in the order of the result. Default: sorted.

    Returns:
        Modality -> contribution, in the score's unit. They sum to `values[all] - values[none]`.

    Raises:
        ValueError: if a subset has no score.

    Example:

        >>> score = {frozenset(): 0.1, frozenset("a"): 0.5, frozenset("b"): 0.3, frozenset("ab"): 0.8}
        >>> {name: round(value, 3) for name, value in shapley(score).items()}
        {'a': 0.45, 'b': 0.25}
    """
    names = sorted(frozenset().union(*values)) if modalities is None else list(modalities)
    missing = [sorted(subset) for subset in subsets(names) if subset not in values]
    if missing:
        raise ValueError(f"Shapley values need the score of every subset of {names}; those of {missing} are missing.")
    found = {}
    for name in names:
        others = subsets([other for other in names if other != name])
        found[name] = sum(
            (values[without | {name}] - values[without]) / (len(names) * math.comb(len(names) - 1, len(without)))
            for without in others
        )
    return found


def subsets(names: Sequence[str]) -> list[frozenset[str]]:
    """All subsets, the empty one first.

    Example:

        >>> [sorted(subset) for subset in subsets(["a", "b"])]
        [[], ['a'], ['b'], ['a', 'b']]
    """
    return [frozenset(some) for size in range(len(names) + 1) for some in combinations(names, size)]


def contributions_of_two(metrics: Mapping[str, float], metric: str, none: float) -> dict[str, float]:
    """The closed form for two modalities, from metrics that every evaluation gives.

    Exact where no row lacks a modality: a modality alone is scored on the rows that have it.

    Args:
        metrics: With `metric` and, for both modalities, `<metric>_<modality>`.
        metric: `accuracy`, `map` or `mae`.
        none: Score of the best constant answer ([`constant_score`]).

    Raises:
        ValueError: if there are not two modalities.

    Example:

        >>> found = contributions_of_two({"accuracy": 0.8, "accuracy_a": 0.5, "accuracy_b": 0.3}, "accuracy", 0.1)
        >>> {name: round(value, 3) for name, value in found.items()}
        {'a': 0.45, 'b': 0.25}
    """
    alone = {key.removeprefix(f"{metric}_"): value for key, value in metrics.items() if key.startswith(f"{metric}_")}
    if len(alone) != 2:
        raise ValueError(
            f"From the scores alone contributions follow for two modalities, got {list(alone)}. With more, "
            "`contributions(model, collator, dataset)` scores all subsets."
        )
    values: Subsets = {frozenset({name}): value for name, value in alone.items()}
    return shapley({**values, frozenset(): none, frozenset(alone): metrics[metric]}, list(alone))


def contributions(model: Any, collator: Any, dataset: Any, batch_size: int = 32) -> dict[str, float]:
    """Shapley value of each modality for the model's main metric (accuracy; mAP; mean absolute error) on a data set.

    Args:
        model: A `CrossModalForSequenceClassification`, of any fusion and any number of modalities.
        collator: From rows of `dataset` to the model's arguments.
        dataset: Rows with labels.
        batch_size: Rows at a time.

    Returns:
        Modality -> contribution. The sum is the model's score less that of the best constant answer. (For mean
        absolute error that is negative: modalities take error away.)

    Raises:
        ValueError: a model that cannot be called without some of its modalities.

    Example:

        >>> parts = assemble(load_recipe("recipes/quickstart/image_audio_text.yaml"))
        >>> contributions(parts.model, parts.collator, parts.splits["validation"])
    """
    return shapley(subset_scores(model, collator, dataset, batch_size), modalities_to_leave_out(model))


def subset_scores(
    model: Any, collator: Any, dataset: Any, batch_size: int = 32, autocast: torch.dtype | None = None
) -> Subsets:
    """The main metric for every subset of the modalities, the others being left out of the call.

    A row that has none of a subset's modalities is answered as with no modality at all: by the best constant.

    Args, Raises: As [`contributions`]; `autocast` as in [`hf_dgl.analysis.answers.answers`].

    Example:

        >>> subset_scores(model, collator, dataset)[frozenset({"audio", "text"})]
        0.71
    """
    names, problem_type = modalities_to_leave_out(model), model.config.problem_type
    found = answers(model, collator, dataset, subsets(names)[1:], batch_size, autocast)
    scores = {subset: score_of(logits, found.labels, problem_type) for subset, logits in found.logits.items()}
    return {frozenset(): constant_score(found.labels, problem_type, model.config.num_labels), **scores}


def constant_score(labels: np.ndarray, problem_type: str, num_labels: int) -> float:
    """The main metric of the best constant answer: the most frequent class, each class's share, or the median.

    Args:
        labels: Class ids `[N]`, multi-hot `[N, C]`, or floats `[N]` or `[N, C]`, all of them there.
        problem_type, num_labels: As in the model's config.

    Example:

        >>> constant_score(np.array([0, 1, 1, 2]), "single_label_classification", 3)
        0.5
    """
    score, metric = SCORERS[problem_type]
    answer = best_constant(labels, problem_type, num_labels)
    return score(np.broadcast_to(answer, (len(labels), len(answer))), labels)[metric]


def evaluate_contributions(
    model_id: str | os.PathLike[str], recipe: Recipe, split: str | None = None
) -> dict[str, Any]:
    """Contributions, and the scores they come from, of a fine-tuned model on one split of a recipe's data.

    Args:
        model_id, recipe, split: As in [`hf_dgl.recipe.finetune.evaluate`].

    Returns:
        `contributions`: modality -> Shapley value; `subsets`: `"none"`, `"image"`, `"image+text"`, ... -> score. A
        checkpoint with a fusion of its own: from its scores with all and with each modality, if it has two.

    Raises:
        ValueError: as `evaluate`; a model that writes text; a checkpoint with more than two modalities.

    Example:

        >>> evaluate_contributions("outputs/image_text", load_recipe("outputs/image_text/recipe.yaml"))
        {'contributions': {'image': 0.43, 'text': 0.3}, 'subsets': {'none': 0.1, 'image': 0.72, ...}}
    """
    parts = parts_to_score(model_id, recipe, split)
    (rows,) = parts.splits.values()
    config = parts.model.config
    if getattr(config, "problem_type", None) not in SCORERS:
        raise ValueError("Contributions are shares of a score, and a model that writes text is not scored.")
    if getattr(config, "modalities", None):
        model = parts.model.to(recipe.training.device)
        training = recipe.training
        batch_size, autocast = training.per_device_eval_batch_size, precision_of(training)
        scores = subset_scores(model, parts.collator, rows, batch_size, autocast)
        names = modalities_to_leave_out(model)
    else:
        metric = SCORERS[config.problem_type][1]
        found = evaluate(model_id, recipe, split)
        labels = np.asarray([row["label"] for row in rows.select_columns("label")])
        labels = labels[labelled(labels, config.problem_type)]
        none = constant_score(labels, config.problem_type, config.num_labels)
        names = list(contributions_of_two(found, metric, none))
        scores = {frozenset({name}): found[f"{metric}_{name}"] for name in names}
        scores |= {frozenset(): none, frozenset(names): found[metric]}
    named = {"+".join(name for name in names if name in subset) or "none": scores[subset] for subset in subsets(names)}
    return {"contributions": shapley(scores, names), "subsets": named}
