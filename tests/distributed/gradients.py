"""What each of two gloo processes does: DGL's gradients and three steps, sharded, against one process on all rows."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hf_dgl.architectures import modalities_of
from hf_dgl.architectures.attach import disentangle
from hf_dgl.models.adapters import add_adapters
from tests.method.test_disentangle import settings
from tests.oracle import Attention, Interleaved, TiedToHead, make_toy, toy_batch
from tests.tiny import tiny_batch, tiny_model

ROWS = 8


def build(name: str):
    """A model, its modalities, and a batch of `ROWS` rows."""
    toys = {"attention": Attention, "tied": TiedToHead, "interleaved": Interleaved}
    if name in toys:
        model = make_toy(toys[name]).float()
        batch = {key: value.float() if value.is_floating_point() else value for key, value in toy_batch(model).items()}
        return model, model.declared(), batch
    fusion_type, _, feature = name.partition("+")
    model = tiny_model(("image", "text"), fusion_type=fusion_type).train()
    batch = tiny_batch(("image", "text"), batch_size=ROWS)
    if feature == "lora":
        model = add_adapters(model, {"r": 4, "modules": "encoders"}).train()
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:  # they start at zero, where the other half has no gradient
                torch.nn.init.normal_(parameter, std=0.1)
    if feature == "checkpointing":
        model.gradient_checkpointing_enable()
    return model, modalities_of(model), batch


def rows_of(tree, rows: slice):
    return {k: rows_of(v, rows) for k, v in tree.items()} if isinstance(tree, dict) else tree[rows]


def wrap(model, wrapping: str):
    if wrapping == "ddp":
        return DistributedDataParallel(model)
    if wrapping == "ddp_unused":
        return DistributedDataParallel(model, find_unused_parameters=True)
    reshard = not wrapping.endswith("+kept")  # "+kept": full parameters stay between forward and backward
    wrapping = wrapping.removesuffix("+kept")
    if wrapping == "fsdp_blocks":  # every encoder, every fusion layer, then the rest
        base = model.cross_modal if hasattr(model, "cross_modal") else model
        for child in list(base.encoders.values()) if hasattr(base, "encoders") else []:
            fully_shard(child, reshard_after_forward=reshard)
        if hasattr(base, "fusion"):
            for module in base.fusion.modules():
                if type(module).__name__ == "FusionLayer":
                    fully_shard(module, reshard_after_forward=reshard)
    elif wrapping == "fsdp_fusion":  # the fusion apart
        fully_shard(model.cross_modal.fusion if hasattr(model, "cross_modal") else model.head)
    fully_shard(model)
    return model


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def three_steps(model, batches, accumulate: int = 1, no_sync=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = None
    for _ in range(3):
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            if no_sync is not None and not last:
                with no_sync():
                    loss_of(model, batch, accumulate).backward()
            else:
                loss_of(model, batch, accumulate).backward()
        grads = {n: full(p.grad).clone() for n, p in model.named_parameters() if p.grad is not None}
        first = first or grads
        optimizer.step()
        optimizer.zero_grad()
    return first, {name: full(parameter.detach()).clone() for name, parameter in model.named_parameters()}


def loss_of(model, batch, accumulate):
    return model(**batch)["loss"] / accumulate


def compare(what: str, actual, expected) -> None:
    actual = {name.removeprefix("module."): value for name, value in actual.items()}
    missing = [n for n in expected if n not in actual and expected[n].abs().max() > 0]
    assert not missing, f"{what}: nothing for {missing}"
    worst = max((float((actual[n] - expected[n]).abs().max()), n) for n in expected if n in actual)
    assert worst[0] < 1e-6, f"{what}: {worst}"


def run_all(rank: int, cases: list[str], done: str) -> None:
    """Runs cases `WRAPPING:METHOD:MODEL`; their names go to the file `done`, one after the other."""
    for case in cases:
        run(*case.split(":"))
        dist.barrier()
        if rank == 0:
            with open(done, "a") as file:
                file.write(f"{case}\n")


def run(wrapping: str, method: str, name: str) -> None:
    """One case: raises where a gradient or a weight is not that of the single process."""
    rank = dist.get_rank()
    model, modalities, batch = build(name)
    reference = copy.deepcopy(model)
    with disentangle(reference, modalities, **settings(method)):
        expected = three_steps(reference, [batch])
    half = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    accumulated = wrapping.endswith("+no_sync")
    wrapping = wrapping.removesuffix("+no_sync")
    before_wrapping = wrapping.endswith("+first")
    wrapping = wrapping.removesuffix("+first")
    if before_wrapping:
        disentangle(model, modalities, **settings(method))
        wrapped = wrap(model, wrapping)
    else:
        wrapped = wrap(model, wrapping)
        disentangle(wrapped, modalities, **settings(method))
    if accumulated:
        quarter = ROWS // 4
        parts = [rows_of(batch, slice(half.start + i * quarter, half.start + (i + 1) * quarter)) for i in range(2)]
        actual = three_steps(wrapped, parts, accumulate=2, no_sync=wrapped.no_sync)
    else:
        actual = three_steps(wrapped, [rows_of(batch, half)])
    compare("gradients", actual[0], expected[0])
    compare("weights after three steps", actual[1], expected[1])
