"""The results of a comparison's runs, as tables, Markdown and JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_dgl.method.methods import UNIMODAL
from hf_dgl.reports.result_tables import HEADLINES, Table, finite

from .further import Topic, provenance, topics
from .outcome import Result, Value, Variant
from .statistics import MIN_SEEDS, Paired, Spread, paired
from .tuning import Search, to_table

JOINT = "joint"
_HEADLINES = dict(next(iter(titles.items())) for titles in HEADLINES.values())
_LOWER_IS_BETTER = ("mae", "loss")
_PROTOCOL = (
    "The runs differ in the method (and what its name sets, such as `clip_by_group`), the seed and what is swept or "
    "tuned: data, its order and number of steps are the same. The test split is scored once, at the end of each run."
)

_INTERVALS = "Differences to joint training are seed by seed, with their 95 % interval."
_TUNING = (
    "The same search for every method: each point of the grid with seed {}, and the best one on the validation split "
    "for all seeds. Of the other runs no test score was read."
)


@dataclass
class Comparison:
    """All results, and what follows from them.

    Args:
        recipe: The file's name.
        results: Of the complete runs.
        failures: Name of a run that failed -> the end of what it said.
        selection: How the scored model was chosen, in words.
        notes: Further sentences for the reader.
        searches: What was tuned on the validation split, method by method.

    Example:

        >>> comparison = compare("recipes/quickstart/image_text.yaml", ["joint", "dgl"], seeds=[0, 1, 2])
        >>> comparison.spread(Variant("dgl"), "accuracy_image").mean
        0.72
        >>> comparison.against_joint(Variant("dgl"), "accuracy_image").verdict()
        'better'
    """

    recipe: str
    results: list[Result]
    failures: dict[str, str] = field(default_factory=dict)
    selection: str = ""
    notes: list[str] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The main metric: `accuracy`, `map`, `mae`, or `loss` for a model that writes text."""
        return next((key for key in _HEADLINES if key in self.results[0].test), "loss")

    @property
    def title(self) -> str:
        """How the main metric is called."""
        return _HEADLINES.get(self.metric, self.metric)

    @property
    def lower_is_better(self) -> bool:
        """Whether the main metric is an error."""
        return self.metric in _LOWER_IS_BETTER

    @property
    def modalities(self) -> list[str]:
        """Those with a score of their own."""
        prefix = f"{self.metric}_"
        found = [key.removeprefix(prefix) for result in self.results for key in result.test if key.startswith(prefix)]
        return list(dict.fromkeys(found))

    @property
    def keys(self) -> list[str]:
        """The swept keys."""
        fullest = sorted((result.settings for result in self.results), key=len, reverse=True)
        return list(dict.fromkeys(key for settings in fullest for key, _ in settings))

    @property
    def variants(self) -> list[Variant]:
        """The table's rows, in the order of the runs."""
        return list(dict.fromkeys(Variant(r.method, r.settings) for r in self.results if r.method != UNIMODAL))

    def of(self, variant: Variant, modality: str | None = None) -> list[Result]:
        """The complete runs of a variant. For `joint` and `unimodal` not all that is swept may apply."""
        return [
            result
            for result in self.results
            if result.method == variant.method
            and result.modality == modality
            and set(result.settings) <= set(variant.settings)
        ]

    def trained_alone(self, modality: str) -> Spread:
        """The main metric of the models that never had another modality, over seeds and swept values."""
        found = [result for result in self.results if result.modality == modality]
        return self._spread(found, lambda result: result.test.get(self.metric, math.nan))

    def spread(self, variant: Variant, metric: str) -> Spread:
        """Mean and standard deviation of a test metric over the seeds."""
        return self._spread(self.of(variant), lambda result: result.test.get(metric, math.nan))

    def against_joint(self, variant: Variant, metric: str) -> Paired | None:
        """A test metric of a variant less that of joint training, seed by seed; None without a common seed.

        Joint training's is that with the same values of whatever is swept and applies to it. For `unimodal`, `metric`
        is that of a modality alone, and each run of it counts for its modality.
        """
        if variant.method == UNIMODAL:
            modality = metric.removeprefix(f"{self.metric}_")
            ours = {result.seed: result.test.get(self.metric, math.nan) for result in self.of(variant, modality)}
        else:
            ours = {result.seed: result.test.get(metric, math.nan) for result in self.of(variant)}
        return self._less_joint(variant, ours, lambda result: result.test.get(metric, math.nan))

    def topics(self) -> list[Topic]:
        """What was asked for beside the metrics: see [`hf_dgl.analysis.comparison.further`]."""
        return topics(self.results, self.metric, self.lower_is_better)

    def _less_joint(self, variant: Variant, ours: dict[int, float], value: Value) -> Paired | None:
        theirs = {result.seed: value(result) for result in self.of(Variant(JOINT, variant.settings))}
        seeds = [seed for seed in ours if seed in theirs and math.isfinite(ours[seed] + theirs[seed])]
        return paired([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]) if seeds else None

    def _topic_against_joint(self, variant: Variant, value: Value) -> Paired | None:
        if variant.method == JOINT:
            return None
        return self._less_joint(variant, {result.seed: value(result) for result in self.of(variant)}, value)

    # ---- tables ----------------------------------------------------------------------------------------------------

    def table(self) -> Table:
        """A row per method (and swept value); `mean ± standard deviation` over the seeds."""
        columns = {name: value for name, value in self._columns().items() if self._occurs(name, value)}
        best = self._chosen_by_validation() if self.keys else set()
        rows = []
        for variant in self.variants:
            settings = dict(variant.settings)
            swept = [settings.get(key, "–") for key in self.keys]
            cells = [str(self._cell(variant, name, value)) for name, value in columns.items()]
            if variant in best:
                cells[0] += " *"
            rows.append([variant.method, *swept, *cells, str(len(self.of(variant)))])
        return Table(["method", *self.keys, *columns, "seeds"], rows)

    def differences(self) -> Table:
        """A row per method and score: the difference to joint training, its interval, and two tests."""
        rows = []
        scores = {"fused": self.metric, **{f"{name} alone": f"{self.metric}_{name}" for name in self.modalities}}
        unimodal = dict.fromkeys(Variant(r.method, r.settings) for r in self.results if r.method == UNIMODAL)
        for variant in [*self.variants, *unimodal]:
            for score, metric in scores.items():
                if variant.method == JOINT or (found := self.against_joint(variant, metric)) is None:
                    continue
                if variant.method == UNIMODAL and score == "fused":
                    continue
                settings = dict(variant.settings)
                tests = [f"{p:.3f}" if math.isfinite(p) else "–" for p in (found.p_t, found.p_wilcoxon)]
                swept = [settings.get(key, "–") for key in self.keys]
                verdict = found.verdict(self.lower_is_better)
                told = [f"{found.difference:+.3f}", found.interval(), *tests, verdict]
                rows.append([variant.method, *swept, score, *told])
        return Table(
            ["method", *self.keys, self.title, "minus joint", "95 % interval", "p (t)", "p (Wilcoxon)", "so"], rows
        )

    def topic_table(self, topic: Topic) -> Table:
        """A row per method, and per modality that was trained alone; `mean ± standard deviation` over the seeds."""
        rows = []
        for variant, modality in dict.fromkeys((Variant(r.method, r.settings), r.modality) for r in self.results):
            spreads = [self._spread(self.of(variant, modality), value) for value in topic.columns.values()]
            if any(math.isfinite(spread.mean) for spread in spreads):
                name = variant.method if modality is None else f"{variant.method}: {modality}"
                swept = [dict(variant.settings).get(key, "–") for key in self.keys]
                rows.append([name, *swept, *(spread.text(topic.digits) for spread in spreads)])
        return Table(["method", *self.keys, *topic.columns], rows)

    def topic_differences(self, topic: Topic) -> Table:
        """A row per method: the differences to joint training, with their intervals; none if nothing is compared."""
        rows = []
        for variant in self.variants if topic.lower_is_better is not None else []:
            found = [self._topic_against_joint(variant, value) for value in topic.columns.values()]
            if any(found):
                cells = ["–" if one is None else f"{one.difference:+.3f} ({one.interval()})" for one in found]
                swept = [dict(variant.settings).get(key, "–") for key in self.keys]
                rows.append([f"{variant.method} minus joint", *swept, *cells])
        return Table(["method", *self.keys, *topic.columns], rows)

    def to_markdown(self) -> str:
        """All tables, with what a reader has to know about them."""
        lines = [f"# {Path(self.recipe).stem}: comparison on the test split", ""]
        lines += [f"`{self.recipe}`. {_PROTOCOL} {self.selection}", ""]
        lines += [*_markdown(self.table()), "", " ".join(self._legend()), ""]
        if (differences := self.differences()).rows:
            lines += [
                "## Against joint training",
                "",
                "Seed by seed. Both tests are two-sided and for one row each: of twenty rows without any difference, "
                f"one is below 0.05 by chance. Nothing is said with fewer than {MIN_SEEDS} seeds.",
                "",
                *_markdown(differences),
                "",
            ]
        for topic in self.topics():
            tables = [] if topic.is_in_main_table else [self.topic_table(topic)]
            tables += [found] if (found := self.topic_differences(topic)).rows else []
            if tables:
                lines += [f"## {topic.title}", ""]
                lines += [" ".join([topic.text, _INTERVALS if found.rows else ""]).strip(), ""]
                lines += [line for table in tables for line in (*_markdown(table), "")]
        if self.searches:
            lines += ["## Tuning", "", _TUNING.format(self.searches[0].seed), ""]
            lines += [*_markdown(to_table(self.searches)), ""]
        if self.failures:
            lines += ["## Runs that failed", ""]
            for name, message in self.failures.items():
                lines += [f"`{name}`:", "", "```", message, "```", ""]
        return "\n".join([*lines, *provenance(self.results), *self.notes]).rstrip() + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Every number, ready for JSON: of each run, and over the seeds."""
        summary = []
        for variant in self.variants:
            metrics = dict.fromkeys(key for result in self.of(variant) for key in result.test)
            against = {
                metric: found._asdict() | {"verdict": found.verdict(self.lower_is_better)}
                for metric in [self.metric, *(f"{self.metric}_{name}" for name in self.modalities)]
                if variant.method != JOINT and (found := self.against_joint(variant, metric)) is not None
            }
            spreads = {metric: self.spread(variant, metric)._asdict() for metric in metrics}
            entry = {"method": variant.method, "settings": dict(variant.settings), "test": spreads}
            summary.append({**entry, "against_joint": against, **self._topics_to_dict(variant)})
        alone = []
        for variant, modality in dict.fromkeys((Variant(r.method, r.settings), r.modality) for r in self.results):
            if modality is None:
                continue
            spread = self._spread(self.of(variant, modality), lambda result: result.test.get(self.metric, math.nan))
            against_joint = self.against_joint(variant, f"{self.metric}_{modality}")
            entry = {"modality": modality, "settings": dict(variant.settings), self.metric: spread._asdict()}
            alone.append({**entry, "against_joint": against_joint and against_joint._asdict()})
        return finite(
            {
                "recipe": self.recipe,
                "metric": self.metric,
                "lower_is_better": self.lower_is_better,
                "selection": self.selection,
                "summary": summary,
                "trained_alone": alone,
                "searches": [search.to_dict() for search in self.searches],
                "runs": [
                    asdict(result) | {"settings": dict(result.settings), "tuned": dict(result.tuned)}
                    for result in self.results
                ],
                "failures": self.failures,
            }
        )

    def _topics_to_dict(self, variant: Variant) -> dict[str, Any]:
        """Topic -> column -> spread over the seeds, and the difference to joint training."""
        found: dict[str, Any] = {}
        for topic in self.topics():
            for name, value in topic.columns.items():
                entry = self._spread(self.of(variant), value)._asdict()
                if topic.lower_is_better is not None:
                    against = self._topic_against_joint(variant, value)
                    verdict = against and {"verdict": against.verdict(topic.lower_is_better)}
                    entry["against_joint"] = against and against._asdict() | (verdict or {})
                found.setdefault(topic.key, {})[name] = entry
        return found

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes comparison.json and comparison.md."""
        out = Path(folder)
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        (out / "comparison.json").write_text(text, encoding="utf-8")
        (out / "comparison.md").write_text(self.to_markdown(), encoding="utf-8")

    # ---- columns ---------------------------------------------------------------------------------------------------

    def _columns(self) -> dict[str, Value]:
        """Heading -> value of one run. `trained alone` is not of the row's runs: see [`_cell`]."""
        metric, names = self.metric, self.modalities
        columns: dict[str, Value] = {}
        if self.keys:
            columns[f"{self.title} on validation"] = lambda result: result.validation.get(metric, math.nan)
        columns[f"{self.title} fused"] = lambda result: result.test.get(metric, math.nan)
        for name in names:
            columns[f"{name} alone"] = lambda result, key=f"{metric}_{name}": result.test.get(key, math.nan)  # type: ignore[misc]
            columns[f"{name} trained alone"] = lambda result: result.test.get(metric, math.nan)
            columns[f"{name} probe"] = lambda result, key=name: result.probes.get(key, math.nan)  # type: ignore[misc]
            columns[f"{name} probe, trained alone"] = columns[f"{name} probe"]
        if len(names) > 2:  # of two modalities, what is left without one is the other alone
            for name in names:
                rest = "+".join(other for other in names if other != name)
                columns[f"without {name}"] = lambda result, key=rest: result.subsets.get(key, math.nan)  # type: ignore[misc]
        for name in names:
            columns[f"{name} contributes"] = lambda result, key=name: result.contributions.get(key, math.nan)  # type: ignore[misc]
        columns["modality gap"] = lambda result: result.test.get("modality_gap", math.nan)
        columns["seconds"] = lambda result: result.seconds
        return columns

    def _cell(self, variant: Variant, column: str, value: Value) -> Spread | str:
        name = column.removesuffix(" trained alone").removesuffix(" probe,")
        if name != column:
            return self._spread(self.of(Variant(UNIMODAL, variant.settings), name), value)
        found = self._spread(self.of(variant), value)
        return f"{found.mean:.1f}" if column == "seconds" and math.isfinite(found.mean) else found

    def _occurs(self, column: str, value: Value) -> bool:
        return any(str(self._cell(variant, column, value)) != "–" for variant in self.variants)

    def _spread(self, results: Sequence[Result], value: Value) -> Spread:
        found = [number for result in results if math.isfinite(number := value(result))]
        return Spread.of(found) if found else Spread(math.nan, math.nan, 0)

    def _chosen_by_validation(self) -> set[Variant]:
        """For every method the values with the best mean on the validation split."""
        sign = -1 if self.lower_is_better else 1
        scores: dict[str, list[tuple[float, Variant]]] = {}
        for variant in self.variants:
            mean = self._spread(self.of(variant), lambda result: result.validation.get(self.metric, math.nan)).mean
            if math.isfinite(mean) and variant.settings:
                scores.setdefault(variant.method, []).append((sign * mean, variant))
        return {max(found, key=lambda pair: pair[0])[1] for found in scores.values() if len(found) > 1}

    def _legend(self) -> list[str]:
        columns = [name for name, value in self._columns().items() if self._occurs(name, value)]
        said = ["Mean ± standard deviation over the seeds. *alone*: the trained model, given one modality only."]
        if any(name.endswith("trained alone") for name in columns):
            said.append("*trained alone*: a model that never had another modality.")
        if any(name.endswith("probe") for name in columns):
            said.append("*probe*: a linear model on the frozen encoder's features, fitted on the training split.")
        if any(name.startswith("without") for name in columns):
            said.append("*without*: the trained model, given all but one.")
        elif len(self.modalities) == 2:
            said.append("With two modalities, one alone is the model without the other.")
        if any(name.endswith("contributes") for name in columns):
            said.append(
                "*contributes*: Shapley value; these add up to the fused score less that of the best constant answer. "
                "For them the same model is scored with modalities left out; nothing is chosen by that."
            )
        if self.keys:
            said.append("`*`: what the validation split would choose for the method; the test split must not.")
        said.append("*seconds*: of training, evaluations included; runs side by side slow one another down.")
        return said


def _markdown(table: Table) -> list[str]:
    """Aligned, so that it can be read in a terminal, too."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
