"""What a training step costs, as a ratio to joint training: FLOPs, time, activation memory.

Joint training, DGL and the paper's two backward passes ([`Procedures`]) are measured on one model and batch in one
interleaved run, beside the *floor*: encoders and fusion forward and backward once, and for each modality alone one
forward and one input-gradient backward of the fusion. No procedure with DGL's gradients needs less.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from hf_dgl.architectures import modalities_of
from hf_dgl.architectures.attach import disentangle
from hf_dgl.models import CrossModalConfig
from hf_dgl.recipe.recipe import Recipe

from .communication import communications, is_launched
from .memory import memory_of, saved_by_part
from .procedures import Procedures, Step
from .result import BenchmarkResult, Cost
from .shapes import Shape, build, from_recipe, smaller


def benchmark(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    alpha: float | Mapping[str, float] = 1.0,
    steps: int = 10,
    autocast: torch.dtype | None = None,
) -> BenchmarkResult:
    """Measures a step of joint training, of DGL and of the paper's procedure on one model and batch.

    Args:
        model: A [`CrossModalForSequenceClassification`] that is not disentangled yet. Its gradients are cleared;
            nothing else of it changes.
        batch: Arguments of its forward, `labels` included, on its device.
        alpha: Weights of the unimodal losses.
        steps: Timed rounds of one step of each procedure; 0: only count. Fake tensors are never timed.
        autocast: Precision of the forward, as in mixed precision training.

    Raises:
        ValueError: a model or batch that cannot be measured; see [`Procedures`].

    Example:

        >>> benchmark(model, batch, steps=5).ratios("dgl")
        {'flops': 1.095, 'seconds': 1.1, 'memory': 1.09}
    """
    was_training = model.training
    model.train()
    try:
        with disentangle(model, modalities_of(model), alpha=alpha) as handle:
            procedures = Procedures(handle, batch, autocast)
            return _measure(procedures, steps)
    finally:
        model.zero_grad()
        model.train(was_training)


def benchmark_shape(
    shape: Shape,
    *,
    steps: int = 10,
    device: str | None = None,
    bf16: bool = False,
    depths: Sequence[int] = (),
    depth_steps: int = 0,
) -> BenchmarkResult:
    """[`benchmark`] on a model of any shape with random inputs.

    Args:
        shape: Of the model and its batch.
        steps: Timed rounds; 0: only count, on fake tensors, whatever the size.
        device: Default: the accelerator if there is one, else the CPU.
        bf16: bf16 mixed precision.
        depths: Depths of the fusion for a [`sweep`], with a third modality if the shape has two. Default: no sweep.
        depth_steps: Timed rounds at each of its points.

    Example:

        >>> print(benchmark_shape(Shape(hidden_size=256), steps=0).table())
    """
    device, autocast = _device(device), torch.bfloat16 if bf16 else None
    with build(shape.config(), shape.batch(), device, fake=steps == 0) as (model, batch):
        result = benchmark(model, batch, steps=steps, autocast=autocast)
    if is_launched():
        with build(shape.config(), shape.batch(), device) as (model, batch):
            result.communication = communications(model, batch)
    if depths:
        shape = replace(shape, audio_layers=shape.audio_layers or max(shape.image_layers, shape.text_layers))
        result.sweep = sweep(shape.config(), shape.batch(), depths, depth_steps, device, autocast)
    return result


def benchmark_recipe(
    recipe: Recipe,
    *,
    steps: int = 10,
    device: str | None = None,
    bf16: bool = False,
    depths: Sequence[int] = (),
    depth_steps: int = 0,
) -> BenchmarkResult:
    """[`benchmark`] on the model of a recipe and a batch of its training data. The arguments are those of
    [`benchmark_shape`]; a [`sweep`] has the recipe's modalities.

    Example:

        >>> benchmark_recipe(load_recipe("recipes/quickstart/image_text.yaml"), steps=5).above_floor
        0.0
    """
    device, autocast = _device(device), torch.bfloat16 if bf16 or recipe.training.bf16 else None
    model, batch, fetch = from_recipe(recipe, device)
    result = benchmark(model, batch, steps=steps, autocast=autocast)
    result.fetching = [_seconds(model, fetch) for _ in range(steps)]
    if is_launched():
        result.communication = communications(model, batch)
    if depths:
        result.sweep = sweep(model.config, batch, depths, depth_steps, device, autocast)
    return result


def _device(device: str | None) -> str:
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is not None and is_launched():  # each process its own one
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    return device or (found.type if found is not None else "cpu")


def sweep(
    config: CrossModalConfig,
    batch: Mapping[str, Any],
    depths: Sequence[int] = (1, 2, 4, 6),
    steps: int = 0,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
) -> list[dict[str, Any]]:
    """The ratios to joint training over depths of the fusion and numbers of modalities.

    Args:
        config: The model's; its first two modalities, its first three, ..., are measured. It is not changed.
        batch: Arguments of its forward, with all its modalities.
        depths: Numbers of fusion layers. Fusions without layers are measured once.
        steps, device, autocast: As in [`benchmark_shape`].

    Returns:
        For each point `num_modalities`, `fusion_layers`, and `ratios` (procedure -> as [`BenchmarkResult.ratios`]).

    Example:

        >>> sweep(model.config, batch, depths=(2,))[0]["ratios"]["dgl"]["flops"]
        1.095
    """
    if not config.fusion_type.endswith("_attention"):
        depths = (0,)
    points = []
    for num_modalities in range(min(2, len(config.modalities)), len(config.modalities) + 1):
        for depth in depths:
            part = smaller(config, batch, config.modalities[:num_modalities], depth)
            with build(*part, device, fake=steps == 0) as (model, inputs):
                result = benchmark(model, inputs, steps=steps, autocast=autocast)
            ratios = {name: result.ratios(name) for name in result.costs}
            points.append({"num_modalities": num_modalities, "fusion_layers": depth, "ratios": ratios})
    return points


# ---- measuring ------------------------------------------------------------------------------------------------


def _measure(procedures: Procedures, steps: int) -> BenchmarkResult:
    model = procedures.model
    is_fake = isinstance(next(model.parameters()), FakeTensor)
    timed = {"joint": procedures.joint, "dgl": procedures.dgl, "two_backward": procedures.two_backward}
    first_step = _seconds(model, procedures.dgl)  # plans its passes; kernels warm up while the others are counted
    costs = {name: _cost(model, step) for name, step in timed.items()}
    in_joint, in_dgl = (_cost(model, step) for step in procedures.fusion_parts())
    costs["floor"] = Cost(costs["joint"].flops - in_joint.flops + in_dgl.flops, memory=0)
    if procedures.device.type != "cuda" or is_fake:  # on a GPU, memory is a peak, and peaks do not add up
        costs["floor"].memory = costs["joint"].memory - in_joint.memory + in_dgl.memory
    rounds = 0 if is_fake else steps
    for _ in range(rounds):
        for name, step in timed.items():
            costs[name].seconds.append(_seconds(model, step))
    bookkeeping = [_bookkeeping(procedures) for _ in range(min(rounds, 5))]
    description = {
        "modalities": procedures.modalities,
        "batch_size": len(procedures.batch["labels"]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "fusion_parameters": sum(parameter.numel() for parameter in procedures.fusion_parameters),
        "device": f"{procedures.device.type}{' (counted only)' if is_fake else ''}",
        "threads": torch.get_num_threads(),
        "autocast": None if procedures.autocast is None else str(procedures.autocast).removeprefix("torch."),
        "torch": torch.__version__,
    }
    return BenchmarkResult(
        costs,
        statistics.median(bookkeeping) if bookkeeping else None,
        description,
        None if is_fake else _evaluation(procedures),  # upstream's masks look at values there
        first_step if rounds else None,
        _saved(procedures),
    )


def _evaluation(procedures: Procedures) -> float:
    """By operations: each encoder runs once, and the fusion once more for each modality."""
    model, handle = procedures.model, procedures.handle
    model.eval()
    counts = []
    try:
        for context in (nullcontext(), handle.unimodal_outputs()):
            with context, torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
                model(**procedures.batch)
            counts.append(counter.get_total_flops())
    finally:
        model.train()
    return counts[1] / counts[0]


def _saved(procedures: Procedures) -> dict[str, dict[str, int]]:
    model, encoders = procedures.model, procedures.encoders
    steps = {"joint": procedures.joint, "dgl": procedures.dgl}
    found = {name: saved_by_part(model, encoders, step) for name, step in steps.items()}
    checkpointed: Any = model
    if getattr(model, "supports_gradient_checkpointing", False) and not checkpointed.is_gradient_checkpointing:
        # The gradients are not looked at, and fake tensors have no random numbers to keep.
        checkpointed.gradient_checkpointing_enable({"preserve_rng_state": False, "use_reentrant": False})
        try:
            for name, step in steps.items():
                found[f"{name}, checkpointed"] = saved_by_part(model, encoders, step)
        finally:
            checkpointed.gradient_checkpointing_disable()
    return found


_CPU_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}
"""The CPU's fused attention, which the counter does not know: operation -> FLOPs, from the shapes of its inputs."""


def _cost(model: nn.Module, step: Step) -> Cost:
    model.zero_grad()
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        memory = memory_of(model, step)
    return Cost(counter.get_total_flops(), memory)


def _seconds(model: nn.Module, step: Callable[[], object]) -> float:
    model.zero_grad()
    _synchronize()
    start = time.perf_counter()
    step()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _bookkeeping(procedures: Procedures) -> float:
    """Seconds of one DGL forward that are not spent in the model's own forwards."""
    model, inside = procedures.model, 0.0
    forward = model.forward

    def timed_forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        start = time.perf_counter()
        try:
            return forward(*args, **kwargs)
        finally:
            inside += time.perf_counter() - start

    model.forward = timed_forward
    try:
        start = time.perf_counter()
        output = model(**procedures.batch)
        seconds = time.perf_counter() - start - inside
        del output  # only now: freeing its graph takes time, too
        return seconds
    finally:
        del model.forward
