"""The plot of the benchmark. (`curves.py` draws training runs.)"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from hf_dgl.reports.drawing import new_figure

from .benchmark import PROCEDURES

_LINES = {"dgl": "o-", "two_backward": "s--", "floor": "k:"}
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
    figure = new_figure(figsize=(1 + 4 * len(quantities), 4))
    for panel, quantity in enumerate(quantities):
        axes = figure.add_subplot(1, len(quantities), panel + 1)
        axes.axhline(1.0, color="grey", linewidth=1)
        for number in sorted({point["num_modalities"] for point in points}):
            for procedure, style in _LINES.items():
                _line(axes, points, number, procedure, quantity, style)
        axes.set(title=f"{_TITLES[quantity]} of a training step", xlabel="fusion layers", ylabel="ratio to joint")
        axes.set_xticks(sorted({point["fusion_layers"] for point in points}))
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=150)


def _line(
    axes: Any, points: Sequence[Mapping[str, Any]], number: int, procedure: str, quantity: str, style: str
) -> None:
    found = [
        (point["fusion_layers"], ratio)
        for point in points
        if point["num_modalities"] == number and (ratio := point["ratios"][procedure][quantity]) is not None
    ]
    if found:
        colour = {} if procedure == "floor" else {"color": f"C{number - 2}"}
        axes.plot(*zip(*found, strict=True), style, label=f"{PROCEDURES[procedure]}, {number} modalities", **colour)
