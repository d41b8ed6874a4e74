"""A step of `DGLTrainer` with `method: joint` against `transformers.Trainer` and a hand-written loop, interleaved.

All three train the same model on the same batches with AdamW; the rows are tensors in memory, so that what differs is
what the loops do around the step. Also: what fetching a batch costs, the first step of `dgl` (its trial).
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_dgl import DGLTrainer, DGLTrainingArguments
from hf_dgl.analysis.benchmark.shapes import Shape, build
from hf_dgl.method.outputs import map_tensors

from .ratios import SIZES

STEPS = {"tiny": 6, "small": 12, "base": 20}
ROUNDS = {"tiny": 2, "small": 7, "base": 5}
ROWS = {"tiny": 4, "small": 16, "base": 32}
WARM_UP = 3


_TRAINERS: list[tuple[str, type[Trainer], dict[str, Any]]] = [
    ("Trainer", Trainer, {}),
    ("DGLTrainer, joint", DGLTrainer, {"method": "joint"}),
    ("DGLTrainer, dgl", DGLTrainer, {"method": "dgl"}),
]


class Rows(Dataset):
    """The rows of one batch, over and over."""

    def __init__(self, batch: dict[str, Any], num_rows: int) -> None:
        self.batch, self.rows, self.num_rows = batch, len(batch["labels"]), num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        return map_tensors(lambda tensor: tensor[index % self.rows], self.batch)


class StepTimes(TrainerCallback):
    """Seconds from the end of a step to the end of the next."""

    def __init__(self, wait: Any) -> None:
        self.wait, self.ends = wait, []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.wait()
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.ends, self.ends[1:], strict=False)][WARM_UP - 1 :]


def loops(device: str, size: str) -> dict[str, Any]:
    """Loop -> median milliseconds per step, and the median over rounds of its ratio to `transformers.Trainer`."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    shape = Shape(**SIZES[size], fusion_layers=2, batch_size=ROWS[size], dropout=0.0)
    with build(shape.config(), shape.batch(), "cpu") as (model, batch):
        rows = Rows(batch, ROWS[size] * (STEPS[size] + WARM_UP))
        found: dict[str, list[float]] = {"by hand": [], **{name: [] for name, _, _ in _TRAINERS}}
        first: list[float] = []
        for _ in range(ROUNDS[size]):
            found["by hand"].append(_by_hand(copy.deepcopy(model), rows, device, size, wait))
            for name, kind, settings in _TRAINERS:
                median, first_step = _trainer(kind, settings, model, rows, device, size, wait)
                found[name].append(median)
            first.append(first_step)  # of the last one
        loading = _loading(rows, size)
    plain = found["Trainer"]
    return {
        "batch_size": ROWS[size],
        "loops": {
            name: {
                "milliseconds": 1e3 * statistics.median(seconds),
                "ratio": statistics.median(mine / its for mine, its in zip(seconds, plain, strict=True)),
                "ratios": [round(mine / its, 4) for mine, its in zip(seconds, plain, strict=True)],
            }
            for name, seconds in found.items()
        },
        "loader_milliseconds": 1e3 * loading,
        "first_dgl_step_milliseconds": 1e3 * statistics.median(first),
    }


def _loader(rows: Rows, size: str) -> DataLoader:
    return DataLoader(rows, batch_size=ROWS[size], shuffle=True)


def _loading(rows: Rows, size: str) -> float:
    start = time.perf_counter()
    for _ in _loader(rows, size):
        pass
    return (time.perf_counter() - start) / (len(rows) / ROWS[size])


def _by_hand(model: Any, rows: Rows, device: str, size: str, wait: Any) -> float:
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 1000)
    times = StepTimes(wait)
    for batch in _loader(rows, size):
        batch = map_tensors(lambda tensor: tensor.to(device), batch)
        with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=device.startswith("cuda")):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        times.on_step_end()
    return statistics.median(times.seconds)


def _trainer(
    kind: type[Trainer], settings: dict[str, Any], model: Any, rows: Rows, device: str, size: str, wait: Any
) -> tuple[float, float]:
    """Median seconds of a step, and of the first."""
    arguments_of = DGLTrainingArguments if kind is DGLTrainer else TrainingArguments
    with tempfile.TemporaryDirectory() as folder:
        arguments = arguments_of(
            folder,
            use_cpu=device == "cpu",
            bf16=device.startswith("cuda"),
            per_device_train_batch_size=ROWS[size],
            num_train_epochs=1,
            learning_rate=1e-5,
            logging_steps=1000,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            optim="adamw_torch",
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            **settings,
        )
        trainer = kind(copy.deepcopy(model), arguments, train_dataset=rows, data_collator=default_collate)
        times = StepTimes(wait)
        trainer.add_callback(times)
        start = time.perf_counter()
        trainer.train()
    return statistics.median(times.seconds), times.ends[0] - start
