"""What a trained model's answers are worth in use: where modalities are missing, and as probabilities.

*Missing modalities.* At rate $r$ each row loses, with probability $r$, one of the modalities that it has, each of them
as likely; a row with one modality keeps it. The draws depend on nothing but the number of rows: all models lose the
same, and what is lost at a rate is lost at every higher one. The score is that of all rows together.

*Calibration.* The expected calibration error of Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017,
arXiv 1706.04599): see [`expected_calibration_error`].
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from hf_dgl.data.problem_types import SINGLE_LABEL
from hf_dgl.recipe.recipe import Recipe

from .answers import Answers, answers_of, score_of, without

NUM_BINS = 15
"""As in Guo et al."""

_SEED = 0

FUSED = "fused"


def evaluate_robustness(
    model_id: str | os.PathLike[str],
    recipe: Recipe,
    split: str | None = None,
    missing: Sequence[float] = (),
    calibration: bool = False,
) -> dict[str, dict[str, float]]:
    """Scores a fine-tuned model with modalities missing, and how far its probabilities can be believed.

    Args:
        model_id, recipe, split: As in [`hf_dgl.recipe.finetune.evaluate`].
        missing: Shares of rows that lose a modality, from 0 to 1.
        calibration: Whether the calibration is asked for.

    Returns:
        `missing`: rate (`"0.5"`) -> main metric; `calibration`: `fused` and each modality alone -> ECE. Only what was
        asked for.

    Raises:
        ValueError: as `evaluate`; a rate that is none; calibration of a model that is no classifier with one label per
            row; nothing that could be missing.

    Example:

        >>> evaluate_robustness("outputs/image_text", load_recipe("outputs/image_text/recipe.yaml"), missing=[0.5])
        {'missing': {'0.5': 0.71}}
    """
    check_rates(missing)
    if not missing and not calibration:
        return {}
    found = answers_of(model_id, recipe, split, needs_subsets=bool(missing))
    scores: dict[str, dict[str, float]] = {}
    if missing:
        scores["missing"] = {f"{rate:g}": score_with_missing(found, rate) for rate in missing}
    if calibration:
        scores["calibration"] = calibration_errors(found)
    return scores


def check_rates(rates: Sequence[float]) -> None:
    """Shares of rows are from 0 to 1.

    Raises:
        ValueError: one that is not.

    Example:

        >>> check_rates([0.25, 0.5])
    """
    for rate in rates:
        if not 0 <= rate <= 1:
            raise ValueError(f"missing: expected shares of the rows from 0 to 1, e.g. 0.25 0.5, got {rate:g}.")


def score_with_missing(found: Answers, rate: float) -> float:
    """The main metric where rows have lost a modality.

    Args:
        found: With the answers to all modalities, and to all but each one.
        rate: Share of the rows that lose one.

    Raises:
        ValueError: a model of one modality.

    Example:

        >>> score_with_missing(answers_of("outputs/mine", recipe, needs_subsets=True), 0.5)
        0.71
    """
    names = found.modalities
    if len(names) < 2:
        raise ValueError(f"missing: the model has one modality ({', '.join(names)}), and that is never removed.")
    has_NM = np.stack([found.has[name] for name in names], axis=1)
    lost_N = lost_modality(has_NM, rate)
    logits = found.logits[frozenset(names)].copy()
    for index, name in enumerate(names):
        logits[lost_N == index] = found.logits[without(name, names)][lost_N == index]
    return score_of(logits, found.labels, found.problem_type)


def lost_modality(has_NM: np.ndarray, rate: float) -> np.ndarray:
    """Which modality each row loses: its index `[N]`, or -1.

    Args:
        has_NM: bool, which of the M modalities the N rows have.
        rate: Share of rows that lose one.

    Example:

        >>> lost_modality(np.ones((4, 2), dtype=bool), 0.5).tolist()
        [-1, 1, 1, 1]
    """
    generator = np.random.default_rng(_SEED)
    loses_N, which_N = generator.random((2, len(has_NM)))
    num_N = has_NM.sum(axis=1)
    rank_N = np.floor(which_N * num_N)  # its place among those that the row has
    chosen_N = (has_NM.cumsum(axis=1) > rank_N[:, None]).argmax(axis=1)
    return np.where((loses_N < rate) & (num_N > 1), chosen_N, -1)


def calibration_errors(found: Answers) -> dict[str, float]:
    """ECE of the fused answer and of each modality alone (of the rows that have it).

    Raises:
        ValueError: a model that is no classifier with one label per row.

    Example:

        >>> calibration_errors(answers_of("outputs/mine", recipe))
        {'fused': 0.04, 'image': 0.11, 'text': 0.09}
    """
    if found.problem_type != SINGLE_LABEL:
        raise ValueError(
            f"calibration: the ECE is of the probability of the one class that is answered, and the model's "
            f"`problem_type` is {found.problem_type!r}."
        )
    names = found.modalities
    subsets = {FUSED: frozenset(names)} | ({name: frozenset({name}) for name in names} if len(names) > 1 else {})
    errors = {}
    for title, subset in subsets.items():
        answered = ~np.isnan(found.logits[subset]).any(axis=1)
        if answered.any():
            probabilities = softmax(found.logits[subset][answered].astype(np.float64), axis=1)
            errors[title] = expected_calibration_error(probabilities, found.labels[answered])
    return errors


def expected_calibration_error(probabilities_NC: Any, labels_N: Any, num_bins: int = NUM_BINS) -> float:
    """ECE: how far the confidence of the answers is from the share of them that is right (Guo et al. 2017, eq. 3).

    $$\\sum_b \\frac{|B_b|}{N} |acc(B_b) - conf(B_b)|$$

    over bins of equal width of the top label's probability, open on the left: $((b - 1) / 15, b / 15]$.

    Args:
        probabilities_NC: Of C classes, each row summing to one.
        labels_N: Class ids.
        num_bins: Of equal width.

    Returns:
        From 0 (calibrated) to 1.

    Example:

        >>> expected_calibration_error(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]))
        0.4
    """
    probabilities, labels = np.asarray(probabilities_NC), np.asarray(labels_N)
    confidence = probabilities.max(axis=1)
    is_right = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    surplus = np.bincount(bins, weights=confidence - is_right, minlength=num_bins)  # |B| (conf - acc), bin by bin
    return float(np.abs(surplus).sum() / len(labels))
