"""A training run as pictures: terms of the loss, scores by modality, gradient norms by group. matplotlib draws them.

All numbers come from the Trainer's log (`trainer_state.json`), the one that TensorBoard, W&B and Trackio get too.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .result_tables import HEADLINES

PICTURES = {
    "training_curves.png": ("losses", "scores"),
    "gradient_norms.png": ("gradient_norms", "suppression"),
}
"""Files beside the model card, and the panels that each shows."""

_FUSED, _OTHERS = "black", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # for the colour-blind
_MANY = 40  # points, above which a line is drawn as its running mean, with the points pale behind it


class Panel(NamedTuple):
    """One diagram: name of a line -> its (step, value) points."""

    title: str
    y_label: str
    lines: dict[str, list[tuple[int, float]]]
    log_scale: bool = False


def panels(
    log_history: Sequence[Mapping[str, Any]], modalities: Sequence[str], problem_type: str | None
) -> dict[str, Panel]:
    """What there is to draw of a run.

    Args:
        log_history: `trainer.state.log_history`.
        modalities: Names, in the order of the colours.
        problem_type: Chooses the score: the first of [`HEADLINES`]. Default: single-label classification.

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
    return {name: panel for name, panel in found.items() if panel.lines}


def save_pictures(
    folder: str | os.PathLike[str],
    log_history: Sequence[Mapping[str, Any]],
    modalities: Sequence[str],
    problem_type: str | None,
) -> list[str]:
    """Writes [`PICTURES`] into a folder.

    Args:
        folder: There already.
        log_history, modalities, problem_type: See [`panels`].

    Returns:
        Names of the files.

    Example:

        >>> save_pictures("outputs/digits", trainer.state.log_history, ["image", "text"], None)
        ['training_curves.png', 'gradient_norms.png']
    """
    for name in PICTURES:
        Path(folder, name).unlink(missing_ok=True)  # of an earlier run
    found = panels(log_history, modalities, problem_type)
    written = []
    for name, wanted in PICTURES.items():
        shown = [found[panel] for panel in wanted if panel in found]
        if shown:
            draw(shown).savefig(Path(folder, name), dpi=130)
            written.append(name)
    return written


def as_svg(panel: Panel) -> str:
    """A panel as an `<svg>` element.

    Example:

        >>> as_svg(panels(log_history, ["image"], "regression")["losses"])
        '<svg height="252pt" ...'
    """
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": panel.title}):  # names in the file that are the same every time
        draw([panel]).savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def draw(shown: Sequence[Panel]) -> Any:
    """Panels side by side, as a `matplotlib.figure.Figure`.

    Example:

        >>> draw([panels(log_history, ["image"], "regression")["losses"]]).savefig("losses.png")
    """
    from matplotlib.figure import Figure  # no pyplot: that would keep global state and look for a display
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(5.4 * len(shown), 3.5), layout="constrained")
    for column, panel in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), column + 1)
        others = iter(_OTHERS * len(panel.lines))
        for name, points in panel.lines.items():
            _line(axes, name, points, next(others) if name not in ("fused", "fusion", "all parameters") else _FUSED)
        axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold")
        axes.set(xlabel="step", ylabel=panel.y_label, yscale="log" if panel.log_scale else "linear")
        if panel.log_scale:  # 0.5 instead of 5 x 10^-1
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize="small", frameon=False)
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
