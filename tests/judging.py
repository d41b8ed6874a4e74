"""On which tasks a rule for `adaptive_dgl` may be chosen, and on which it is judged: split once, before any tuning.

    OMP_NUM_THREADS=1 python -m tests.judging run outputs/judging        # trains; goes on where it was stopped
    python -m tests.judging table                                        # of the committed comparisons
    OMP_NUM_THREADS=1 python -m tests.judging diagnose outputs/judging   # what `hf-dgl diagnose` advises for each

The split was committed on 2026-11-28, before the rules of that day were tried. What had been looked at in earlier
rounds: of the tuning tasks all but `gated`, of the judging tasks the scores of `audio_text`, `image_audio_text`,
`size_and_sum` and `larger` under the rule before; nothing was chosen by these. `match` and `same_size` had never been
trained with `adaptive_dgl`. The tasks on real pictures (`recipes/real/`) are for judging, too.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parents[1] / "recipes" / "results"
METHODS, SEEDS = ("joint", "dgl", "adaptive_dgl"), (0, 1, 2)


class Task(NamedTuple):
    """A recipe, and the words that go with it."""

    recipe: str
    words: tuple[str, ...] = ()


def _two_digits(sample: str) -> Task:
    return Task("quickstart/two_digits", ("--dataset_name", f"sample:{sample}"))


TUNING = {
    "image_text": Task("quickstart/image_text"),
    **{sample: _two_digits(sample) for sample in ("sum_mod_3", "question", "irrelevant_text")},
    "gated": Task("tests.regimes gated"),
}
"""Tasks by which constants and rules may be chosen."""

JUDGING = {
    "audio_text": Task("quickstart/audio_text"),
    "image_audio_text": Task("quickstart/image_audio_text"),
    **{sample: _two_digits(sample) for sample in ("size_and_sum", "larger", "match", "same_size")},
}
"""Tasks that say how good the rule is; nothing is chosen by them."""


class Difference(NamedTuple):
    """Of one method to another, paired by seed.

    Args:
        mean: Over the seeds, in points of accuracy.
        error: Standard error of the mean: the differences' standard deviation over the root of their number.
    """

    mean: float
    error: float

    @property
    def is_no_worse(self) -> bool:
        """Whether the method is at least as good, within one standard error."""
        return self.mean >= -self.error


def accuracies(comparison: Mapping) -> dict[str, dict[int, float]]:
    """Method -> seed -> fused test accuracy, from a comparison.json."""
    found: dict[str, dict[int, float]] = {}
    for run in comparison["runs"]:
        if run["modality"] is None:
            found.setdefault(run["method"], {})[run["seed"]] = run["test"][comparison["metric"]]
    return found


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """Over the seeds that both have.

    Example:

        >>> difference({0: 0.82, 1: 0.80}, {0: 0.80, 1: 0.80})
        Difference(mean=1.0, error=1.0)
    """
    points = [100 * (ours[seed] - theirs[seed]) for seed in ours if seed in theirs]
    return Difference(statistics.mean(points), statistics.stdev(points) / math.sqrt(len(points)))


def better_of(found: Mapping[str, Mapping[int, float]], methods: Iterable[str]) -> str:
    """The one with the higher mean over the seeds."""
    return max(methods, key=lambda method: statistics.mean(found[method].values()))


def rows(names: Iterable[str]) -> list[str]:
    """The judging table, as Markdown."""
    lines = [
        "| task | `joint` | `dgl` | `adaptive_dgl` | minus the better of the two | at least as good |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        found = accuracies(json.loads((RESULTS / name / "comparison.json").read_text()))
        cells = [
            f"{statistics.mean(found[m].values()):.3f} ± {statistics.stdev(found[m].values()):.3f}".replace("0.", ".")
            for m in METHODS
        ]
        best = better_of(found, METHODS[:2])
        gap = difference(found[METHODS[2]], found[best])
        said = f"{gap.mean:+.1f} ± {gap.error:.1f} (`{best}`)"
        lines.append(" | ".join([f"| `{name}`", *cells, said, "yes" if gap.is_no_worse else "**no**"]) + " |")
    return lines


def main(words: list[str]) -> None:
    """Runs, prints a table, or diagnoses."""
    what, folder = words[0], Path(words[-1])
    names = [name for name in JUDGING if len(words) < 3 or name in words[1:-1]]
    if what == "table":
        print("\n".join(rows(JUDGING)))
    for name in names if what in ("run", "diagnose") else []:
        task = JUDGING[name]
        if what == "run":
            from hf_dgl.analysis.comparison.run import compare
            from hf_dgl.recipe.shipped import find_recipe

            compare(find_recipe(task.recipe), METHODS, SEEDS, folder / name, task.words, jobs=1)
            (RESULTS / name).mkdir(exist_ok=True)
            shutil.copy(folder / name / "comparison.json", RESULTS / name)
        else:
            from hf_dgl.analysis.diagnosis import diagnose
            from hf_dgl.recipe.shipped import find_recipe

            found = diagnose(find_recipe(task.recipe), task.words, folder / name / "diagnosis")
            print(name, found.regime.name if found.regime else None, found.method, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
