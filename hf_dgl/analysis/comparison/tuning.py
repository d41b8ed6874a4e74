"""Equal tuning: every method gets the same search, on the validation split, with one seed.

A trial of the search is a run like all others, in a folder of its own, so it is not repeated, and the best one is the
first of the runs that are compared. Of the others nothing is read but their validation scores.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hf_dgl.recipe.recipe import Recipe, load_recipe
from hf_dgl.reports.result_tables import HEADLINES, Table
from hf_dgl.training.best_metric import greater_is_better

from .plan import Run

_MAIN = [next(iter(metrics)) for metrics in HEADLINES.values()]

Values = tuple[tuple[str, str], ...]
"""Key -> value, as pairs."""


class Trial(NamedTuple):
    """A point of the grid, and its score on the validation split (NaN: the run failed)."""

    values: Values
    validation: float


class Search(NamedTuple):
    """The search of one method (for `unimodal`, of one modality).

    Attributes:
        method, settings, modality: Of the rows that it is for, as in [`Result`].
        metric: Of the validation split.
        seed: Of all trials.
        trials: In the order of the grid.
        chosen: The best values, the first of them if several are as good; None if every trial failed.
    """

    method: str
    settings: Values
    modality: str | None
    metric: str
    seed: int
    trials: tuple[Trial, ...]
    chosen: Values | None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        trials = [{"values": dict(trial.values), "validation": trial.validation} for trial in self.trials]
        chosen = None if self.chosen is None else dict(self.chosen)
        return {**self._asdict(), "settings": dict(self.settings), "trials": trials, "chosen": chosen}


def trials_among(runs: Sequence[Run], seed: int) -> list[Run]:
    """The runs that a search is made of: those of one seed that have something to be chosen.

    Args:
        runs: From [`plan`].
        seed: Of the search.

    Example:

        >>> runs = plan("my.yaml", ["dgl"], [0, 1], Path("out"), tune={"alpha": ["1", "2"]})
        >>> [run.folder.name for run in trials_among(runs, 0)]
        ['dgl-alpha=1-0', 'dgl-alpha=2-0']
    """
    return [run for run in runs if run.seed == seed and run.tuned]


def searches(recipe: str | os.PathLike[str], trials: Sequence[Run]) -> list[Search]:
    """What the trials say, method by method.

    Args:
        recipe: Path of the recipe.
        trials: Of which those that are complete have left metrics.

    Raises:
        ValueError: a run without a validation split.

    Example:

        >>> searches("my.yaml", trials)[0].chosen
        (('encoder_learning_rate', '1e-3'),)
    """
    groups: dict[tuple[str, Values, str | None], list[Run]] = {}
    for run in trials:
        groups.setdefault((run.method, run.settings, run.modality), []).append(run)
    return [_search(load_recipe(recipe, group[0].words), group) for group in groups.values()]


def chosen_among(runs: Sequence[Run], found: Sequence[Search]) -> list[Run]:
    """The runs that are compared: of every method those with the chosen values, and with every seed.

    Example:

        >>> chosen_among(runs, searches("my.yaml", trials_among(runs, 0)))
    """
    chosen = {(search.method, search.settings, search.modality): search.chosen for search in found}
    return [run for run in runs if chosen.get((run.method, run.settings, run.modality), ()) == run.tuned]


def to_table(found: Sequence[Search]) -> Table:
    """A row per trial, its score on the validation split, and which was chosen.

    Example:

        >>> to_table(comparison.searches).columns
        ['method', 'encoder_learning_rate', 'metric', 'on validation', 'chosen']
    """
    own = list(dict.fromkeys(key for search in found for key, _ in search.settings))
    keys = list(dict.fromkeys(key for search in found for trial in search.trials for key, _ in trial.values))
    rows = []
    for search in found:
        name = search.method if search.modality is None else f"{search.method}: {search.modality}"
        for trial in search.trials:
            values = dict((*search.settings, *trial.values))
            score = f"{trial.validation:.4f}" if math.isfinite(trial.validation) else "failed"
            chosen = "yes" if trial.values == search.chosen else ""
            rows.append([name, *(values.get(key, "–") for key in (*own, *keys)), search.metric, score, chosen])
    return Table(["method", *own, *keys, "metric", "on validation", "chosen"], rows)


def _search(recipe: Recipe, group: Sequence[Run]) -> Search:
    scores = [_validation(run) for run in group]
    metric = _metric(recipe, next((found for found in scores if found), {}))
    trials = tuple(Trial(run.tuned, found.get(metric, math.nan)) for run, found in zip(group, scores, strict=True))
    training, modalities = recipe.training, list(recipe.values.get("encoders") or {})
    greater = training.greater_is_better if training.direction_is_given else greater_is_better(metric, modalities)
    finite = [trial for trial in trials if math.isfinite(trial.validation)]
    best = max(finite, key=lambda trial: trial.validation if greater else -trial.validation, default=None)
    first = group[0]
    return Search(first.method, first.settings, first.modality, metric, first.seed, trials, best and best.values)


def _validation(run: Run) -> Mapping[str, float]:
    """The validation scores of a trial, and nothing else of it; none if it failed."""
    if not run.is_finished:
        return {}
    found = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8")).get("validation")
    if not found:
        raise ValueError("`--tune` chooses on the validation split, and the recipe has none: set `validation_split`.")
    return found


def _metric(recipe: Recipe, validation: Mapping[str, float]) -> str:
    """What the recipe chooses its best model by; else the main metric of the task."""
    wanted = (recipe.training.metric_for_best_model or "").removeprefix("eval_")
    return next((name for name in (wanted, *_MAIN) if name in validation), "loss")
