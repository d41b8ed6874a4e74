"""A training run as pictures: terms of the loss, scores by modality, gradient norms by group. matplotlib draws them.

All numbers come from the Trainer's log (`trainer_state.json`), the one that TensorBoard, W&B and Trackio get too.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from .drawing import COLOURS, new_figure
from .result_tables import HEADLINES

PICTURES = {
    "training_curves.png": ("losses", "scores"),
    "gradient_norms.png": ("gradient_norms", "suppression"),
}
"""Files beside the model card, and the panels that each shows."""

_INK, _GRID, _LINES = "#010203", "#040506", [f"#0708{n:02x}" for n in range(len(COLOURS))]
"""Colours that occur nowhere else: a page's own take their place."""
_MANY = 40  # points, above which a line is drawn as its running mean, with the points pale behind it


class Panel(NamedTuple):
    """One diagram: name of a line -> its (step, value) points; to the run's last step; and what guessing scores."""

    title: str
    y_label: str
    lines: dict[str, list[tuple[int, float]]]
    log_scale: bool = False
    last_step: int = 1
    chance: float | None = None


def panels(
    log_history: Sequence[Mapping[str, Any]],
    modalities: Sequence[str],
    problem_type: str | None,
    num_classes: int | None = None,
) -> dict[str, Panel]:
    """What there is to draw of a run.

    Args:
        log_history: `trainer.state.log_history`.
        modalities: Names, in the order of the colours.
        problem_type: Chooses the score: the first of [`HEADLINES`]. Default: single-label classification.
        num_classes: Of which one is right: what guessing scores is drawn, too.

    Returns:
        `losses`, `scores`, `gradient_norms`, `suppression` (of `log_gradients`); without those of which nothing was
        logged.

    Example:

        >>> panels(trainer.state.log_history, ["image", "text"], "regression")["losses"].lines["image"]
        [(10, 2.31), (20, 1.95)]
    """
    metric, title = next(iter(HEADLINES[problem_type or "single_label_classification"].items()))
    losses = {"fused": "loss_multimodal", **{name: f"loss_{name}" for name in modalities}}
    scores = {"fused": f"eval_{metric}", **{f"{name} alone": f"eval_{metric}_{name}" for name in modalities}}
    norms = {"fusion": "grad_norm_fusion", **{f"{name} encoder": f"grad_norm_{name}" for name in modalities}}
    ratios = {name: f"grad_ratio_{name}" for name in modalities}
    found = {
        "losses": Panel("Terms of the loss", "training loss", _lines(log_history, losses)),
        "scores": Panel("Scores on the validation split", title, _lines(log_history, scores)),
        "gradient_norms": Panel("Gradient norms", "norm before clipping", _lines(log_history, norms), True),
        "suppression": Panel("Multimodal : unimodal gradient", "ratio of norms", _lines(log_history, ratios)),
    }
    if not found["gradient_norms"].lines:  # clipped by one norm over all groups
        norm = _lines(log_history, {"all parameters": "grad_norm"})
        found["gradient_norms"] = found["gradient_norms"]._replace(lines=norm)
    if num_classes and metric == "accuracy":
        found["scores"] = found["scores"]._replace(chance=1 / num_classes)
    last = max((step for panel in found.values() for line in panel.lines.values() for step, _ in line), default=1)
    return {name: panel._replace(last_step=max(1, last)) for name, panel in found.items() if panel.lines}


def save_pictures(
    folder: str | os.PathLike[str],
    log_history: Sequence[Mapping[str, Any]],
    modalities: Sequence[str],
    problem_type: str | None,
    num_classes: int | None = None,
) -> list[str]:
    """Writes [`PICTURES`] into a folder.

    Args:
        folder: There already.
        log_history, modalities, problem_type, num_classes: See [`panels`].

    Returns:
        Names of the files.

    Example:

        >>> save_pictures("outputs/digits", trainer.state.log_history, ["image", "text"], None)
        ['training_curves.png', 'gradient_norms.png']
    """
    for name in PICTURES:
        Path(folder, name).unlink(missing_ok=True)  # of an earlier run
    found = panels(log_history, modalities, problem_type, num_classes)
    written = []
    for name, wanted in PICTURES.items():
        shown = [found[panel] for panel in wanted if panel in found]
        if shown:
            draw(shown).savefig(Path(folder, name), dpi=130)
            written.append(name)
    return written


