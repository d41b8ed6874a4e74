"""A step of `DGLTrainer` with `method: joint` against `transformers.Trainer` and a hand-written loop, interleaved.

All loops train copies of one model on the same rows with AdamW, clipping and a schedule; the rows are tensors in
memory. Beside the whole step, what is *around* it is measured: all that is neither forward, backward, clipping, the
optimizer nor the fetching of a batch. A whole step also depends on where a copy of the model lies in memory (on a CPU
two runs of one loop differ by several percent); what is around it does not.

On a CPU the clock is the process's time, so that whatever else runs on the machine does not count.
"""

from __future__ import annotations

import copy
import functools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data.dataloader import _BaseDataLoaderIter
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_dgl import DGLTrainer, DGLTrainingArguments
from hf_dgl.analysis.benchmark.shapes import Shape, build
from hf_dgl.method.outputs import map_tensors
from hf_dgl.models import CrossModalForSequenceClassification

from .ratios import SIZES

STEPS = {"tiny": 3, "small": 12, "deep": 6, "base": 20}
ROUNDS = {"tiny": 2, "small": 4, "deep": 4, "base": 5}
ROWS = {"tiny": 4, "small": 32, "deep": 8, "base": 32}
WARM_UP = 2

LOOPS: dict[str, tuple[type[Trainer] | None, dict[str, Any]]] = {
    "Trainer": (Trainer, {}),
    "by hand": (None, {}),
    "DGLTrainer, joint": (DGLTrainer, {"method": "joint"}),
    "DGLTrainer, dgl": (DGLTrainer, {"method": "dgl"}),
}
"""Loop -> its class (None: written by hand) and settings."""

_INSIDE: list[tuple[Any, str, str]] = [
    (CrossModalForSequenceClassification, "forward", "forward"),
    (torch.Tensor, "backward", "backward"),
    (torch.nn.utils, "clip_grad_norm_", "clipping"),
    (torch.optim.AdamW, "step", "optimizer"),
    (_BaseDataLoaderIter, "__next__", "loader"),
]
"""(owner, function, what it is called): what a step is made of; the rest is around it."""


class Rows(Dataset):
    """The rows of one batch, over and over."""

    def __init__(self, batch: dict[str, Any], num_rows: int) -> None:
        self.batch, self.rows, self.num_rows = batch, len(batch["labels"]), num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        return map_tensors(lambda tensor: tensor[index % self.rows], self.batch)


class StepTimes(TrainerCallback):
    """What each step has taken, from the end of the one before it, and how much of it was spent inside of what."""

    def __init__(self, device: str) -> None:
        self._clock = time.process_time if device == "cpu" else time.perf_counter
        self._wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
        self._is_inside = False
        self._since = 0.0
        self._now: dict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []  # in seconds

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, the functions of `_INSIDE` are timed."""
        with ExitStack() as stack:
            for owner, name, part in _INSIDE:
                watched = self._watched(getattr(owner, name), part)
                stack.enter_context(mock.patch.object(owner, name, watched))
            yield

    def _watched(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self._is_inside:  # one of them called by another counts as that one
                return function(*args, **kwargs)
            self._is_inside, start = True, self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                self._now[part] += self._clock() - start
                self._is_inside = False

        return watched

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self.steps:  # what comes before the first step is not its
            self._now, self._since = defaultdict(float), self._clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._watched(self._wait, "waiting")()
        now = self._clock()
        whole = now - self._since
        around = whole - sum(self._now.values())
        self.steps.append({"step": whole, "around": around, **self._now})
        self._now, self._since = defaultdict(float), self._clock()


def loops(device: str, size: str) -> dict[str, Any]:
    """Loop -> milliseconds of a step, of what is around it, of fetching a batch; and ratios to `transformers.Trainer`.

    Ratios of whole steps are medians over the rounds, in each of which every loop trains once, in another order.
    """
    shape = Shape(**SIZES[size], fusion_layers=2, batch_size=ROWS[size], dropout=0.0)
    rounds: list[dict[str, list[dict[str, float]]]] = []
    with build(shape.config(), shape.batch(), "cpu") as (model, batch):
        rows = Rows(batch, ROWS[size] * (STEPS[size] + WARM_UP))
        for number in range(ROUNDS[size]):
            begin = number % len(LOOPS)
            order = [*LOOPS][begin:] + [*LOOPS][:begin]
            rounds.append({name: _train(name, copy.deepcopy(model), rows, device, size) for name in order})
    plain = _of("step", rounds, "Trainer")
    found = {name: _figures(rounds, name) for name in LOOPS}
    for entry in found.values():
        more = entry["around_ms"] - found["Trainer"]["around_ms"]
        entry["around_more_than_trainer"] = more / (1e3 * statistics.median(plain))
    return {"batch_size": ROWS[size], "steps": len(plain), "loops": found}


def _figures(rounds: Sequence[dict[str, list[dict[str, float]]]], name: str) -> dict[str, Any]:
    seconds, around = _of("step", rounds, name), _of("around", rounds, name)
    median = lambda one, loop: statistics.median(step["step"] for step in one[loop][WARM_UP:])  # noqa: E731
    ratios = [median(one, name) / median(one, "Trainer") for one in rounds]
    return {
        "milliseconds": 1e3 * statistics.median(seconds),
        "interquartile_ms": 1e3 * _interquartile(seconds),
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "around_ms": 1e3 * statistics.median(around),
        "around_interquartile_ms": 1e3 * _interquartile(around),
        "loader_ms": 1e3 * statistics.median(_of("loader", rounds, name)),
        "first_step_ms": 1e3 * statistics.median(one[name][0]["step"] for one in rounds),
    }


def _of(part: str, rounds: Sequence[dict[str, list[dict[str, float]]]], name: str) -> list[float]:
    return [step.get(part, 0.0) for one in rounds for step in one[name][WARM_UP:]]


def _interquartile(seconds: Sequence[float]) -> float:
    first, _, third = statistics.quantiles(seconds, n=4)
    return third - first


def _train(name: str, model: Any, rows: Rows, device: str, size: str) -> list[dict[str, float]]:
    kind, settings = LOOPS[name]
    times = StepTimes(device)
    with times.watching():
        if kind is None:
            _by_hand(model, rows, device, size, times)
        else:
            _by_trainer(kind, settings, model, rows, device, size, times)
    return times.steps


def _by_hand(model: Any, rows: Rows, device: str, size: str, times: StepTimes) -> None:
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 1000)
    for batch in DataLoader(rows, batch_size=ROWS[size], shuffle=True):
        times.on_step_begin()
        batch = map_tensors(lambda tensor: tensor.to(device), batch)
        with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=device.startswith("cuda")):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        times.on_step_end()


def _by_trainer(
    kind: type[Trainer], settings: dict[str, Any], model: Any, rows: Rows, device: str, size: str, times: StepTimes
) -> None:
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
        trainer = kind(model, arguments, train_dataset=rows, data_collator=default_collate)
        trainer.add_callback(times)
        trainer.train()
