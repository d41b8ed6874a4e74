"""A picture of what DGL makes of a model: encoders side by side, cut from the fusion above them."""

from __future__ import annotations

import os
from typing import Any

from hf_dgl.method.modalities import FUSION

from .drawing import new_figure
from .model_tree import Inspection, count

MODEL_PICTURE = "architecture.png"
"""File beside the model card."""

_COLOURS = ("#4C9BE8", "#E8894C", "#5BB974", "#B07CD8", "#D8B04C")
_FUSION_COLOUR = "#9AA3AE"


def draw_model(found: Inspection, path: str | os.PathLike[str]) -> None:
    """Draws the fusion over the encoders.

    Args:
        found: From [`~hf_dgl.reports.model_tree.inspect_model`].
        path: File to write; its ending chooses the format (svg, png, pdf).

    Raises:
        ValueError: matplotlib does not know the format.

    Example:

        >>> draw_model(inspect_source("LxmertForQuestionAnswering"), "model.svg")
    """
    names = [name for name in found.groups if name != FUSION]
    figure = new_figure(figsize=(1.2 + 2.6 * len(names), 4.2))
    axes = figure.add_subplot()
    axes.set(xlim=(0, len(names)), ylim=(0, 3.3))
    axes.axis("off")
    axes.set_title(found.model_class, fontsize=11)
    _box(axes, 0, len(names), 2.1, found.groups[FUSION], FUSION, _FUSION_COLOUR)
    axes.text(len(names) / 2, 3.12, "multimodal loss", ha="center", fontsize=9, color="#555")
    for index, name in enumerate(names):
        group, colour = found.groups[name], _COLOURS[index % len(_COLOURS)]
        _box(axes, index, 1, 0.7, group, name, colour)
        reused = not group.cut or group.cut.startswith("output reused")
        axes.annotate("", (index + 0.38, 2.1), (index + 0.38, 1.5), arrowprops={"arrowstyle": "<->", "color": "#555"})
        if "multimodal" not in group.trained_by:
            axes.plot([index + 0.3, index + 0.46], [1.77, 1.83], color="#C0392B", linewidth=2)  # the cut
        if "unimodal" in group.trained_by:
            words = "unimodal loss" + ("" if reused else "\n(encoder runs again)")
            arrow = {"arrowstyle": "->", "color": colour}
            axes.annotate("", (index + 0.62, 1.5), (index + 0.62, 2.1), arrowprops=arrow)
            axes.text(index + 0.66, 1.8, words, fontsize=7, color=colour, va="center")
        axes.text(index + 0.5, 0.45, name, ha="center", fontsize=10, weight="bold", color=colour)
    axes.text(
        len(names) / 2,
        0.1,
        "features upwards, gradients downwards; a red cut stops the multimodal gradient",
        ha="center",
        fontsize=7,
        color="#777",
    )
    figure.savefig(path, dpi=150)


def _box(axes: Any, left: float, width: float, bottom: float, group: Any, name: str, colour: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    box = FancyBboxPatch(
        (left + 0.06, bottom), width - 0.12, 0.8, boxstyle="round,pad=0,rounding_size=0.08", fc=colour, ec="none"
    )
    axes.add_patch(box)
    title = "fusion" if name == FUSION else "encoder"
    frozen = "" if group.trainable == group.parameters else f"\n{count(group.trainable)} trained"
    words = f"{title}\n{count(group.parameters)} parameters ({group.share:.0%}){frozen}"
    axes.text(left + width / 2, bottom + 0.4, words, ha="center", va="center", fontsize=9, color="white")
