"""Two proofs that a model is routed rightly, on one of its own batches.

The *exact-gradient check* compares what one disentangled backward leaves in `.grad` with `torch.autograd.grad` per
loss and group, computed without any truncation. It cannot see a wrong partition, because it shares it. The *leak
check* can: it changes the contents of the absent modalities (`variation.py`), and a unimodal loss that moves was not
unimodal.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .cut import Cut
from .engine import Engine
from .outputs import entry, tensors_in
from .passes import MULTIMODAL, Pass, Run
from .traces import without_a_trace
from .variation import same, special_tokens, varied


class CheckError(RuntimeError):
    """A check failed; the message is the whole report."""


@dataclass(frozen=True)
class CheckReport:
    """What [`check`] measured.

    Attributes:
        gradient_error: Group (modality or `fusion`) -> largest absolute difference between a gradient and the
            oracle's, relative to the group's largest gradient.
        leak: Modality -> largest change of its unimodal output when the other modalities' inputs are changed, relative
            to the output's size; None where there is nothing to change (no `inputs` declared, or a single word).
        own_gradient: Modality -> largest gradient that its own loss gives its encoder, relative to what the multimodal
            loss gives it. Not judged here; at rounding errors, the modality alone has nothing to learn from.
        tolerance: Above it a check has failed (by the parameters' dtype).
    """

    gradient_error: dict[str, float]
    leak: dict[str, float | None]
    own_gradient: dict[str, float]
    tolerance: float

    @property
    def passed(self) -> bool:
        leaks = [leak for leak in self.leak.values() if leak is not None]
        return all(value <= self.tolerance for value in [*self.gradient_error.values(), *leaks])

    def __str__(self) -> str:
        lines = [f"tolerance {self.tolerance:g}"]
        for group, error in self.gradient_error.items():
            verdict = "exact" if error <= self.tolerance else "WRONG"
            lines.append(f"gradients of {group}: {verdict} (relative error {error:.1e})")
        for modality, leak in self.leak.items():
            if leak is None:
                lines.append(
                    f"{modality} alone: leak not checked (the other modalities declare no `inputs`, or this batch has "
                    "no contents there that could be others)"
                )
            elif leak <= self.tolerance:
                lines.append(f"{modality} alone: no leak ({leak:.1e})")
            elif math.isnan(leak):
                lines.append(f"{modality} alone: UNDEFINED, its loss or logits are NaN where the others are absent.")
            else:
                lines.append(
                    f"{modality} alone: LEAK, its output changes by {leak:.1e} with the inputs of the other "
                    "modalities. Something that reads them is not in any `encoder`; add its module path."
                )
        return "\n".join(lines)


def check(handle: Engine, batch: Mapping[str, Any]) -> CheckReport:
    """Runs both checks of this file; the model, its gradients, buffers and random state are left as they were.

    Args:
        handle: From [`hf_dgl.disentangle`].
        batch: Keyword arguments of the model, with labels (the model must compute a loss).

    Returns:
        The report, to be printed.

    Raises:
        CheckError: if a check fails.
        ValueError: if the model gives no loss for this batch.
    """
    parameter = next(handle.model.parameters())
    # Room for sums in another order, far below the size of a misrouted gradient.
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4}.get(parameter.dtype, 3e-2)
    with _quiet(handle):
        actual = _actual_gradients(handle, batch)
        oracle = _Oracle(handle, batch, actual)
        errors = _gradient_errors(handle, actual, oracle.expected)
        report = CheckReport(errors, _leaks(handle, batch, oracle.shown), oracle.own_gradient, tolerance)
    if not report.passed:
        raise CheckError(str(report))
    return report


@contextmanager
def _quiet(handle: Engine) -> Iterator[None]:
    """No dropout (every module but the root in eval mode), the same noise in all passes, and no trace in gradients,
    buffers and random state."""
    model = handle.model
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with without_a_trace(model), _SameDraws():  # `training` of every module included
            model.eval()
            model.training = True  # the hooks look at the root
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


class _SameDraws(TorchDispatchMode):
    """Every operation that draws random numbers draws the same ones whenever it is called, in whatever order: ViLT
    draws its patches in evaluation, too, and passes can be compared only if they draw alike."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            torch.manual_seed(0)
        return func(*args, **(kwargs or {}))


def _actual_gradients(handle: Engine, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What one disentangled backward leaves in the `.grad` of each trainable parameter."""
    loss = entry(handle.model(**batch), "loss")
    if loss is None:
        raise ValueError(
            f"The check needs a loss, and {type(handle.model).__name__} returned none: give a batch with labels, "
            "and let the forward compute the loss from them and return it as `loss` of a dict or a `ModelOutput` (not "
            "of a tuple)."
        )
    loss.backward()
    trainable = {name: p for name, p in handle.model.named_parameters() if p.requires_grad}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trainable.items()}


class _Oracle:
    """DGL's definition: every loss with everything trainable, and then each group takes its own terms.

    Attributes:
        expected: Gradient of each trainable parameter.
        own_gradient: As in [`CheckReport`].
        shown: Modality -> what may not move in its unimodal output.
    """

    def __init__(self, handle: Engine, batch: Mapping[str, Any], trainable: Iterable[str]) -> None:
        owners, parameters = handle.partition.owners, dict(handle.model.named_parameters())
        self.expected = {name: torch.zeros_like(parameters[name]) for name in trainable}
        self.shown: dict[str, torch.Tensor] = {}
        sizes: dict[tuple[str, str], float] = {}  # of a loss's gradients in a group
        for term in [MULTIMODAL, *handle.partition.modalities]:
            output = _untruncated(handle, batch, term)
            if term != MULTIMODAL:
                self.shown[term] = _shown(output)
            gradients = _gradients(entry(output, "loss"), {name: parameters[name] for name in self.expected})
            for name, gradient in gradients.items():
                self.expected[name] += _weight(handle, term, owners[name]) * gradient
            for modality in handle.partition.modalities if term == MULTIMODAL else [term]:
                own = [gradient for name, gradient in gradients.items() if modality in owners[name]]
                sizes[term, modality] = _largest(own) if own else 0.0
        self.own_gradient = {
            name: sizes[name, name] / sizes[MULTIMODAL, name]
            for name in handle.partition.modalities
            if sizes[MULTIMODAL, name] > 0
        }


def _gradients(loss: torch.Tensor, parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """Of those that the loss depends on."""
    if not loss.requires_grad:
        return {}
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


def _gradient_errors(
    handle: Engine, actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    errors = {}
    for group in handle.partition.groups:
        names = [name for name in handle.partition.parameter_names(group) if name in actual]
        if names:
            size = _largest(expected[name] for name in names)
            error = _largest(actual[name] - expected[name] for name in names)
            errors[group] = error / size if size else error
    return errors


def _largest(tensors: Iterable[torch.Tensor]) -> float:
    """The largest absolute value; NaN if one is (Python's `max` may lose it)."""
    return float(torch.stack([tensor.detach().abs().max().double().cpu() for tensor in tensors]).max())


def _weight(handle: Engine, term: str, owners: frozenset[str]) -> float:
    """How much of a loss's gradient a parameter gets (the table of `disentangle.py`)."""
    if term == MULTIMODAL:
        return max((float(handle.multimodal_to_encoders[owner]) for owner in owners), default=1.0)
    if owners:
        return handle.alpha[term] if term in owners else 0.0
    return handle.alpha[term] if handle.unimodal_to_fusion else 0.0


def _untruncated(handle: Engine, batch: Mapping[str, Any], term: str) -> Any:
    """The model's output for one loss with nothing truncated: the other encoders absent, the rest as in plain
    training."""
    everything = frozenset(handle.partition.groups)
    passes = [Pass(name, everything, 1.0) for name in dict.fromkeys((MULTIMODAL, term))]
    cuts = {name: Cut(frozenset(), "the check reuses nothing") for name in handle.partition.modalities}
    run = Run(handle.model, handle.partition, dict(batch), passes, cuts, handle.multimodal_to_encoders, training=True)
    return handle.run_passes(run)[-1]


def _leaks(handle: Engine, batch: Mapping[str, Any], shown: Mapping[str, torch.Tensor]) -> dict[str, float | None]:
    leaks: dict[str, float | None] = {}
    special = special_tokens(handle.model)
    for name in handle.partition.modalities:
        changed = dict(batch)
        for other, modality in handle.partition.modalities.items():
            if other != name:
                vary = modality.vary or functools.partial(varied, keys=modality.inputs, special=special)
                changed = vary(changed)
        if same(batch, changed):
            leaks[name] = None
            continue
        # With a graph, as the first output: attention takes another path without one, and rounds otherwise.
        leaks[name] = _relative_difference(shown[name], _shown(_untruncated(handle, changed, name)))
    return leaks


def _relative_difference(before: torch.Tensor, after: torch.Tensor) -> float:
    """Between two outputs, relative to the size of the first. Entries at -inf (classes that are masked out) are no
    difference where they stay there, and infinite where they do not."""
    size = before[before.isfinite()].abs().max() if bool(before.isfinite().any()) else before.new_zeros(())
    return float(torch.where(before == after, 0.0, (before - after).abs()).max() / size.clamp_min(1e-12))


def _shown(output: Any) -> torch.Tensor:
    """What must not move: the loss and the logits (other entries may show the absent modality's own features)."""
    named = [entry(output, key) for key in ("loss", "logits")]
    found = [tensor for tensor in named if isinstance(tensor, torch.Tensor)]
    found = found or [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
    return torch.cat([tensor.detach().double().flatten() for tensor in found])
