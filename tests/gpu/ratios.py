"""What a step costs relative to joint training: eager and compiled, against the paper's two backward passes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from hf_dgl import disentangle
from hf_dgl.analysis.benchmark.benchmark import benchmark
from hf_dgl.analysis.benchmark.procedures import Procedures, Step
from hf_dgl.analysis.benchmark.result import BenchmarkResult
from hf_dgl.analysis.benchmark.shapes import Shape, build

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"image_layers": 1, "text_layers": 1, "hidden_size": 16, "image_size": 32, "text_length": 8},
    "small": {"image_layers": 3, "text_layers": 2, "hidden_size": 64, "image_size": 64, "text_length": 16},
    "deep": {"image_layers": 12, "text_layers": 12, "hidden_size": 256, "image_size": 64, "text_length": 32},
    "base": {"image_layers": 12, "text_layers": 12, "hidden_size": 768, "image_size": 224, "text_length": 128},
}
"""`small`: of the quickstart's size; `deep`: what a CPU can of `base`: ViT-B and BERT-base."""
CASES = {"tiny": [(1, 2)], "small": [(2, 32), (6, 32)], "deep": [(2, 8), (6, 8)], "base": [(2, 32), (6, 32), (2, 128)]}
"""(fusion layers, batch size)"""
ROUNDS = {"tiny": 2, "small": 5, "deep": 5, "base": 15}


def ratios(device: str, size: str, left: Callable[[], float]) -> list[dict[str, Any]]:
    """For each case the step of each procedure: milliseconds, samples per second, memory, and ratios to joint."""
    found = []
    for fusion_layers, rows in CASES[size]:
        if left() < 120:
            break
        shape = Shape(**SIZES[size], fusion_layers=fusion_layers, batch_size=rows)
        with build(shape.config(), shape.batch(), device) as (model, batch):
            result = benchmark(model, batch, steps=ROUNDS[size], autocast=torch.bfloat16)
            case: dict[str, Any] = {
                "fusion_layers": fusion_layers,
                "batch_size": rows,
                "eager": _figures(result, rows),
            }
            if left() > 120 and rows <= 32:
                case["compiled"] = _compiled(model, batch, device, ROUNDS[size])
        found.append(case)
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return found


def _figures(result: BenchmarkResult, rows: int) -> dict[str, Any]:
    figures = {}
    for name, cost in result.costs.items():
        figures[name] = {**result.ratios(name), "memory_bytes": cost.memory, "gflops": cost.flops / 1e9}
        if cost.seconds:
            median = statistics.median(cost.seconds)
            quarters = statistics.quantiles(cost.seconds, n=4) if len(cost.seconds) > 1 else [median] * 3
            figures[name] |= {"milliseconds": 1e3 * median, "samples_per_second": rows / median}
            figures[name] |= {"interquartile_ms": 1e3 * (quarters[2] - quarters[0])}
    return figures


def _compiled(model: Any, batch: Any, device: str, rounds: int) -> dict[str, Any]:
    """Joint training and DGL with the encoders and the fusion compiled, in one interleaved run."""
    backend = "inductor" if device.startswith("cuda") else "aot_eager"
    parts = [*model.cross_modal.encoders.values(), model.cross_modal.fusion]
    for part in parts:
        part.compile(backend=backend)
    seconds: dict[str, list[float]] = {"joint": [], "dgl": []}
    model.train()
    with disentangle(model) as handle:
        procedures = Procedures(handle, batch, torch.bfloat16)
        steps = {"joint": procedures.joint, "dgl": procedures.dgl}
        for index in range(rounds + 3):  # three to compile
            for name, step in steps.items():
                model.zero_grad()
                took = _timed(step, device)
                if index >= 3:
                    seconds[name].append(took)
    ratio = statistics.median(dgl / joint for dgl, joint in zip(seconds["dgl"], seconds["joint"], strict=True))
    return {**{f"{name}_ms": 1e3 * statistics.median(found) for name, found in seconds.items()}, "ratio": ratio}


def _timed(step: Step, device: str) -> float:
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start
