"""What a benchmark has measured: costs of the procedures, their ratios, tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hf_dgl.reports.result_tables import Table

PROCEDURES = {"joint": "joint", "dgl": "DGL", "two_backward": "paper (two backwards)", "floor": "floor"}
"""What is measured -> how it is called."""


@dataclass
class Cost:
    """Of one training step: forward and backward, without the optimizer.

    Args:
        flops: Floating point operations of matrix products, attention, convolutions (`torch.utils.flop_counter`).
        memory: Bytes. On a CPU: what autograd saves for the backward, each storage once, parameters left out. On a
            GPU: the peak of allocated memory above that before the step, new gradients included; 0 for the floor,
            since peaks do not add up.
        seconds: One entry per timed round.
    """

    flops: int
    memory: int
    seconds: list[float] = field(default_factory=list)


@dataclass
class BenchmarkResult:
    """What [`benchmark`] measured.

    Args:
        costs: `joint`, `dgl`, `two_backward`, `floor` -> [`Cost`]. The floor is not timed.
        bookkeeping: Median seconds per step that DGL spends outside of the model's forwards and the backward (hooks,
            `requires_grad` flags, losses); None if nothing was timed.
        description: Of the case: modalities, parameters, device, ...
        evaluation: FLOPs of scoring a batch fused and by each modality alone, over those of its fused scores only;
            None: not counted (fake tensors).
        first_step: Seconds of the first step of DGL, which looks at the graph (one more forward); None: not timed.
        saved: `joint`, `dgl`, and both with activation checkpointing (where the model has it) -> part of the model ->
            bytes that autograd saves for the backward.
        fetching: Seconds in which one process reads the rows of a recipe's batch and collates them, once per round.
        communication: What [`~hf_dgl.analysis.benchmark.communication.communications`] gave, if a launcher has started
            several processes.
        sweep: What [`sweep`] gave, if it was asked for.
    """

    costs: dict[str, Cost]
    bookkeeping: float | None
    description: dict[str, Any]
    evaluation: float | None = None
    first_step: float | None = None
    saved: dict[str, dict[str, int]] = field(default_factory=dict)
    fetching: list[float] = field(default_factory=list)
    communication: dict[str, dict[str, dict[str, dict[str, int]]]] = field(default_factory=dict)
    sweep: list[dict[str, Any]] = field(default_factory=list)

    def ratios(self, procedure: str) -> dict[str, float | None]:
        """`flops`, `seconds` and `memory` of a procedure, each over those of joint training.

        That of the time is the median over rounds: whatever else keeps the machine busy slows all steps of a round.
        """
        cost, joint = self.costs[procedure], self.costs["joint"]
        rounds = [mine / its for mine, its in zip(cost.seconds, joint.seconds, strict=False)]
        return {
            "flops": cost.flops / joint.flops,
            "seconds": statistics.median(rounds) if rounds else None,
            "memory": cost.memory / joint.memory if cost.memory else None,
        }

    @property
    def above_floor(self) -> float:
        """By how much DGL's FLOPs exceed the floor's, as a fraction."""
        return self.costs["dgl"].flops / self.costs["floor"].flops - 1

    @property
    def bookkeeping_share(self) -> float | None:
        """`bookkeeping` as a fraction of the median DGL step."""
        return self._over_a_step(self.bookkeeping)

    @property
    def first_step_ratio(self) -> float | None:
        """`first_step` over the median of DGL's later ones."""
        return self._over_a_step(self.first_step)

    @property
    def fetching_share(self) -> float | None:
        """The median of `fetching` as a fraction of the median DGL step: what a loader without workers adds to it."""
        return self._over_a_step(statistics.median(self.fetching) if self.fetching else None)

    def _over_a_step(self, seconds: float | None) -> float | None:
        return None if seconds is None else seconds / statistics.median(self.costs["dgl"].seconds)

    def table(self) -> Table:
        """A row for each procedure: FLOPs, median time and its interquartile range, samples per second, memory."""
        rows, batch_size = [], self.description.get("batch_size", 1)
        for name, cost in self.costs.items():
            ratio = self.ratios(name)
            median = statistics.median(cost.seconds) if cost.seconds else None
            spread = 1e3 * _interquartile(cost.seconds) if len(cost.seconds) > 1 else None
            figures = [cost.flops / 1e9, ratio["flops"], None if median is None else median * 1e3, spread]
            figures += [ratio["seconds"], None if median is None else batch_size / median]
            figures += [cost.memory / 2**20 if cost.memory else None, ratio["memory"]]
            rows.append([PROCEDURES[name], *(_written(value) for value in figures)])
        columns = ["step", "GFLOPs", "ratio", "ms", "IQR", "ratio", "rows/s", "MiB", "ratio"]
        return Table(columns, rows)

    def saved_table(self) -> Table:
        """MiB that are saved for the backward, by part of the model."""
        parts = list(next(iter(self.saved.values()), {}))
        rows = [
            [name, *(_written(sizes[part] / 2**20) for part in parts), _written(sum(sizes.values()) / 2**20)]
            for name, sizes in self.saved.items()
        ]
        return Table(["step", *parts, "all"], rows)

    def communication_table(self) -> Table:
        """A row per wrapping and method: collectives of one training step, and the MiB of their tensors."""
        nothing, rows = {"collectives": 0, "bytes": 0}, []
        for wrapping, methods in self.communication.items():
            for method, found in methods.items():
                entries = [found.get(kind, nothing) for kind in ("all-gather", "reduce-scatter", "all-reduce")]
                cells = [(str(entry["collectives"]), f"{entry['bytes'] / 2**20:.2f}") for entry in entries]
                rows.append([wrapping, method, *(cell for pair in cells for cell in pair)])
        return Table(["wrapping", "step", "gathers", "MiB", "scatters", "MiB", "reduces", "MiB"], rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain types, for JSON."""
        return {
            **asdict(self),
            "ratios": {name: self.ratios(name) for name in self.costs},
            "above_floor": self.above_floor,
            "bookkeeping_share": self.bookkeeping_share,
            "first_step_ratio": self.first_step_ratio,
            "fetching_share": self.fetching_share,
        }


def _interquartile(seconds: Sequence[float]) -> float:
    first, _, third = statistics.quantiles(seconds, n=4)
    return third - first


def _written(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if value < 10 else f"{value:,.1f}"
