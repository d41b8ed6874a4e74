"""Trainer callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_dgl.method.disentangle import Disentangled
from hf_dgl.method.explained import LATE_FUSION, Explained
from hf_dgl.method.forward_call import below_adapters
from hf_dgl.method.passes import MULTIMODAL

from .checkpoints import newest_complete

logger = logging.get_logger(__name__)


class NoteEpochs(TrainerCallback):
    """Notes whether the last step of an epoch was saved before what is due at the end of the epoch.

    Example:

        >>> trainer.add_callback(NoteEpochs())
    """

    def __init__(self) -> None:
        self._saved_step: int | None = None
        self.is_saved_at_last_step = False

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._saved_step, self.is_saved_at_last_step = None, False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._saved_step = state.global_step

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.is_saved_at_last_step = self._saved_step == state.global_step


class LeaveInputsAlone(TrainerCallback):
    """Takes off the hooks with which upstream makes inputs require gradients under activation checkpointing.

    Only the reentrant kind needs them, which DGL refuses; models that add to embeddings in place (BLIP, GIT) raise
    with them.

    Example:

        >>> trainer.add_callback(LeaveInputsAlone())
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = below_adapters(kwargs["model"])
        if args.activation_checkpointing and hasattr(model, "disable_input_require_grads"):
            model.disable_input_require_grads()  # type: ignore[operator]


class ComeLast(TrainerCallback):
    """Lets the hooks of the method run after those that wrapping the model for training has put on (DeepSpeed's).

    Args:
        handle: Gives the one of the model in training.

    Example:

        >>> trainer.add_callback(ComeLast(lambda: trainer.disentangled))
    """

    def __init__(self, handle: Callable[[], Disentangled | None]) -> None:
        self._handle = handle

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        handle = self._handle()
        if handle is not None:
            handle.come_last()


