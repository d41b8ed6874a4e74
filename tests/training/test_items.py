"""Models that write text: 8 x 1 rows are 1 x 8, and two processes are one, whether their loss counts items or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import default_collate

from hf_dgl import DGLTrainer, DGLTrainingArguments
from hf_dgl.training.items import MEAN, SHARE
from hf_dgl.training.parallelism import leave_process_group
from tests.architectures_tiny import TINY
from tests.processes import as_launched

ROWS = 4
WRITERS = {
    "LlavaForConditionalGeneration": SHARE,
    "SmolVLMForConditionalGeneration": SHARE,
    "BlipForConditionalGeneration": MEAN,
}
"""Class -> whether its own loss heeds `num_items_in_batch`."""


def make(name: str, folder: Any, batch_size: int, parts: int, cls: type = DGLTrainer, **settings: Any) -> DGLTrainer:
    """Rows whose answers are of different length: one micro-batch has far more tokens than another."""
    torch.manual_seed(0)
    model, batch = TINY[name]()
    batch = {key: torch.cat([value, value[:1]]) for key, value in batch.items()}
    labels = batch["labels"].clone()
    for row in range(ROWS):
        kept = (labels[row] != -100).nonzero().flatten()[1 + row % 3 :]
        if row % 2:
            labels[row, kept] = -100
    rows = [{key: value[row] for key, value in {**batch, "labels": labels}.items()} for row in range(ROWS)]
    defaults = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0, "logging_steps": 1}
    arguments = DGLTrainingArguments(
        str(folder), use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no",
        lr_scheduler_type="constant", train_sampling_strategy="sequential", per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=parts, **{**defaults, **settings},
    )  # fmt: skip
    return cls(model, arguments, default_collate, train_dataset=rows)


def trained(trainer: DGLTrainer) -> dict[str, torch.Tensor]:
    trainer.train()
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def same(first, second):
    moved = 0.0
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
        moved = max(moved, float((value - second[name]).abs().max()))


class WeightedTokens(DGLTrainer):
    """A mean of its own, which counts no items."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        return cross_entropy(logits[:, -1], labels[:, -1].clamp(min=0))


class SumOfTokens(DGLTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = model(**inputs).logits[:, :-1].flatten(0, 1)
        targets = inputs["labels"][:, 1:].flatten()
        return cross_entropy(logits, targets, reduction="sum") / num_items_in_batch


class Mixed(DGLTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return outputs.loss + outputs.logits.square().sum() / num_items_in_batch


FAST = "LlavaForConditionalGeneration", "BlipForConditionalGeneration"


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in WRITERS])
def test_one_batch_is_many_small_ones(name, tmp_path):
    whole, cut = make(name, tmp_path, ROWS, 1), make(name, tmp_path, 1, ROWS)
    same(trained(whole), trained(cut))
    assert cut._counts == WRITERS[name] and whole._counts is None
    one, other = (trainer.state.log_history[-2] for trainer in (whole, cut))
    for key in ("loss", "loss_multimodal", "loss_image", "loss_text"):
        if key in one:
            assert one[key] == pytest.approx(other[key], rel=1e-4), key


@pytest.mark.parametrize("cls", [WeightedTokens, SumOfTokens], ids=lambda cls: cls.__name__)
def test_an_override_is_measured_too(cls, tmp_path):
    name = "LlavaForConditionalGeneration"
    whole, cut = make(name, tmp_path, ROWS, 1, cls), make(name, tmp_path, 1, ROWS, cls)
    same(trained(whole), trained(cut))
    assert cut._counts == (SHARE if cls is SumOfTokens else MEAN)


def test_half_a_share_is_refused_where_batches_are_cut(tmp_path):
    name = "LlavaForConditionalGeneration"
    trained(make(name, tmp_path, ROWS, 1, Mixed))
    with pytest.raises(ValueError, match="a part of it is divided by that number and a part is not"):
        make(name, tmp_path, 1, ROWS, Mixed).train()


def in_each_process(rank: int, folder: str) -> None:
    for name in FAST:
        trainer = make(name, f"{folder}/{name}", ROWS // 2, 1)
        found = trained(trainer)
        if rank == 0:
            torch.save((found, trainer.state.log_history[-2]), f"{folder}/{name}.pt")
    leave_process_group()


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    as_launched(in_each_process, str(tmp_path))
    for name in FAST:
        whole = make(name, tmp_path, ROWS, 1)
        weights, log = torch.load(Path(tmp_path, f"{name}.pt"))
        same(trained(whole), weights)
        for key in [key for key in log if key.startswith("loss")]:
            assert whole.state.log_history[-2][key] == pytest.approx(log[key], rel=1e-4), key