def as_svg(panel: Panel) -> str:
    """A panel as an `<svg>` element of a page: named for screen readers, in the page's colours, light or dark.

    The page defines the variables `--ink`, `--grid` and `--line-0`, `--line-1`, ... of its two colour schemes.

    Example:

        >>> as_svg(panels(log_history, ["image"], "regression")["losses"])
        '<svg role="img" ...'
    """
    import matplotlib

    text, name = io.StringIO(), re.sub(r"\W+", "-", panel.title.lower())
    with matplotlib.rc_context({"svg.hashsalt": panel.title, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = draw([panel], ink=_INK, grid=_GRID, colours=_LINES, background="none")
        figure.savefig(text, format="svg", metadata={"Date": None})
    found = text.getvalue()[text.getvalue().index("<svg") :]
    for colour, variable in {
        _INK: "--ink",
        _GRID: "--grid",
        **{c: f"--line-{n}" for n, c in enumerate(_LINES)},
    }.items():
        found = found.replace(colour, f"var({variable})")
    found = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", found)  # a page holds several, and ids are to differ
    found = re.sub(r"<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    found = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", found)
    told = f'<title id="{name}-title">{escape(described(panel))}</title>'
    return re.sub(r"<svg ([^>]*)>", rf'<svg role="img" aria-labelledby="{name}-title" \1>\n{told}', found, count=1)


def described(panel: Panel) -> str:
    """A panel in words, for those who do not see it: each line's first and last value.

    Example:

        >>> described(panels(log_history, ["image"], "regression")["losses"])
        'Terms of the loss, training loss by step. fused: 2.31 at step 10, 0.52 at step 400.'
    """
    lines = [
        f"{name}: {points[0][1]:.3g} at step {points[0][0]}, {points[-1][1]:.3g} at step {points[-1][0]}"
        for name, points in panel.lines.items()
    ]
    chance = "" if panel.chance is None else f" By chance: {panel.chance:.3g}."
    return f"{panel.title}, {panel.y_label} by step. {'; '.join(lines)}.{chance}"


def draw(
    shown: Sequence[Panel],
    ink: str = "black",
    grid: str = "#dddddd",
    colours: Sequence[str] = COLOURS,
    background: str = "white",
) -> Any:
    """Panels side by side, all from step 0 to the last that any of them has, as a `matplotlib.figure.Figure`.

    Args:
        shown: At least one.
        ink: Colour of text, axes, and what is fused.
        grid: Colour of the grid.
        colours: Of the modalities, in their order.
        background: `none` for transparent.

    Example:

        >>> draw([panels(log_history, ["image"], "regression")["losses"]]).savefig("losses.png")
    """
    from matplotlib.ticker import LogLocator

    figure = new_figure(figsize=(5.4 * len(shown), 3.5), facecolor=background)
    for column, panel in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), column + 1, facecolor=background)
        others = itertools.cycle(colours)
        for name, points in panel.lines.items():
            _line(axes, name, points, ink if name in ("fused", "fusion", "all parameters") else next(others))
        if panel.chance is not None:
            axes.axhline(panel.chance, color=ink, linewidth=1, linestyle=":", label="by chance")
        axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", color=ink)
        axes.set(xlabel="step", ylabel=panel.y_label, yscale="log" if panel.log_scale else "linear")
        axes.set_xlim(-0.02 * panel.last_step, 1.02 * panel.last_step)
        if panel.log_scale:  # 0.5 instead of 5 x 10^-1
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        axes.grid(color=grid, linewidth=0.6)
        axes.tick_params(colors=ink)
        axes.xaxis.label.set_color(ink)
        axes.yaxis.label.set_color(ink)
        axes.spines[["left", "bottom"]].set_color(ink)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize="small", frameon=False, labelcolor=ink)
    return figure


def _line(axes: Any, name: str, points: Sequence[tuple[int, float]], colour: str) -> None:
    steps, values = [step for step, _ in points], [value for _, value in points]
    if len(points) > _MANY:
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.25)
        values = _running_mean(values, len(points) // (_MANY // 2))
    marker = "o" if len(points) <= 15 else None
    axes.plot(steps, values, label=name, color=colour, linewidth=1.8, marker=marker, markersize=4)


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Of the last `window` values, or as many as there are."""
    return [
        sum(part) / len(part) for end in range(len(values)) if (part := values[max(0, end + 1 - window) : end + 1])
    ]


def _lines(log_history: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> dict[str, list[tuple[int, float]]]:
    found = {}
    for name, key in keys.items():
        points = {entry["step"]: float(entry[key]) for entry in log_history if math.isfinite(entry.get(key, math.nan))}
        if points:  # of a step that was logged twice (the last evaluation) the last value
            found[name] = sorted(points.items())
    return found
