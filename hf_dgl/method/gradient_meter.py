r"""The gradients that meet at an encoder's output, measured while training: how much of one is left beside the other.

Let $z_m$ be what encoder $m$ hands to the fusion. Two losses send a gradient there: the multimodal one
$g^\tau_m = \partial L_\tau / \partial z_m$, and that of the modality alone, $g_m = \partial L_m / \partial z_m$,
through the same fusion weights. The meter gives, for each modality,

| name | formula | meaning |
|---|---|---|
| ratio | $\|g^\tau_m\| / \|g_m\|$ | below 1, the company of the others suppresses what encoder $m$ would learn |
| cosine | $\langle g^\tau_m, g_m \rangle / (\|g^\tau_m\| \|g_m\|)$ | near 1, both want the same of the encoder |

with norms over all values of the batch's features. (The paper's claim, arXiv 2507.10213, section 3: joint training
makes the ratio fall.) Neither the weight `alpha` nor a scale of the total loss changes them.

Hooks on the features take the gradients as the one ordinary backward pass brings them. Where a step has no unimodal
pass of the modality (joint training), a *measuring pass* is added: the modality alone, from a detached copy of the
features, with the fusion's parameters not requiring gradients. Its gradient ends at that copy, so no parameter gets
anything of it. Numbers stay on the device until somebody takes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .outputs import map_tensors

RATIO, COSINE = 0, 1
"""Places in what is measured of a modality."""


class Measurement:
    """The gradients of one forward and backward.

    Args:
        weights: Measured modalities -> the factor of their unimodal loss in the total (a number, or a scalar tensor).
    """

    def __init__(self, weights: Mapping[str, Any]) -> None:
        self.weights = dict(weights)
        self._squares: dict[tuple[str, bool], Tensor] = {}  # (modality, alone) -> sum of squares
        self._products: dict[str, Tensor] = {}
        self._waiting: dict[tuple[str, Any, int], Tensor] = {}  # gradients whose counterpart has not come yet

    @torch.compiler.disable
    def watched(self, modality: str, call: Any, alone: bool, features: Any) -> Any:
        """A copy of an encoder's output, whose gradients are noted when backward brings them.

        Args:
            modality: Whose output; if it is not measured, `features` themselves are returned.
            call: Tells several calls of one encoder apart.
            alone: Whether this is the unimodal pass.
            features: Tree of tensors; those without a graph become leaves that require a gradient.
        """
        if modality not in self.weights:
            return features
        keys = iter(range(1_000_000))

        def watch(tensor: Tensor) -> Tensor:
            key = (modality, call, next(keys))
            if not tensor.is_floating_point():
                return tensor
            if not tensor.requires_grad:
                tensor = tensor.detach().requires_grad_()
            copy = tensor.clone()  # a model may write into it in place, which a leaf forbids
            copy.register_hook(functools.partial(self._note, key, alone))
            return copy

        return map_tensors(watch, features)

    @torch.no_grad()
    def _note(self, key: tuple[str, Any, int], alone: bool, gradient: Tensor) -> None:
        gradient = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
        modality = key[0]
        square = gradient.square().sum()
        before = self._squares.get((modality, alone))
        self._squares[modality, alone] = square if before is None else before + square.to(before.device)
        other = self._waiting.pop(key, None)
        if other is None:
            self._waiting[key] = gradient
        else:
            product, so_far = (gradient * other).sum(), self._products.get(modality)
            self._products[modality] = product if so_far is None else so_far + product.to(so_far.device)

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """Modality -> `[ratio, cosine]`; NaN where a gradient is zero. Without those of which one never came."""
        found = {}
        for name, weight in self.weights.items():
            if (name, False) not in self._squares or (name, True) not in self._squares:
                continue
            together, alone = self._squares[name, False].sqrt(), self._squares[name, True].sqrt()
            product = self._products.get(name, torch.zeros_like(alone))
            pair = torch.stack([together * weight / alone, product / (together * alone)])
            found[name] = torch.where(pair.isfinite(), pair, torch.nan)
        return found


class GradientMeter:
    """Measures during training; `handle.meter = GradientMeter()` switches it on for a disentangled model.

    Args:
        every: Measure at every so-manieth call of the model, beginning with the first.

    Raises:
        ValueError: `every` is below 1.

    Example:

        >>> handle = disentangle(model, {"image": "vision_model", "text": "text_model"}, alpha=0.0,
        ...                      multimodal_to_encoders=1.0)  # joint training
        >>> handle.meter = GradientMeter(every=10)
        >>> for batch in loader:
        ...     model(**batch).loss.backward()
        >>> handle.meter.take()  # a dict per measurement: modality -> tensor([ratio, cosine])
        [{'image': tensor([0.98, 0.99]), 'text': tensor([1.01, 0.99])}, ...]
    """

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every: expected at least 1 (measure at every step), got {every}.")
        self.every = every
        self._calls = 0
        self._open: Measurement | None = None
        self._results: list[dict[str, Tensor]] = []

    def is_due(self) -> bool:
        """Counts a call of the model in training; whether it is to be measured."""
        self._close()
        self._calls += 1
        return (self._calls - 1) % self.every == 0

    def begin(self, weights: Mapping[str, Any]) -> Measurement:
        """Opens the measurement of the present call; the next call, or [`GradientMeter.take`], ends it."""
        self._open = Measurement(weights)
        return self._open

    def take(self) -> list[dict[str, Tensor]]:
        """What was measured since it was last taken, in order; on the device, nothing waits for it.

        Returns:
            A dict per measurement: modality -> float tensor `[ratio, cosine]`, NaN where a gradient was zero.
        """
        self._close()
        taken, self._results = self._results, []
        return taken

    def state_dict(self) -> dict[str, Any]:
        """What is measured and not taken yet, and where the counting of calls is; for JSON (waits for the device)."""
        self._close()
        results = [{name: _without_nan(pair.tolist()) for name, pair in step.items()} for step in self._results]
        return {"calls": self._calls, "results": results}

    def load_state_dict(self, kept: Mapping[str, Any]) -> None:
        """Goes on from what [`GradientMeter.state_dict`] gave."""
        self._calls, self._open = kept["calls"], None
        self._results = [{name: _with_nan(pair) for name, pair in step.items()} for step in kept["results"]]

    def _close(self) -> None:
        measured, self._open = self._open, None
        if measured is not None and (result := measured.result()):
            self._results.append(result)

    def means(
        self, modalities: Sequence[str], device: Any, reduce: Callable[..., Any] | None = None
    ) -> dict[str, float]:
        """Means of what was measured since it was last taken, ready to be logged: this waits for the device.

        Args:
            modalities: Names; the same on every process.
            device: Of the sums.
            reduce: Adds a tensor up over the processes, as `Accelerator.reduce`. None: there is one.

        Returns:
            `grad_ratio_<modality>` and `grad_cosine_<modality>`, of those that were measured.

        Example:

            >>> handle.meter.means(["image", "text"], "cpu")
            {'grad_ratio_image': 0.41, 'grad_cosine_image': 0.93, 'grad_ratio_text': 0.52, 'grad_cosine_text': 0.95}
        """
        nothing = torch.full((2,), torch.nan, device=device)
        taken = [torch.stack([step.get(name, nothing).to(nothing) for name in modalities]) for step in self.take()]
        steps = torch.stack([torch.full((len(modalities), 2), torch.nan, device=device), *taken])  # [steps, M, 2]
        sums = torch.stack([steps.nansum(0), steps.isfinite().float().sum(0)])
        total, count = (sums if reduce is None else reduce(sums, reduction="sum")).tolist()
        return {
            f"grad_{what}_{name}": total[row][column] / count[row][column]
            for row, name in enumerate(modalities)
            for column, what in enumerate(("ratio", "cosine"))
            if count[row][column]
        }


def _without_nan(numbers: list[float]) -> list[float | None]:
    """JSON has no NaN."""
    return [None if number != number else number for number in numbers]


def _with_nan(numbers: list[float | None]) -> Tensor:
    return torch.tensor([torch.nan if number is None else number for number in numbers])
