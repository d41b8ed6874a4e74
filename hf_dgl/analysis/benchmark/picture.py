"""The plot of the benchmark. (`curves.py` draws training runs.)"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from hf_dgl.reports.drawing import COLOURS, new_figure

from .result import PROCEDURES

_MARKS: dict[str, dict[str, Any]] = {
    "dgl": {"marker": "o", "markersize": 9, "linestyle": "-", "markerfacecolor": "none", "linewidth": 2.5},
    "two_backward": {"marker": "s", "markersize": 5, "linestyle": "--"},
    "floor": {"marker": "x", "markersize": 5, "linestyle": ":", "color": "black", "zorder": 3},
}
"""Large and hollow, small and filled: points that coincide, as two of them do in FLOPs, are still both seen."""
_TITLES = {"flops": "FLOPs", "seconds": "time", "memory": "memory"}


def plot_sweep(points: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draws what a step costs relative to joint training, against the depth of the fusion; one colour per number of
    modalities.

    Args:
        points: From [`~hf_dgl.analysis.benchmark.benchmark.sweep`].
        path: File to write; its ending chooses the format.

    Raises:
        ValueError: matplotlib does not know the format.

    Example:

        >>> plot_sweep(sweep(model.config, batch), "benchmark.png")
    """
    quantities = [key for key in _TITLES if any(point["ratios"]["dgl"][key] is not None for point in points)]
    figure = new_figure(figsize=(max(8, 1 + 4 * len(quantities)), 4.6))
    for panel, quantity in enumerate(quantities):
        axes = figure.add_subplot(1, len(quantities), panel + 1)
        axes.axhline(1.0, color="grey", linewidth=1)
        axes.grid(color="#dddddd", linewidth=0.6)
        for number in sorted({point["num_modalities"] for point in points}):
            for procedure in _MARKS:
                _line(axes, points, number, procedure, quantity)
        axes.set(title=f"{_TITLES[quantity]} of a training step", xlabel="fusion layers", ylabel="ratio to joint")
        axes.set_xticks(sorted({point["fusion_layers"] for point in points}))
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    figure.savefig(path, dpi=150)


def _line(axes: Any, points: Sequence[Mapping[str, Any]], number: int, procedure: str, quantity: str) -> None:
    found = [
        (point["fusion_layers"], ratio)
        for point in points
        if point["num_modalities"] == number and (ratio := point["ratios"][procedure][quantity]) is not None
    ]
    if found:
        style = {"color": COLOURS[(number - 2) % len(COLOURS)], **_MARKS[procedure]}
        axes.plot(*zip(*found, strict=True), label=f"{PROCEDURES[procedure]}, {number} modalities", **style)
