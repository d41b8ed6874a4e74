"""The picture of a comparison: every run a dot, every method its mean. matplotlib draws it."""

from __future__ import annotations

import math
import os
from typing import Any

from hf_dgl.reports.drawing import COLOURS, new_figure

from .result import Comparison, Variant

_COLOURS = (*COLOURS, "black")


def plot_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Draws scores fused and of each modality alone: against the swept value, if one number is swept; else by method.

    Args:
        comparison: With at least one result.
        path: File to write; its ending chooses the format.

    Raises:
        ValueError: matplotlib does not know the format.

    Example:

        >>> plot_comparison(compare("recipes/quickstart/image_text.yaml"), "comparison.png")
    """
    metric = comparison.metric
    panels = {"fused": metric, **{f"{name} alone": f"{metric}_{name}" for name in comparison.modalities}}
    is_sweep = len(comparison.keys) == 1 and all(_number(v) is not None for v in comparison.variants if v.settings)
    width = 1 + len(panels) * max(2.5, 0.5 * len(comparison.variants))
    figure = new_figure(figsize=(width, 4))
    first = None
    for index, (title, key) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1, sharey=first)
        first = first or axes
        (_lines if is_sweep else _dots)(axes, comparison, key)
        trained_alone = comparison.trained_alone(key.removeprefix(f"{metric}_")).mean
        if math.isfinite(trained_alone):
            axes.axhline(trained_alone, color="grey", linestyle=":", label="trained alone")
            axes.legend(fontsize="small")
        axes.set(title=title, ylabel=f"{comparison.title}, test split" if index == 0 else "")
    if is_sweep:
        figure.axes[0].legend(fontsize="small")
    seeds = len({result.seed for result in comparison.results})
    marks = "line: mean" if is_sweep else "dot: one run; dash: mean"
    figure.suptitle(f"{marks}; bar: ± one standard deviation ({seeds} seed{'' if seeds == 1 else 's'})", fontsize=9)
    figure.savefig(path, dpi=150)


def _dots(axes: Any, comparison: Comparison, metric: str) -> None:
    labels = []
    for place, variant in enumerate(comparison.variants):
        labels.append(" ".join([variant.method, *(f"{key}={value}" for key, value in variant.settings)]))
        values = [result.test.get(metric, math.nan) for result in comparison.of(variant)]
        axes.plot([place] * len(values), values, "o", color=_COLOURS[place % len(_COLOURS)], alpha=0.4, markersize=4)
        mean, deviation, _ = comparison.spread(variant, metric)
        axes.errorbar(place, mean, 0 if math.isnan(deviation) else deviation, fmt="_", color="black", capsize=4)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", fontsize="small")


def _lines(axes: Any, comparison: Comparison, metric: str) -> None:
    for index, method in enumerate(dict.fromkeys(variant.method for variant in comparison.variants)):
        colour = _COLOURS[index % len(_COLOURS)]
        of_method = [variant for variant in comparison.variants if variant.method == method]
        spreads = {variant: comparison.spread(variant, metric) for variant in of_method}
        if not of_method[0].settings:  # what is swept does not apply to it
            axes.axhline(spreads[of_method[0]].mean, color=colour, linestyle="--", label=method)
            continue
        points = sorted((_number(variant), *spread[:2]) for variant, spread in spreads.items())
        x, mean, deviation = zip(*points, strict=True)
        axes.errorbar(x, mean, [0 if math.isnan(d) else d for d in deviation], fmt="o-", color=colour, label=method)
        if x[0] and x[0] > 0 and x[-1] / x[0] >= 8:
            axes.set_xscale("log")
    axes.set_xlabel(comparison.keys[0])


def _number(variant: Variant) -> float | None:
    try:
        return float(variant.settings[0][1])
    except ValueError:
        return None
