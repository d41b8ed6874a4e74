"""Every way to a loss x every method x {plain, accumulation, two processes}: the gradients against the oracle.

A cell is one step of SGD with learning rate 1 in float64 by `trainer.train()`, so the gradient is by how much the
weights have moved. The oracle takes the same loss of each pass by `torch.autograd.grad`, and knows nothing of hf_dgl.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import default_collate
from transformers.trainer_pt_utils import LabelSmoother

from hf_dgl import DGLTrainer, DGLTrainingArguments
from hf_dgl.architectures import modalities_of
from hf_dgl.method.methods import BASELINES, METHODS
from hf_dgl.method.modalities import resolve
from hf_dgl.training.parallelism import leave_process_group
from tests.oracle import max_difference, oracle
from tests.processes import as_launched
from tests.tiny import tiny_batch, tiny_model

NAMES = ("image", "text")
ROWS = 8
WEIGHTS = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
OGM_ALPHA = 0.5


# ---- ways to a loss -----------------------------------------------------------------------------------------------


class Popped(DGLTrainer):
    """As the documentation of Transformers weighs classes."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = cross_entropy(outputs.logits, labels, weight=WEIGHTS)
        return (loss, outputs) if return_outputs else loss


class Kept(DGLTrainer):
    """The labels stay: the model computes a loss, too. Read by place, and through `self.model`."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = self.model(**inputs) if self.args.world_size == 1 else model(**inputs)
        loss = cross_entropy(outputs[1], inputs["labels"], weight=WEIGHTS)
        return (loss, outputs) if return_outputs else loss


class OfItems(DGLTrainer):
    """Normalises by `num_items_in_batch` where it is told."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = cross_entropy(outputs.logits, labels, reduction="sum") / (num_items_in_batch or len(labels))
        return (loss, outputs) if return_outputs else loss


