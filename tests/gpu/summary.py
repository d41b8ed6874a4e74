"""The figures of a run as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def to_markdown(results: dict[str, Any]) -> str:
    parts = [", ".join(f"{key} {value}" for key, value in results["about"].items()) + f"; size {results['size']}."]
    for name, write in (("exactness", _exactness), ("ratios", _ratios), ("loops", _loops)):
        if isinstance(results.get(name), dict) and {"error", "left_out"} & set(results[name]):
            parts.append(f"**{name}**\n\n```\n{next(iter(results[name].values()))}\n```")
        elif results.get(name):
            parts.append(write(results[name]))
    if "no_synchronisation" in results:
        parts.append(f"Synchronisation: {results['no_synchronisation']}")
    if "tests" in results:
        parts.append(f"`pytest -m device`: {results['tests']}")
    return "\n\n".join(parts) + "\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _exactness(found: dict[str, Any]) -> str:
    rows = [
        (case, f"{entry['difference']:.1e}", f"{entry['bound']:.0e}", "yes" if entry["passed"] else "NO")
        for case, entry in found.items()
    ]
    return _table(["gradients against the oracle", "largest relative difference", "bound", "within"], rows)


def _ratios(found: list[dict[str, Any]]) -> str:
    rows = []
    for case in found:
        for name, entry in case["eager"].items():
            if "milliseconds" in entry:
                cells = (
                    entry["milliseconds"],
                    entry["interquartile_ms"],
                    entry["seconds"],
                    entry["samples_per_second"],
                )
                memory = f"{entry['memory_bytes'] / 2**30:.2f}"
                rows.append((case["fusion_layers"], case["batch_size"], name, *(f"{c:.2f}" for c in cells), memory))
        compiled = case.get("compiled")
        if compiled:
            cells = (f"{compiled['dgl_ms']:.2f}", "", f"{compiled['ratio']:.2f}", "", "")
            rows.append((case["fusion_layers"], case["batch_size"], "dgl, both compiled", *cells))
    columns = ["fusion layers", "batch", "step", "ms", "IQR ms", "ratio to joint", "samples/s", "GiB"]
    return _table(columns, rows)


def _loops(found: dict[str, Any]) -> str:
    rows = []
    for name, entry in found["loops"].items():
        ratio = f"{entry['ratio']:.3f} ({min(entry['ratios']):.3f} to {max(entry['ratios']):.3f})"
        whole, around = (f"{entry[key]:.2f}" for key in ("milliseconds", "around_ms"))
        spread, spread_around = (f"{entry[key]:.2f}" for key in ("interquartile_ms", "around_interquartile_ms"))
        others = (f"{entry['around_more_than_trainer']:+.1%}", f"{entry['loader_ms']:.2f}")
        rows.append((name, whole, spread, ratio, around, spread_around, *others, f"{entry['first_step_ms']:.1f}"))
    columns = ["loop", "ms per step", "IQR", "ratio to Trainer, median of rounds (range)", "ms around the step", "IQR"]
    columns += ["more than Trainer's, of its step", "ms fetching a batch", "ms of the first step"]
    return f"{_table(columns, rows)}\n\n{found['steps']} steps of each, {found['batch_size']} rows."
