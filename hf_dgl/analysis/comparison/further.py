"""What a comparison tells beside its main table: a topic each, of what was asked for; and where the rows come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .outcome import Result, Value


class Topic(NamedTuple):
    """Numbers that have a table of their own.

    Attributes:
        key: In comparison.json.
        title, text: Heading, and what a reader has to know.
        columns: Heading -> number of one run. Those that no run has are not there.
        lower_is_better: Whether they are errors; None: they are not compared with joint training.
        digits: Behind the decimal point.
        is_in_main_table: Whether the means stand there already.
    """

    key: str
    title: str
    text: str
    columns: Mapping[str, Value]
    lower_is_better: bool | None
    digits: int = 3
    is_in_main_table: bool = False


def topics(results: Sequence[Result], metric: str, lower_is_better: bool) -> list[Topic]:
    """Those of which the runs have something.

    Args:
        results: Of the complete runs.
        metric: The main one.
        lower_is_better: Whether it is an error.

    Example:

        >>> [topic.title for topic in topics(comparison.results, "accuracy", False)]
        ['Modalities missing', 'Cost']
    """
    rates = sorted({rate for result in results for rate in result.missing}, key=float)
    found = [
        Topic(
            "probes",
            "Linear probes",
            "",
            {name: _entry(lambda result: result.probes, name) for name in _keys(results, lambda r: r.probes)},
            lower_is_better,
            is_in_main_table=True,
        ),
        Topic(
            "missing",
            "Modalities missing",
            f"{metric} on all rows of the test split, of which a share has lost one of its modalities, drawn at "
            "random: the same rows for all models.",
            {f"{100 * float(rate):g} % of rows": _entry(lambda result: result.missing, rate) for rate in rates},
            lower_is_better,
        ),
        Topic(
            "calibration",
            "Calibration",
            "Expected calibration error on the test split (15 bins of equal width, Guo et al. 2017): of the fused "
            "answer, and of each modality alone. Smaller is better.",
            {
                name: _entry(lambda result: result.calibration, name)
                for name in _keys(results, lambda r: r.calibration)
            },
            True,
        ),
        Topic("cost", "Cost", _COST, _costs(results), None, digits=0),
    ]
    return [topic for topic in found if topic.columns]


_COST = (
    "Of one training, its evaluations included: runs side by side slow one another down. Memory is the most that "
    "tensors held on the GPU, or without one the most that the process held, libraries included."
)


def provenance(results: Sequence[Result]) -> list[str]:
    """Sentences about rows that do not come from one commit, or one machine; none if all do.

    Example:

        >>> provenance(comparison.results)
        ['The runs come from different commits: 74a1dc7c (joint-0), b07c1f2e (dgl-0).']
    """
    said = []
    for what, of in (("commits", _commit), ("machines", _machine)):
        places: dict[str, list[str]] = {}
        for result in results:
            places.setdefault(of(result), []).append(result.folder.replace("\\", "/").rsplit("/", 1)[-1])
        if len(places) > 1:
            named = "; ".join(f"{place} ({', '.join(runs)})" for place, runs in places.items())
            said.append(f"The runs come from different {what}: {named}.")
    if any(str(result.environment.get("commit", "")).endswith("+dirty") for result in results):
        said.append("`+dirty`: the source had changes that are in no commit.")
    return said


def _commit(result: Result) -> str:
    commit = str(result.environment.get("commit", "unknown"))
    head, dirty, _ = commit.partition("+dirty")
    return f"{head[:8]}{dirty}" if len(head) == 40 else commit


def _machine(result: Result) -> str:
    machine = result.environment.get("machine", {})
    named = [str(machine[key]) for key in ("accelerator", "cpu") if machine.get(key)]
    return f"{', '.join(named)}, {machine['threads']} threads" if named and "threads" in machine else "unknown"


def _costs(results: Sequence[Result]) -> dict[str, Value]:
    if not any(math.isfinite(result.peak_memory) for result in results):
        return {}
    return {"seconds": lambda result: result.seconds, "peak memory, MiB": lambda result: result.peak_memory}


def _keys(results: Sequence[Result], of: Callable[[Result], Mapping[str, float]]) -> list[str]:
    fullest = sorted(results, key=lambda result: len(of(result)), reverse=True)
    return list(dict.fromkeys(key for result in fullest for key in of(result)))


def _entry(of: Callable[[Result], Mapping[str, float]], key: str) -> Value:
    return lambda result: of(result).get(key, math.nan)
