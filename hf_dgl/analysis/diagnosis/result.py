"""A diagnosis: its numbers, what they mean in words, and the files it leaves."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hf_dgl.reports.drawing import COLOURS, drawn_if_possible, new_figure
from hf_dgl.reports.result_tables import Table, finite

from .callback import SUPPRESSED, Suppression, suppression
from .explanations import advice, dominance, gradients, recovery, regime_in_words, title_of
from .regime import Regime


@dataclass
class Diagnosis:
    """What [`hf_dgl.analysis.diagnosis.diagnose`] found.

    Args:
        recipe: Its path.
        modalities: Names.
        steps: Of each run.
        history: Log of the joint run: `step`, `grad_ratio_<modality>`, `grad_cosine_<modality>`, `loss_<modality>`.
        chance: Loss of the best constant answer (the labels' entropy, or variance) in training; NaN if unknown.
        metric: Name of the main metric; `""` if the model writes text.
        scores: On the validation split, by the main metric: `joint`, `<modality> in joint`, `<modality> trained
            alone`, `constant`.
        probes_joint, probes_alone: Modality -> score of a linear probe of its encoder, after joint training and after
            training alone.
        regime: By the joint run that explains more: the recipe's own, or that with a bilinear fusion. None for a
            checkpoint that cannot be taken apart.
        own: The same by the recipe's own joint run.
        unmeasured: Modality -> why its gradients could not be measured.
        notes: Further sentences for the reader.
    """

    recipe: str
    modalities: list[str]
    steps: int
    history: list[dict[str, float]]
    chance: float = math.nan
    metric: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    probes_joint: Mapping[str, float] = field(default_factory=dict)
    probes_alone: Mapping[str, float] = field(default_factory=dict)
    regime: Regime | None = None
    own: Regime | None = None
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def gradients(self) -> dict[str, Suppression]:
        """Modality -> how the ratio of its gradients went, of those that were measured."""
        found = {name: suppression(self.history, name) for name in self.modalities}
        return {name: entry for name, entry in found.items() if entry is not None}

    @property
    def method(self) -> str | None:
        """The `method` to choose; None where the diagnosis does not say."""
        return advice(self.regime)[0]

    def verdict(self) -> list[str]:
        """Paragraphs: the method, what the labels need, how sure that is; gradients, domination, encoders."""
        found = gradients(self.gradients, self.unmeasured)
        unknown = [name for name in self.modalities if name not in {*self.gradients, *self.unmeasured}]
        if unknown:
            found.append(
                f"The gradients of {', '.join(unknown)} were not measured: the encoder is not trained, or the run was "
                "too short."
            )
        found += dominance(self.own)
        found += recovery(self.probes_joint, self.probes_alone, self.metric)
        return [advice(self.regime)[1], *regime_in_words(self.regime, self.own), *found]

    def tables(self) -> list[Table]:
        """What was measured: the gradients, and what the encoders and models know."""
        tables = [self._gradient_table()]
        if self.scores:
            tables.append(self._score_table())
        return tables

    def _gradient_table(self) -> Table:
        rows = []
        for name in self.modalities:
            found, losses = self.gradients.get(name), [e[f"loss_{name}"] for e in self.history if f"loss_{name}" in e]
            loss = sum(losses[-max(1, len(losses) // 3) :]) / max(1, len(losses[-max(1, len(losses) // 3) :]))
            cells = [found.first, found.last, found.cosine] if found else [math.nan] * 3
            rows.append([name, *map(_number, [*cells, loss if losses else math.nan, self.chance])])
        columns = ["joint training", "gradient ratio, first", "last third", "cosine", "unimodal loss", "by chance"]
        return Table(columns, rows)

    def _score_table(self) -> Table:
        title = title_of(self.metric)
        regime, own = (found.explained if found else None for found in (self.regime, self.own))
        columns = ["validation", title, "told of the label", "lost without it", f"probe {title}"]
        rows = []
        if regime is not None:
            for name in self.modalities:
                cells = [self.scores[f"{name} trained alone"], regime.alone[name], math.nan, self.probes_alone[name]]
                rows.append([f"{name} trained alone", *map(_number, cells)])
            rows.append(["their answers added up", "–", _number(regime.late), "–", "–"])
        for name in self.modalities:
            missed = own.missed[name] if own else math.nan
            cells = [self.scores[f"{name} in joint"], math.nan, missed, self.probes_joint.get(name, math.nan)]
            rows.append([f"{name} in joint training", *map(_number, cells)])
        rows.append(["joint training", _number(self.scores["joint"]), _number(own.joint if own else math.nan)])
        if regime is not None and regime is not own:
            rows.append(["joint, bilinear fusion", "–", _number(regime.joint)])
        rows.append(["best constant", _number(self.scores["constant"]), "0.000"])
        rows = [[*row, *["–"] * (len(columns) - len(row))] for row in rows]
        return Table(columns, rows)

    def to_markdown(self) -> str:
        """Tables and verdict."""
        lines = [f"# {Path(self.recipe).stem}: diagnosis", ""]
        lines += [f"`{self.recipe}`, {self.steps} steps a run, judged on the validation split.", ""]
        for table in self.tables():
            lines += ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
            lines += ["| " + " | ".join(row) + " |" for row in table.rows]
            lines.append("")
        lines += [_LEGEND, ""]
        for paragraph in self.verdict():
            lines += [paragraph, ""]
        return "\n".join([*lines, *self.notes]).rstrip() + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Every number and the verdict, ready for JSON (what is unknown is null)."""
        gradients = {name: found._asdict() | {"verdict": found.verdict()} for name, found in self.gradients.items()}
        return finite(
            {
                "recipe": self.recipe,
                "steps": self.steps,
                "regime": self.regime.name if self.regime else None,
                "method": self.method,
                "verdict": self.verdict(),
                "gradients": gradients,
                "unmeasured": dict(self.unmeasured),
                "chance": self.chance,
                "metric": self.metric,
                "scores": dict(self.scores),
                "probes": {"joint": dict(self.probes_joint), "trained_alone": dict(self.probes_alone)},
                "evidence": asdict(self.regime) if self.regime else None,
                "own_fusion": asdict(self.own) if self.own else None,
                "history": self.history,
            }
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes diagnosis.json, diagnosis.md and diagnosis.png."""
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        self.notes += drawn_if_possible(lambda: self.draw().savefig(out / "diagnosis.png", dpi=130), "diagnosis.png")
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        (out / "diagnosis.json").write_text(text, encoding="utf-8")
        (out / "diagnosis.md").write_text(self.to_markdown(), encoding="utf-8")

    def draw(self) -> Any:
        """Ratio and cosine of the gradients, and the unimodal losses, over the joint run: a matplotlib figure.

        The verdict is its title.
        """
        figure = new_figure(figsize=(15, 4.4))
        figure.suptitle(self._headline(), fontsize=12, fontweight="bold")
        for column, (prefix, panel) in enumerate(_PANELS.items(), start=1):
            axes = figure.add_subplot(1, 3, column)
            for index, name in enumerate(self.modalities):
                _line(axes, name, self._points(f"{prefix}_{name}"), COLOURS[index % len(COLOURS)])
            chance = [(self.chance, "by chance", ":")] if prefix == "loss" else []
            for level, what, style in (*panel.levels, *chance):
                if math.isfinite(level):
                    axes.axhline(level, color="dimgrey", linestyle=style, label=what)
            if prefix != "grad_cosine":
                axes.set_ylim(bottom=0)
            axes.set_title(panel.title, loc="left", fontsize=11)
            axes.set(xlabel="step", ylabel=panel.y_label)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize="small", frameon=False)
        return figure

    def _headline(self) -> str:
        """`image_text: method dgl. Gradients: text suppressed.`"""
        method = f"method {self.method}" if self.method else "method not decided"
        found = [f"{name} {entry.verdict()}" for name, entry in self.gradients.items()]
        said = f" Gradients: {', '.join(found)}." if found else ""
        return f"{Path(self.recipe).stem}: {method}.{said}"

    def _points(self, key: str) -> list[tuple[float, float]]:
        return [(entry["step"], entry[key]) for entry in self.history if math.isfinite(entry.get(key, math.nan))]


class _Panel(NamedTuple):
    """What a diagram of [`Diagnosis.draw`] says beside its curves; `levels`: height, name, style of a line across."""

    title: str
    y_label: str
    levels: tuple[tuple[float, str, str], ...] = ()


_PANELS = {
    "grad_ratio": _Panel(
        "Multimodal : unimodal gradient at the encoder",
        "ratio of norms",
        ((1.0, "as alone", ":"), (SUPPRESSED, f"suppressed below {SUPPRESSED:g}", "--")),
    ),
    "grad_cosine": _Panel("Direction of the two gradients", "cosine"),
    "loss": _Panel("Unimodal loss in joint training", "loss"),
}

_LEGEND = (
    "*gradient ratio*: norm of the multimodal loss's gradient at the encoder's output, relative to that of its "
    f"unimodal loss there (below {SUPPRESSED:g}: suppressed); *cosine*: of the two; *unimodal loss*: through the "
    "joint model's fusion, in training. *told of the label*: 0 is no better than guessing, 1 is all (the share of the "
    "labels' entropy, or variance, that a model takes away on held-out rows, calibrated); *lost without it*: how much "
    "less the joint model tells when the modality's values are swapped between rows; *probe*: a linear model on the "
    "frozen encoder's features."
)


def _line(axes: Any, name: str, points: Sequence[tuple[float, float]], colour: str) -> None:
    """Points, and their running mean."""
    if not points:
        return
    steps, values = zip(*points, strict=True)
    window = max(1, len(values) // 10)
    mean = [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - window) : i + 1])]
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps, mean, color=colour, linewidth=1.8, label=name)


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"
