"""Trainer callbacks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopWhenNotFinite(TrainerCallback):
    """Ends a training run whose loss is NaN or infinite, before anything is evaluated or saved.

    It looks at what is logged and, where a checkpoint is due, at the weights: reading the loss at every step would
    make the processor wait for the accelerator.

    Raises:
        FloatingPointError: says at which step it was noticed and what to change.

    Example:

        >>> trainer.add_callback(StopWhenNotFinite())
    """

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        for key, value in (logs or {}).items():
            if key.startswith("loss") and isinstance(value, float) and not math.isfinite(value):
                raise _not_finite(f"The loss ({key}) is {value}", args, state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_save or control.should_evaluate:
            self._check_weights(args, state, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_save or control.should_evaluate:
            self._check_weights(args, state, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._check_weights(args, state, kwargs["model"])

    def _check_weights(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        finite = [parameter.detach().isfinite().all() for parameter in model.parameters() if parameter.numel()]
        if not torch.stack([flag.cpu() for flag in finite]).all():
            raise _not_finite("Weights are not finite", args, state)


def _not_finite(what: str, args: TrainingArguments, state: TrainerState) -> FloatingPointError:
    history = [entry for entry in state.log_history if math.isfinite(entry.get("loss", math.nan))]
    last = f" (last finite loss: {history[-1]['loss']:.4g} at step {history[-1]['step']})" if history else ""
    return FloatingPointError(
        f"{what} at step {state.global_step}{last}. Training stopped, and what lies in {args.output_dir} was not "
        f"overwritten. Try a lower learning_rate (it is {args.learning_rate:g}), some warmup_steps, a smaller "
        f"max_grad_norm (it is {args.max_grad_norm:g}), or bf16 in place of fp16; if it happens at once, look for "
        "broken values in the data."
    )
