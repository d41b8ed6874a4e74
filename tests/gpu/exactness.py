"""DGL's gradients on a device against the oracle, in every precision; and steps that never wait for the device."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_dgl import disentangle
from hf_dgl.method.outputs import map_tensors
from tests.tiny import tiny_batch, tiny_model

NAMES = ("image", "text")
BOUNDS = {"float64": 1e-10, "float32": 1e-4, "checkpointing": 1e-4, "compiled": 1e-3, "fsdp2": 1e-4}
BOUNDS |= {"bf16": 8e-2, "fp16 with a scaler": 2e-2}
"""Largest difference of a gradient, relative to the largest gradient there is."""


def build(device: str, dtype: torch.dtype = torch.float32, fusion_type: str = "cross_attention") -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = tiny_model(NAMES, fusion_type=fusion_type).to(device, dtype).train()
    cast = lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None)  # noqa: E731
    return model, map_tensors(cast, tiny_batch(NAMES))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    whole = lambda tensor: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # noqa: E731
    return {n: whole(p.grad).detach().double().cpu() for n, p in model.named_parameters() if p.grad is not None}


def difference(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    assert actual.keys() == expected.keys(), actual.keys() ^ expected.keys()
    size = max(float(value.abs().max()) for value in expected.values())
    return max(float((actual[name] - expected[name]).abs().max()) for name in expected) / size


def oracle(device: str) -> dict[str, torch.Tensor]:
    """Plain autograd per loss and group, in float64, without any hook: each group takes its own loss's gradients."""
    model, batch = build(device, torch.float64)
    with disentangle(model) as handle:
        owners = dict(handle.partition.owners)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    inputs = {"fusion": batch, **{name: {name: batch[name], "labels": batch["labels"]} for name in NAMES}}
    expected = {}
    for group, given in inputs.items():
        found = torch.autograd.grad(model(**given).loss, list(named.values()), allow_unused=True)
        for (name, parameter), gradient in zip(named.items(), found, strict=True):
            if (next(iter(owners[name]), "fusion")) == group:
                expected[name] = torch.zeros_like(parameter) if gradient is None else gradient
    return {name: gradient.detach().cpu() for name, gradient in expected.items()}


def step(model: Any, batch: Any, autocast: torch.dtype | None = None, scaler: Any = None) -> None:
    context = torch.autocast(next(model.parameters()).device.type, autocast) if autocast else contextlib.nullcontext()
    with context:
        loss = model(**batch).loss
    (scaler.scale(loss) if scaler else loss).backward()


def exactness(device: str) -> dict[str, Any]:
    """Case -> largest relative difference, and whether it is within its bound."""
    with _full_precision():
        expected = oracle(device)
        found = {}
        for case in BOUNDS:
            found[case] = difference(_one(case, device), expected)
        for fusion_type in ("merged_attention", "concat", "gated"):  # by the check that users have, in float64
            model, batch = build(device, torch.float64, fusion_type)
            with disentangle(model) as handle:
                report = handle.check(batch)
            found[f"check: {fusion_type}"] = max(report.gradient_error.values())
    return {
        case: {"difference": value, "bound": (bound := BOUNDS.get(case, 1e-10)), "passed": value <= bound}
        for case, value in found.items()
    }


def _one(case: str, device: str) -> dict[str, torch.Tensor]:
    dtype = torch.float64 if case == "float64" else torch.float32
    model, batch = build(device, dtype)
    autocast = {"bf16": torch.bfloat16, "fp16 with a scaler": torch.float16}.get(case)
    scaler = torch.amp.GradScaler(device.partition(":")[0], init_scale=2.0**10) if "scaler" in case else None
    group = _alone_in_a_group() if case == "fsdp2" else contextlib.nullcontext()
    with group:
        if case == "checkpointing":
            model.gradient_checkpointing_enable()
        if case == "fsdp2":
            device_mesh = torch.distributed.init_device_mesh(device.partition(":")[0], (1,))
            for module in (*model.cross_modal.encoders.values(), model):
                fully_shard(module, mesh=device_mesh)
        with disentangle(model):
            if case == "compiled":
                model.compile(backend="inductor" if device.startswith("cuda") else "aot_eager")
            step(model, batch, autocast, scaler)
            if case == "compiled":  # the first step also decides on reuse
                model.zero_grad()
                step(model, batch)
        if scaler:
            scaler.unscale_(torch.optim.SGD(model.parameters(), lr=0.1))
        return gradients(model)


@contextlib.contextmanager
def _alone_in_a_group() -> Iterator[None]:
    """A process group of one."""
    with tempfile.NamedTemporaryFile() as file:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, init_method=f"file://{file.name}.group", rank=0, world_size=1)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")  # TF32 off
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def no_synchronisation(device: str) -> dict[str, Any]:
    """Three steps (forward, backward, AdamW) in which waiting for the device is an error. On a CPU: only run."""
    found = {}
    is_cuda = device.startswith("cuda")
    for name, autocast in (("fp32", None), ("bf16", torch.bfloat16)):
        model, batch = build(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        with disentangle(model):
            for index in range(4):
                if is_cuda and index == 1:  # the first step looks at the graph
                    torch.cuda.synchronize()
                    torch.cuda.set_sync_debug_mode("error")
                try:
                    step(model, batch, autocast)
                    optimizer.step()
                    optimizer.zero_grad()
                finally:
                    if is_cuda and index == 3:
                        torch.cuda.set_sync_debug_mode("default")
        found[name] = "no step waited" if is_cuda else "ran (a CPU waits for nobody)"
    return found
