"""`DiagnoseGradients`: the gradient part of a diagnosis, in any run of a `DGLTrainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_dgl.method.disentangle import Disentangled
from hf_dgl.method.forward_call import unwrapped
from hf_dgl.method.gradient_meter import GradientMeter

logger = logging.get_logger(__name__)

SUPPRESSED = 0.75
"""Ratio of the gradients in the last third of a run, below which they count as suppressed."""


class Suppression(NamedTuple):
    """How a modality's gradient ratio went over a run.

    Args:
        first: Ratio at the first measurements (the first tenth of them).
        last: Mean ratio in the last third; `error` is its standard error over the measurements.
        cosine: Mean cosine in the last third.
    """

    first: float
    last: float
    error: float
    cosine: float

    def verdict(self) -> str:
        """`suppressed` (the ratio is below [`SUPPRESSED`]), `slightly suppressed` (below 1), or `not suppressed`: by
        twice the standard error."""
        highest = self.last + 2 * self.error
        return "suppressed" if highest < SUPPRESSED else "slightly suppressed" if highest < 1 else "not suppressed"


def suppression(history: Sequence[Mapping[str, float]], modality: str) -> Suppression | None:
    """From the entries of a log with `grad_ratio_<modality>`; None with fewer than three of them.

    Example:

        >>> log = [{"step": i, "grad_ratio_image": 1 - 0.1 * i, "grad_cosine_image": 0.9} for i in range(7)]
        >>> round(suppression(log, "image").last, 3)
        0.5
    """
    pairs = [
        (entry[f"grad_ratio_{modality}"], entry.get(f"grad_cosine_{modality}", float("nan")))
        for entry in history
        if f"grad_ratio_{modality}" in entry
    ]
    if len(pairs) < 3:
        return None
    first, last = pairs[: max(1, len(pairs) // 10)], pairs[-max(2, len(pairs) // 3) :]
    ratios = [ratio for ratio, _ in last]
    mean = sum(ratios) / len(ratios)
    variance = sum((ratio - mean) ** 2 for ratio in ratios) / (len(ratios) - 1)
    return Suppression(
        sum(ratio for ratio, _ in first) / len(first),
        mean,
        (variance / len(ratios)) ** 0.5,
        sum(cosine for _, cosine in last) / len(last),
    )


class DiagnoseGradients(TrainerCallback):
    """Measures the gradients at the encoders' outputs during a run, and says at its end which are suppressed.

    It switches on what `log_gradients: true` logs ([`hf_dgl.method.gradient_meter`]) and keeps it. The numbers are
    read from the device when the Trainer logs, never at a step.

    Args:
        every: Measure at every so-manieth forward. A measurement costs nothing where the method has unimodal losses;
            in joint training it runs the fusion once more per modality. Default: a meter that `log_gradients` has
            set is left as it is; else every one.

    Attributes:
        history: What was logged: `step`, `grad_ratio_<modality>`, `grad_cosine_<modality>`, `loss_<modality>`.

    Raises:
        ValueError: when training begins with a model that is not disentangled (another Trainer).

    Example:

        >>> callback = DiagnoseGradients()
        >>> trainer = DGLTrainer(model, DGLTrainingArguments("out", method="joint", logging_steps=10),
        ...                      train_dataset=train, data_collator=collator, callbacks=[callback])
        >>> trainer.train()
        >>> callback.suppression("image")
        Suppression(first=1.02, last=0.41, error=0.02, cosine=0.93)
        >>> print(callback.summary())
        image: the multimodal gradient is 1.02 of the unimodal one at first, 0.41 ± 0.02 at last: suppressed.
    """

    def __init__(self, every: int | None = None) -> None:
        self.every = every
        self.history: list[dict[str, float]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        handle = _handle_of(kwargs["model"])
        if handle.meter is None or self.every is not None:
            handle.meter = GradientMeter(self.every or 1)
        self._modalities = list(handle.partition.modalities)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        kept = {key: value for key, value in (logs or {}).items() if key.startswith(("grad_", "loss_"))}
        if "loss" in (logs or {}):
            self.history.append({"step": state.global_step, **kept})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logger.info(self.summary())

    def suppression(self, modality: str) -> Suppression | None:
        """How the modality's ratio went; None with fewer than three log entries that have it."""
        return suppression(self.history, modality)

    def summary(self) -> str:
        """A sentence per modality."""
        return "\n".join(in_words(name, self.suppression(name)) for name in self._modalities)


def in_words(name: str, found: Suppression | None) -> str:
    """A sentence about one modality's gradients."""
    if found is None:
        return f"{name}: its gradients were not measured (or too rarely: three log entries are needed)."
    return (
        f"{name}: the multimodal gradient is {found.first:.2f} of the unimodal one at first, {found.last:.2f} ± "
        f"{found.error:.2f} at last: {found.verdict()}."
    )


def _handle_of(model: nn.Module) -> Disentangled:
    """What [`disentangle`] returned for a model: its hooks know it."""
    for hook in unwrapped(model)._forward_hooks.values():
        handle = getattr(hook, "__self__", None)
        if isinstance(handle, Disentangled):
            return handle
    raise ValueError(
        "DiagnoseGradients measures models that are disentangled, and this one is not: use DGLTrainer (joint training "
        "is `method='joint'`)."
    )
