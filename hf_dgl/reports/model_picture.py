"""A picture of what DGL makes of a model: encoders and fusion, and where they are cut apart.

The fusion lies above whole encoders; or above their embeddings only, where all layers read both modalities (ViLT); or
inside of an encoder, layer by layer (BLIP). Each looks different.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from typing import Any

from hf_dgl.method.modalities import FUSION

from .drawing import COLOURS, new_figure
from .model_tree import Group, Inspection, Node, count

MODEL_PICTURE = "architecture.png"
"""File beside the model card."""

_FUSION_COLOUR, _QUIET, _CUT = "#4d5560", "#444444", "#b3261e"
_LOW, _HIGH = 0.5, 1.5  # heights of encoders, in inches: embeddings only, or all their layers
_GAP, _FUSION_TOP = 0.6, 2.9


def draw_model(found: Inspection, path: str | os.PathLike[str]) -> None:
    """Draws the fusion over the encoders, or through them.

    Args:
        found: From [`~hf_dgl.reports.model_tree.inspect_model`].
        path: File to write; its ending chooses the format (svg, png, pdf).

    Raises:
        ValueError: matplotlib does not know the format.

    Example:

        >>> draw_model(inspect_source("LxmertForQuestionAnswering"), "model.svg")
    """
    names = [name for name in found.groups if name != FUSION]
    figure = new_figure(figsize=(1.4 + 2.8 * len(names), 4.6))
    axes = figure.add_subplot()
    axes.set(xlim=(0, len(names)), ylim=(-0.35, 3.3))
    axes.axis("off")
    axes.set_title(found.model_class, fontsize=12, fontweight="bold")
    tops = {name: _LOW if _is_embeddings(group) else _HIGH for name, group in found.groups.items() if name != FUSION}
    bottom = max(tops.values(), default=_HIGH) + _GAP
    _box(axes, 0, len(names), bottom, _FUSION_TOP - bottom, _fusion_words(found, tops), _FUSION_COLOUR)
    axes.text(len(names) / 2, 3.05, "multimodal loss", ha="center", fontsize=9, color=_QUIET)
    for index, name in enumerate(names):
        colour = COLOURS[index % len(COLOURS)]
        layers = _layers_with_fusion(found.tree, name)
        words = _encoder_words(found.groups[name])
        _box(axes, index, 1, 0, tops[name], words, colour)
        if layers is not None:
            _stripes(axes, index, tops[name], layers.repeats)
        _arrows(axes, index, tops[name], bottom, found.groups[name], colour)
        axes.text(index + 0.5, -0.2, name, ha="center", fontsize=11, weight="bold", color=colour)
    axes.text(len(names) / 2, -0.35, _legend(found, names), ha="center", va="top", fontsize=7.5, color=_QUIET)
    figure.savefig(path, dpi=150)


def _is_embeddings(group: Group) -> bool:
    """Whether nothing of a modality is its own but its embeddings: all layers belong to the fusion."""
    return bool(group.encoder) and all("embed" in path.rsplit(".", 1)[-1] for path in group.encoder)


def _layers_with_fusion(node: Node, name: str) -> Node | None:
    """The layers, counted as one node, in which a modality and the fusion alternate; None if there are none."""
    if node.repeats > 1 and {name, FUSION} <= set(node.sizes):
        return node
    return next((layers for part in node.parts if (layers := _layers_with_fusion(part, name)) is not None), None)


def _encoder_words(group: Group) -> str:
    what = "embeddings" if _is_embeddings(group) else "encoder"
    frozen = "" if group.trainable == group.parameters else f"\n{count(group.trainable)} trained"
    name = textwrap.fill(group.kind.replace(" (", "\n("), 30, replace_whitespace=False, break_on_hyphens=False)
    return f"{name or what}\n{count(group.parameters)} parameters ({group.share:.0%}){frozen}"


def _fusion_words(found: Inspection, tops: Mapping[str, float]) -> str:
    group = found.groups[FUSION]
    early = "\nall layers read every modality" if set(tops.values()) == {_LOW} else ""
    frozen = "" if group.trainable == group.parameters else f", {count(group.trainable)} trained"
    return f"fusion\n{count(group.parameters)} parameters ({group.share:.0%}){frozen}{early}"


def _legend(found: Inspection, names: list[str]) -> str:
    mixed = [name for name in names if _layers_with_fusion(found.tree, name) is not None]
    stripes = f"grey stripes: the fusion's part of each layer of {' and '.join(mixed)}\n" if mixed else ""
    return f"{stripes}features go up, gradients down; a red cut stops the multimodal gradient"


def _box(axes: Any, left: float, width: float, bottom: float, height: float, words: str, colour: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch((left + 0.06, bottom), width - 0.12, height, boxstyle=style, fc=colour, ec="none"))
    boxed = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": "none"}
    middle = (left + width / 2, bottom + height / 2)
    axes.text(*middle, words, ha="center", va="center", fontsize=9, color="black", bbox=boxed, zorder=3)


def _stripes(axes: Any, index: int, top: float, number: int) -> None:
    """The fusion's part of each layer of an encoder."""
    from matplotlib.patches import Rectangle

    shown = min(number, 6)
    for layer in range(shown):
        y = top * (layer + 0.62) / shown
        axes.add_patch(Rectangle((index + 0.06, y), 0.88, 0.3 * top / shown, fc=_FUSION_COLOUR, ec="none", zorder=2))


def _arrows(axes: Any, index: int, top: float, bottom: float, group: Group, colour: str) -> None:
    """Between an encoder and the fusion: features up; down the multimodal gradient (cut or not), the unimodal one."""
    middle = (top + bottom) / 2
    axes.annotate("", (index + 0.3, bottom), (index + 0.3, top), arrowprops={"arrowstyle": "<->", "color": _QUIET})
    if "multimodal" not in group.trained_by:
        axes.plot([index + 0.22, index + 0.38], [middle - 0.06, middle + 0.06], color=_CUT, linewidth=2.5)
    if "unimodal" in group.trained_by:
        reused = not group.cut or group.cut.startswith("output reused")
        words = "unimodal loss" + ("" if reused else "\n(encoder runs again)")
        arrow = {"arrowstyle": "->", "color": colour}
        axes.annotate("", (index + 0.48, top), (index + 0.48, bottom), arrowprops=arrow)
        axes.text(index + 0.52, middle, words, fontsize=8, color="black", va="center")