class OnTop(DGLTrainer):
    """Adds to what upstream computes; draws random numbers, as mixup does."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        before = torch.rand(())
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        outputs["draws"] = torch.stack([before, torch.rand(())])
        loss = loss + penalty(outputs.logits) + 0 * outputs["draws"].sum()
        return (loss, outputs) if return_outputs else loss


def penalty(logits):
    return 0.1 * logits.square().mean()


def summed(outputs, labels, num_items_in_batch=None):
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


def plain(logits, labels):
    return cross_entropy(logits, labels)


def weighted(logits, labels):
    return cross_entropy(logits, labels, weight=WEIGHTS)


def smoothed(logits, labels):
    return LabelSmoother(0.3)({"logits": logits}, labels)


def focal(outputs, labels, num_items_in_batch=None):
    losses = cross_entropy(outputs["logits"], labels, reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).sum() / num_items_in_batch


LOSSES: dict[str, tuple[dict[str, Any], Callable[..., torch.Tensor]]] = {
    "the model's": ({}, plain),
    "the model's, as a tuple": ({"return_dict": False}, plain),
    "label smoothing": ({"label_smoothing_factor": 0.3}, smoothed),
    "compute_loss_func": ({"compute_loss_func": summed}, plain),
    "compute_loss_func, focal": (
        {"compute_loss_func": focal},
        lambda logits, labels: focal({"logits": logits}, labels, len(labels)),
    ),
    "compute_loss_func, as a tuple": ({"compute_loss_func": summed, "return_dict": False}, plain),
    "labels popped": ({"cls": Popped}, weighted),
    "labels kept": ({"cls": Kept}, weighted),
    "num_items_in_batch": ({"cls": OfItems}, plain),
    "on top of upstream": ({"cls": OnTop}, lambda logits, labels: plain(logits, labels) + penalty(logits)),
}
"""Name -> how the trainer is made, and the loss of logits and labels that this amounts to."""

ALL = [*METHODS, *(name for name in BASELINES if name != "unimodal")]
CUTS = {"plain": 1, "accumulation": 4}


# ---- a step -------------------------------------------------------------------------------------------------------


def to_double(tree):
    if isinstance(tree, dict):
        return {key: to_double(value) for key, value in tree.items()}
    return tree.double() if tree.is_floating_point() else tree


def batch():
    return to_double(tiny_batch(NAMES, batch_size=ROWS))


def rows_of(tree, rows):
    return {key: rows_of(value, rows) for key, value in tree.items()} if isinstance(tree, dict) else tree[rows]


def trainer_for(loss: str, method: str, parts: int, folder: Any) -> DGLTrainer:
    settings = {**LOSSES[loss][0]}
    cls, as_dict = settings.pop("cls", DGLTrainer), settings.pop("return_dict", True)
    func = settings.pop("compute_loss_func", None)
    model = tiny_model(NAMES, fusion_type="cross_attention", problem_type="single_label_classification").double()
    model.config.return_dict = as_dict
    if method == "g_blending":
        settings["eval_strategy"] = "epoch"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    arguments = DGLTrainingArguments(
        str(folder), method=method, optim="sgd", learning_rate=1.0, max_grad_norm=0, lr_scheduler_type="constant",
        max_steps=1, per_device_train_batch_size=ROWS // parts // world, gradient_accumulation_steps=parts,
        train_sampling_strategy="sequential", save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        logging_steps=1, ogm_alpha=OGM_ALPHA, ogm_noise=False, **settings,
    )  # fmt: skip
    rows = [rows_of(batch(), row) for row in range(ROWS)]
    return cls(model, arguments, default_collate, train_dataset=rows, eval_dataset=rows[:2], compute_loss_func=func)


def moved(trainer: DGLTrainer) -> dict[str, torch.Tensor]:
    """By how much a step has moved the weights."""
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    return {name: before[name] - parameter.detach() for name, parameter in trainer.model.named_parameters()}


def expected(loss: str, method: str, parts: int) -> dict[str, torch.Tensor]:
    model = tiny_model(NAMES, fusion_type="cross_attention", problem_type="single_label_classification").double()
    model.train()
    whole, criterion = batch(), LOSSES[loss][1]
    pieces = [rows_of(whole, slice(i * ROWS // parts, (i + 1) * ROWS // parts)) for i in range(parts)]

    def of(kept):
        values = [criterion(model(**{n: piece[n] for n in kept}).logits, piece["labels"]) for piece in pieces]
        return sum(values) / parts

    losses = {"multimodal": lambda: of(NAMES)} | {name: (lambda name=name: of([name])) for name in NAMES}
    chosen = {**METHODS, **BASELINES}[method]
    owners = resolve(model, modalities_of(model)).owners
    alpha = dict.fromkeys(NAMES, 1.0 if chosen.alpha is None else chosen.alpha)
    shares = dict.fromkeys(NAMES, chosen.multimodal_to_encoders)
    if chosen.adaptive:
        alpha, shares = dict.fromkeys(NAMES, 0.5), dict.fromkeys(NAMES, 0.5)  # as long as nothing is known
    gradients = oracle(model, losses, owners, alpha, shares, chosen.unimodal_to_fusion)
    if method == "g_blending":
        return {name: value / 3 for name, value in of_everything(model, losses).items()}
    if method == "ogm_ge":
        return slowed_down(gradients, owners, model, whole)
    return gradients


def of_everything(model, losses: Mapping[str, Callable[[], torch.Tensor]]) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters())
    total = sum(compute() for compute in losses.values())
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}


def slowed_down(gradients, owners, model, whole):
    """OGM-GE, equation 10."""
    with torch.no_grad():
        scores = {
            name: model(**{name: whole[name]}).logits.softmax(-1).gather(1, whole["labels"][:, None]).mean()
            for name in NAMES
        }
    weakest = min(scores.values())
    factors = {
        frozenset([name]): 1 - torch.tanh(OGM_ALPHA * score / weakest) if score > weakest else 1.0
        for name, score in scores.items()
    }
    return {name: value * factors.get(owners[name], 1.0) for name, value in gradients.items()}


def check(loss: str, method: str, parts: int, actual: dict[str, torch.Tensor], processes: int = 1) -> None:
    reference = expected(loss, method, parts * processes)
    assert max(float(value.abs().max()) for value in actual.values()) > 0.01
    # Upstream's label smoothing sums in float32.
    assert max_difference(actual, reference) < (1e-7 if loss == "label smoothing" else 1e-11), (loss, method, parts)


FAST = {("labels popped", method, "accumulation") for method in ALL} | {(loss, "dgl", "plain") for loss in LOSSES}
CELLS = [
    pytest.param(loss, method, cut, marks=[] if (loss, method, cut) in FAST else pytest.mark.slow)
    for loss in LOSSES
    for method in ALL
    for cut in CUTS
]


@pytest.mark.parametrize(("loss", "method", "cut"), CELLS)
def test_the_gradients_are_the_oracles(loss, method, cut, tmp_path):
    check(loss, method, CUTS[cut], moved(trainer_for(loss, method, CUTS[cut], tmp_path)))


def in_each_process(rank: int, folder: str) -> None:
    """All cells, one after the other: starting the processes is what costs."""
    for number, (loss, method) in enumerate(BETWEEN_PROCESSES):
        actual = moved(trainer_for(loss, method, 1, f"{folder}/{number}"))
        if rank == 0:
            torch.save(actual, f"{folder}/{number}.pt")
    leave_process_group()


BETWEEN_PROCESSES = [(loss, method) for loss in LOSSES for method in ALL]


@pytest.mark.slow
def test_the_gradients_of_two_processes_are_the_oracles(tmp_path):
    as_launched(in_each_process, str(tmp_path))
    for number, (loss, method) in enumerate(BETWEEN_PROCESSES):
        check(loss, method, 1, torch.load(Path(tmp_path, f"{number}.pt")), processes=2)
