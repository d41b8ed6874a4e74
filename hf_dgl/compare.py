"""The same recipe under several methods and seeds: mean and spread of what each leaves on the test split.

Every run is the command that a user would type, in a process of its own:

    hf-dgl train RECIPE --method METHOD --seed SEED --output_dir OUT/METHOD-SEED

Runs differ in nothing but method and seed. Model selection uses the validation split; the test split is scored once.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from .disentangle import METHODS
from .modalities import did_you_mean
from .recipe import load_recipe
from .results import HEADLINES, Table


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds (0 for a single one)."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.deviation:.3f}"


def compare(
    recipe: str | os.PathLike[str],
    methods: Sequence[str] = ("joint", "dgl"),
    seeds: Sequence[int] = (0, 1, 2),
    output_dir: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    jobs: int = 1,
) -> dict[str, dict[str, Spread]]:
    """Trains every method with every seed, and gathers the test metrics.

    Args:
        recipe: Path of a recipe.
        methods, seeds: Of the runs.
        output_dir: One folder per run goes there. A run that is complete there, of the same recipe, is not repeated.
            Default: `outputs/compare-<recipe>`.
        overrides: Further words for `hf-dgl train`, the same for all runs.
        jobs: How many runs at a time, each with its share of the CPU's cores.

    Returns:
        Method -> metric (`accuracy`, `accuracy_image`, ...) -> [`Spread`] over the seeds.

    Raises:
        ValueError: an unknown method, no seeds, a recipe without test split.
        RuntimeError: a run that failed, with the end of what it said.

    Example:

        >>> compare("recipes/quickstart/image_text.yaml", ["joint", "dgl"], seeds=[0])["dgl"]["accuracy_image"].mean
    """
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"Unknown method {method!r}{did_you_mean(method, list(METHODS))} Known: {list(METHODS)}.")
    if not seeds or not methods:
        raise ValueError("There is nothing to compare: give at least one method and one seed.")
    if load_recipe(recipe, overrides).data.test_split is None:
        raise ValueError("The recipe has no test split to compare on: set `test_split`.")
    folder = Path(output_dir or Path("outputs") / f"compare-{Path(recipe).stem}")
    runs = {(method, seed): folder / f"{method}-{seed}" for method in methods for seed in seeds}
    with ThreadPoolExecutor(jobs) as pool:
        started = [
            pool.submit(_run, recipe, [*overrides, "--method", method, "--seed", str(seed)], out, jobs)
            for (method, seed), out in runs.items()
        ]
        for run in started:
            run.result()
    return {method: _spreads([_test_metrics(runs[method, seed]) for seed in seeds]) for method in methods}


def comparison_table(
    results: Mapping[str, Mapping[str, Spread]], problem_type: str = "single_label_classification"
) -> Table:
    """A row per method; the headline metric fused and for each modality alone, as `mean ± standard deviation`.

    Example:

        >>> comparison_table({"dgl": {"accuracy": Spread(0.9, 0.01), "accuracy_text": Spread(0.7, 0.02)}}).rows
        [['dgl', '0.900 ± 0.010', '0.700 ± 0.020']]
    """
    headline, title = next(iter(HEADLINES[problem_type].items()))
    keys = [key for key in next(iter(results.values())) if key == headline or key.startswith(f"{headline}_")]
    columns = [
        f"{title} {'fused' if key == headline else key.removeprefix(f'{headline}_') + ' alone'}" for key in keys
    ]
    return Table(
        ["method", *columns], [[method, *(str(found[key]) for key in keys)] for method, found in results.items()]
    )


def _run(recipe: str | os.PathLike[str], overrides: Sequence[str], out: Path, jobs: int) -> None:
    words = [*overrides, "--output_dir", str(out)]
    wanted = load_recipe(recipe, words).to_yaml()
    if (out / "metrics.json").is_file() and (out / "recipe.yaml").read_text(encoding="utf-8") == wanted:
        return
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    done = subprocess.run(
        [sys.executable, "-m", "hf_dgl", "train", str(recipe), *words],
        env={**os.environ, "OMP_NUM_THREADS": threads},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"`hf-dgl train {recipe} {' '.join(words)}` failed:\n{done.stderr[-2000:]}")


def _test_metrics(out: Path) -> dict[str, float]:
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))["test"]


def _spreads(runs: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    shared = [key for key in runs[0] if all(key in run for run in runs)]
    values = {key: [run[key] for run in runs] for key in shared}
    return {
        key: Spread(statistics.mean(found), statistics.stdev(found) if len(found) > 1 else 0.0)
        for key, found in values.items()
    }
