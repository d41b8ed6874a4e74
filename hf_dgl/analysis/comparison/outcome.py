"""What one run left: its metrics, what else was scored of its model, what it cost and where it was made."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hf_dgl.analysis.robustness import check_rates

from .plan import Run


@dataclass(frozen=True)
class Result:
    """What one run left.

    Args:
        method, seed: Of the run; `unimodal` for a modality that was trained alone.
        settings: The swept keys that apply to the method, with their values.
        modality: The one that was trained alone.
        folder: Of the run.
        test, validation: Metrics.
        seconds: Of training, its evaluations included.
        tuned: The values that the search on the validation split chose.
        environment: Commit, versions, machine, and the memory that training took: what lies in `environment.json`.
        missing: Rate -> main metric where this share of the rows has lost a modality, if asked for.
        calibration: `fused` and each modality -> expected calibration error, if asked for.
        contributions, subsets: See [`hf_dgl.analysis.evaluate_contributions`]; empty if they were not asked for.
        probes: See [`hf_dgl.analysis.evaluate_probes`]; likewise.
    """

    method: str
    seed: int
    settings: tuple[tuple[str, str], ...]
    modality: str | None
    folder: str
    test: Mapping[str, float]
    validation: Mapping[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    contributions: Mapping[str, float] = field(default_factory=dict)
    subsets: Mapping[str, float] = field(default_factory=dict)
    probes: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, float] = field(default_factory=dict)
    calibration: Mapping[str, float] = field(default_factory=dict)
    tuned: tuple[tuple[str, str], ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def peak_memory(self) -> float:
        """Of training, in MiB: allocated on the GPU, else resident in the process."""
        return self.environment.get("peak_memory_mib", math.nan)


class Variant(NamedTuple):
    """A row of the table: a method, and the values of what is swept."""

    method: str
    settings: tuple[tuple[str, str], ...] = ()


Value = Callable[[Result], float]
"""A number of one run."""


class Score(NamedTuple):
    """What may be scored of a model beside its metrics.

    Attributes:
        name: Of the option of `hf-dgl evaluate`, and of its entry in what that prints.
        words: Behind the option.
        is_of_one_modality: Whether it can be asked of a model with one modality.
    """

    name: str
    words: tuple[str, ...] = ()
    is_of_one_modality: bool = True

    @property
    def option(self) -> tuple[str, ...]:
        """As a command line has it."""
        return (f"--{self.name}", *self.words)

    def file(self, run: Run) -> Path:
        """Where it is kept; of other words in another file."""
        return run.folder / f"{'-'.join([self.name, *self.words])}.json"

    def keep(self, run: Run, found: Mapping[str, Any]) -> None:
        """Writes what is its own of what `hf-dgl evaluate` printed: all of the file, or none."""
        own = {key: found[key] for key in _ENTRIES.get(self.name, (self.name,))}
        draft = self.file(run).with_suffix(".partial")
        draft.write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
        draft.replace(self.file(run))


_NAMES = CONTRIBUTIONS, PROBES, MISSING, CALIBRATION = "contributions", "probes", "missing", "calibration"
_ENTRIES = {CONTRIBUTIONS: (CONTRIBUTIONS, "subsets")}  # where they are not one of the score's name


def wanted_scores(contributions: bool, probes: bool, missing: Sequence[float], calibration: bool) -> list[Score]:
    """Those that are asked for.

    Raises:
        ValueError: a rate that is no share.

    Example:

        >>> [score.option for score in wanted_scores(False, True, [0.25, 0.5], False)]
        [('--probes',), ('--missing', '0.25', '0.5')]
    """
    check_rates(missing)
    rates = tuple(f"{rate:g}" for rate in dict.fromkeys(missing))
    scores = [
        (contributions, Score(CONTRIBUTIONS, is_of_one_modality=False)),
        (probes, Score(PROBES)),
        (bool(rates), Score(MISSING, rates, is_of_one_modality=False)),
        (calibration, Score(CALIBRATION)),
    ]
    return [score for is_wanted, score in scores if is_wanted]


def files_of_scores(run: Run) -> list[Path]:
    """All that lie in a run's folder."""
    return [path for name in _NAMES for path in run.folder.glob(f"{name}*.json")]


def result_of(run: Run, scores: Sequence[Score] = ()) -> Result:
    """What a run left: its metrics, and those of the scores that are there.

    Args:
        run: That is complete.
        scores: Of which the files are looked for. Contributions and probes are always.

    Example:

        >>> result_of(run).test["accuracy"]
        0.81
    """
    metrics = _read(run.folder / "metrics.json")
    found: dict[str, Any] = {}
    for score in (Score(CONTRIBUTIONS), Score(PROBES), Score(CALIBRATION), *scores):
        found |= _read(score.file(run))
    return Result(
        run.method,
        run.seed,
        run.settings,
        run.modality,
        str(run.folder),
        metrics["test"],
        metrics.get("validation", {}),
        metrics.get("train", {}).get("train_runtime", math.nan),
        found.get(CONTRIBUTIONS, {}),
        found.get("subsets", {}),
        found.get(PROBES, {}),
        found.get(MISSING, {}),
        found.get(CALIBRATION, {}),
        run.tuned,
        _read(run.folder / "environment.json"),
    )


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