class RememberExplained(TrainerCallback):
    """Ends the steps of [`Explained`]; keeps its running shares in a checkpoint's `trainer_state.json`, and goes on
    from them.

    Args:
        explained: Gives what is kept; None: nothing is.
        is_followed: Whether anything is measured in this step, on any process.

    Example:

        >>> trainer.add_callback(RememberExplained(lambda: trainer.explained, lambda: trainer.disentangled.has_passes))
    """

    KEY = "Explained"

    def __init__(self, explained: Callable[[], Explained | None], is_followed: Callable[[], bool]) -> None:
        self._explained, self._is_followed = explained, is_followed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        states: Any = state.stateful_callbacks  # a dict by now, whatever its annotation says
        explained, kept = self._explained(), states.get(self.KEY)
        if explained is not None and kept is not None:
            if getattr(args, "method", None) == "adaptive_dgl" and LATE_FUSION not in kept:
                logger.warning(
                    "The checkpoint is of an hf_dgl whose `adaptive_dgl` had another rule: what is left of this run "
                    "follows today's. To train by one rule, start from the beginning."
                )
            explained.load_state_dict(kept)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        explained = self._explained()
        if explained is not None and self._is_followed():
            explained.step(args.device)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._keep(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._keep(state, control)

    def _keep(self, state: TrainerState, control: TrainerControl) -> None:
        explained = self._explained()
        if explained is not None and control.should_save:
            states: Any = state.stateful_callbacks
            states[self.KEY] = explained.state_dict()


class BlendAtEvaluations(TrainerCallback):
    """Ends a super-epoch of [`hf_dgl.method.baselines.Blending`] at each evaluation, and keeps it in checkpoints.

    Raises:
        ValueError: at the beginning of a training without evaluations.

    Example:

        >>> trainer.add_callback(BlendAtEvaluations(trainer))
    """

    KEY = "Blending"

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._trainer.blending is None:
            return
        if args.eval_strategy == "no" or self._trainer.eval_dataset is None:
            raise ValueError(
                "`method: g_blending` weighs the losses by what they are on validation data: give an `eval_dataset` "
                f"and set e.g. `eval_strategy: epoch` (got {str(args.eval_strategy)!r})."
            )
        if isinstance(self._trainer.eval_dataset, Mapping):
            names = list(self._trainer.eval_dataset)
            raise ValueError(
                f"`method: g_blending` weighs the losses by what they are on one validation set, got {names}: "
                f"pass `eval_dataset=datasets[{names[0]!r}]`, and score the others by `trainer.evaluate` afterwards."
            )
        states: Any = state.stateful_callbacks
        if self.KEY in states:
            self._trainer.blending.load_state_dict(states[self.KEY])

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        blending = self._trainer.blending
        if blending is None or not self._trainer.is_in_train:
            return
        metrics = metrics or {}
        keys = {name: "eval_loss" if name == MULTIMODAL else f"eval_loss_{name}" for name in blending.names}
        missing = [key for key in keys.values() if key not in metrics]
        if missing and "eval_runtime" in metrics:  # else it is one that the user has asked for, of another set
            raise ValueError(
                f"`method: g_blending` weighs the losses by what they are on the validation set, and there are none "
                f"of {missing}: its rows need labels, and some of them each modality."
            )
        if not missing:
            blending.end_of_super_epoch({name: metrics[key] for name, key in keys.items()})
        self._keep(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_save:
            self._keep(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_save:
            self._keep(state)

    def _keep(self, state: TrainerState) -> None:
        if self._trainer.blending is not None:
            states: Any = state.stateful_callbacks
            states[self.KEY] = self._trainer.blending.state_dict()


class CheckTheFirstBackward(TrainerCallback):
    """Asks the net below all losses ([`hf_dgl.method.net`]) after the first backward; later it has nothing to say.

    Args:
        handle: Gives the one of the model in training.
        check: Raises what else can be known then.

    Raises:
        RuntimeError: a unimodal loss trained nothing.

    Example:

        >>> trainer.add_callback(CheckTheFirstBackward(lambda: trainer.disentangled, trainer.check_losses_were_seen))
    """

    def __init__(self, handle: Callable[[], Disentangled | None], check: Callable[[], None]) -> None:
        self._handle, self._check = handle, check

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._verify()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._verify()

    def _verify(self) -> None:
        handle = self._handle()
        if handle is not None:
            handle.net.verify()
        self._check()


class WarnWhenStarved(TrainerCallback):
    """Says so, once for each modality, when an encoder learns nothing: its unimodal loss stays at chance level, and no
    other loss trains it.

    Args:
        shares: Modality -> share of the multimodal gradient that reaches its encoder.

    Example:

        >>> trainer.add_callback(WarnWhenStarved({"image": 0.0, "text": 0.0}))
    """

    _LEAST_STEPS, _LEAST_PART, _LEAST_EXPLAINED = 100, 0.2, 0.02

    def __init__(self, shares: Mapping[str, float]) -> None:
        self._starved_by_chance = [name for name, share in shares.items() if share == 0]

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if state.global_step < max(self._LEAST_STEPS, self._LEAST_PART * state.max_steps):
            return
        for name in list(self._starved_by_chance):
            if (logs or {}).get(f"explained_{name}", 1.0) < self._LEAST_EXPLAINED:
                self._starved_by_chance.remove(name)
                logger.warning(
                    f"After {state.global_step} steps, {name!r} alone explains nothing of the labels (its loss is at "
                    "chance level), and its encoder is trained by nothing else. If the label can only be told from "
                    "several modalities together, use `method: adaptive_dgl` or `joint`; if the learning rate is low, "
                    "wait."
                )


class StopWhenNotFinite(TrainerCallback):
    """Ends a training run whose loss is NaN or infinite, before anything is evaluated or saved.

    It looks at what is logged and, where a checkpoint is due, at the weights: reading the loss at every step would
    make the processor wait for the accelerator.

    Args:
        is_never_finite: Under fp16, whose scaler leaves out a step that is not finite: whether no step is any more. It
            is asked in place of looking at the losses.

    Raises:
        FloatingPointError: says at which step it was noticed and what to change.

    Example:

        >>> trainer.add_callback(StopWhenNotFinite())
    """

    def __init__(self, is_never_finite: Callable[[], bool] | None = None) -> None:
        self._is_never_finite = is_never_finite

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if self._is_never_finite is not None:
            if "loss" in (logs or {}) and self._is_never_finite():
                raise _not_finite("The loss of many batches in a row is not finite", args, state)
            return
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
        # Under ZeRO-3 each process holds a part of every parameter elsewhere, and none here: the losses are looked at.
        if finite and not torch.stack([flag.cpu() for flag in finite]).all():
            raise _not_finite("Weights are not finite", args, state)


def _not_finite(what: str, args: TrainingArguments, state: TrainerState) -> FloatingPointError:
    # Every term must be finite: of the loss itself, upstream leaves out what is not (`logging_nan_inf_filter`).
    finite = [
        entry
        for entry in state.log_history
        if "loss" in entry and all(math.isfinite(entry[key]) for key in entry if key.startswith("loss"))
    ]
    last = f" (last finite loss: {finite[-1]['loss']:.4g} at step {finite[-1]['step']})" if finite else ""
    newest = newest_complete(str(args.output_dir))
    saved = f"the newest complete checkpoint there is {newest}" if newest else "there is no checkpoint yet"
    return FloatingPointError(
        f"{what} at step {state.global_step}{last}. Training stopped, and nothing in {args.output_dir} was "
        f"overwritten; {saved}. Try a lower learning_rate (it is {args.learning_rate:g}), some warmup_steps, a "
        f"smaller max_grad_norm (it is {args.max_grad_norm:g}), or bf16 in place of fp16; if it happens at once, look "
        "for broken values in the data."
    )
