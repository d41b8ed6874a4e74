"""The tables of the README and of the results page, written from the comparisons that lie under recipes/results.

    python -m tests.result_tables          # writes them anew; test_readme_numbers.py asks that this changes nothing

A table stands between two comments. The first says whose it is, and which columns it has:

    <!-- table: stamps | fused | image alone | image probe | 50 % missing | ECE | fused - joint -->
    ...
    <!-- end -->

| column | what stands there, of a method |
|---|---|
| `fused` | the test score: mean ± standard deviation over the seeds |
| `image alone` | that of the same model, given one modality; of `unimodal`: of a model that never had another |
| `image probe` | that of a linear probe of the encoder |
| `50 % missing` | that on all rows, of which so many have lost a modality |
| `ECE` | expected calibration error of the fused answer |
| `seconds`, `MiB` | of one training |
| `tuned` | what the search on the validation split chose |
| any of these `- joint` | its difference to joint training, in points, paired by seed, with a 95 % interval |

A method of which no column tells anything has no row.

`<!-- tasks: sum_mod_3 question | joint | dgl | dgl - joint -->` has a row per comparison in place of one per method:
the columns are methods, and their fused scores. `adaptive_dgl - better` is the difference to the better of `joint` and
`dgl` (by their means), in points, paired by seed, ± its standard error (the differences' standard deviation over the
root of their number), and which of the two that is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_dgl.analysis.comparison.statistics import Spread, paired

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "recipes" / "results"
PAGES = (ROOT / "README.md", *sorted(RESULTS.glob("*.md")))
TABLE = re.compile(r"<!-- (table|tasks): ([^|>]+?) \| ([^>]+?) -->\n(.*?)<!-- end -->", re.DOTALL)
OURS = ("dgl", "adaptive_dgl")

Run = Mapping[str, Any]
Runs = list[Run]


def of_comparison(name: str) -> dict[str, Any]:
    """The comparison.json of a folder below recipes/results."""
    return json.loads((RESULTS / name / "comparison.json").read_text(encoding="utf-8"))


def value_of(column: str, metric: str) -> Callable[[Run], float]:
    """What a column shows of one run."""
    if column == "fused":
        return lambda run: run["test"].get(metric, math.nan)
    if column == "ECE":
        return lambda run: run["calibration"].get("fused", math.nan)
    if column == "seconds":
        return lambda run: run["seconds"]
    if column == "MiB":
        return lambda run: run["environment"].get("peak_memory_mib", math.nan)
    what, _, kind = column.rpartition(" ")
    if kind == "alone":
        return lambda run: run["test"].get(metric if run["modality"] == what else f"{metric}_{what}", math.nan)
    if kind == "probe":
        return lambda run: run["probes"].get(what, math.nan)
    if kind == "missing":
        return lambda run: run["missing"].get(f"{float(what.rstrip('% ')) / 100:g}", math.nan)
    raise ValueError(f"There is no column {column!r}; see the table on top of {Path(__file__).name}.")


def runs_for(runs: Runs, column: str) -> Runs:
    """Those of a method that a column is about: of `unimodal`, the trainings of the modality."""
    one = column.partition(" ")[0] if column.endswith((" alone", " probe")) else None
    return [run for run in runs if run["modality"] in (None, one)]


def shown(spread: Spread, column: str = "") -> str:
    """As the tool prints it, without the zero before the point."""
    text = spread.text(0) if column in ("seconds", "MiB") else str(spread)
    return re.sub(r"\b0\.", ".", text)


def cell(runs: Runs, joint: Runs, column: str, metric: str) -> str:
    """One cell: of a method's runs, and those of joint training."""
    plain = column.removesuffix(" - joint")
    if column == "tuned":
        chosen = (f"{run['modality'] or ''} {value}".strip() for run in runs for value in run["tuned"].values())
        return ", ".join(dict.fromkeys(chosen)) or "–"
    value = value_of(plain, metric)
    ours = {run["seed"]: value(run) for run in runs_for(runs, plain)}
    ours = {seed: number for seed, number in ours.items() if math.isfinite(number)}
    if not ours:
        return "–"
    if plain == column:
        return shown(Spread.of(list(ours.values())), column)
    theirs = {run["seed"]: value(run) for run in joint}
    seeds = sorted(set(ours) & set(theirs))
    if not seeds or runs == joint:
        return "–"
    found = paired([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    interval = f" ({100 * found.low:+.1f} to {100 * found.high:+.1f})" if math.isfinite(found.low) else ""
    return f"{100 * found.difference:+.1f}{interval}"


def against_the_better(of: Mapping[str, Runs], method: str, metric: str) -> str:
    """One cell: of a method's fused score to the better of joint training's and DGL's."""
    scores = {name: {run["seed"]: run["test"][metric] for run in of[name]} for name in ("joint", "dgl", method)}
    better = max(("joint", "dgl"), key=lambda name: Spread.of(list(scores[name].values())).mean)
    seeds = sorted(set(scores[method]) & set(scores[better]))
    found = Spread.of([100 * (scores[method][seed] - scores[better][seed]) for seed in seeds])
    error = found.deviation / len(seeds) ** 0.5
    mark = "" if found.mean >= -error else " **less**"
    return f"{found.mean:+.1f} ± {error:.1f} (`{better}`){mark}"


def titled(column: str) -> str:
    return column.replace(" - ", " − ")


def row_title(method: str) -> str:
    if method == "unimodal":
        return "trained alone (`unimodal`)"
    return f"**`{method}`**" if method in OURS else f"`{method}`"


def table(kind: str, names: str, columns: Sequence[str]) -> list[str]:
    """The lines of a table."""
    return _by_method(names, columns) if kind == "table" else _by_task(names.split(), columns)


def _by_method(name: str, columns: Sequence[str]) -> list[str]:
    comparison = of_comparison(name)
    runs, metric = comparison["runs"], comparison["metric"]
    by_method = {method: [r for r in runs if r["method"] == method] for method in {r["method"]: None for r in runs}}
    order = sorted(by_method, key=lambda method: method != "unimodal")  # what a modality can do alone comes first
    joint = by_method.get("joint", [])
    rows = [[row_title(method), *(cell(by_method[method], joint, c, metric) for c in columns)] for method in order]
    told = [row for row in rows if set(row[1:]) != {"–"}]
    return _lines([name.rpartition("/")[2], *map(titled, columns)], told)


def _by_task(names: Sequence[str], columns: Sequence[str]) -> list[str]:
    rows = []
    for name in names:
        comparison = of_comparison(name)
        runs, metric = comparison["runs"], comparison["metric"]
        of = {method: [run for run in runs if run["method"] == method] for method in {r["method"]: None for r in runs}}
        cells = []
        for column in columns:
            if column.endswith(" - better"):
                cells.append(against_the_better(of, column.removesuffix(" - better"), metric))
                continue
            method = column.removesuffix(" - joint")
            fused = "fused" if method == column else "fused - joint"
            cells.append(cell(of.get(method, []), of.get("joint", []), fused, metric))
        rows.append([f"`{name.rpartition('/')[2]}`", *cells])
    return _lines(["task", *(titled(re.sub(r"^(\w+)", r"`\1`", column)) for column in columns)], rows)


def _lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]


def written_anew(page: str) -> str:
    """A page with its tables as the comparisons have them."""

    def anew(match: re.Match[str]) -> str:
        kind, names, columns = match[1], match[2], [column.strip() for column in match[3].split("|")]
        return f"<!-- {kind}: {names} | {match[3]} -->\n" + "\n".join(table(kind, names, columns)) + "\n<!-- end -->"

    return TABLE.sub(anew, page)


if __name__ == "__main__":
    for path in PAGES:
        before = path.read_text(encoding="utf-8")
        if (after := written_anew(before)) != before:
            path.write_text(after, encoding="utf-8")
            print(f"written: {path.relative_to(ROOT)}")
