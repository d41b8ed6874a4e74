"""`DGLTrainer`: a `transformers.Trainer` that trains with disentangled gradients and evaluates each modality.

It owns no loop. What it overrides, and why, stands in the first line of each method.
"""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from .adapters import complete_adapter
from .architectures import modalities_of
from .callbacks import SaveAfterTheEpoch, StopWhenNotFinite
from .checkpoints import explaining_a_full_disk, replaced_at_once, to_resume
from .disentangle import Disentangled, disentangle
from .groups import clip_by_group, freeze, learning_rates, split_by_learning_rate
from .metrics import compute_metrics_for, per_modality
from .model_card import create_model_card
from .outputs import entry, map_tensors, tensors_in
from .parallelism import refuse_what_is_not_exact
from .passes import MULTIMODAL
from .training_args import DGLTrainingArguments, numbers

logger = logging.get_logger(__name__)


class DGLTrainer(Trainer):
    """Fine-tunes a multimodal model with disentangled gradient learning.

    Every argument of `transformers.Trainer` means what it means there. With `method="joint"` it is a plain `Trainer`.

    Args:
        model: A [`CrossModalForSequenceClassification`], or any model together with `modalities`.
        args: The method's settings are fields of it.
        modalities: Name -> [`Modality`], a dict of its fields, or a module path. Default: known from the model.
        compute_metrics: From an `EvalPrediction` to metrics, as upstream. It is called for the fused predictions, and
            again for those of each modality alone, whose metrics get the modality's name as a suffix
            (`accuracy_image`). Default: the usual ones of the model's `problem_type`.
        **kwargs: Of `transformers.Trainer`.

    Attributes:
        disentangled: The handle of the model in training ([`Disentangled`]).

    Example:

        >>> trainer = DGLTrainer(model, DGLTrainingArguments("out"), train_dataset=train, eval_dataset=validation,
        ...                      data_collator=collator, processing_class=processor)
        >>> trainer.train()
        >>> trainer.evaluate()
        {'eval_loss': 0.4, 'eval_accuracy': 0.9, 'eval_accuracy_image': 0.6, 'eval_accuracy_text': 0.8, ...}
    """

    args: DGLTrainingArguments

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *positional: Any,
        modalities: Mapping[str, Any] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        """Attaches the method to the model, and wraps losses and metrics so that they see each modality."""
        if args is None:
            args = DGLTrainingArguments("tmp_trainer")
        if not isinstance(args, DGLTrainingArguments):
            raise ValueError(f"`args` must be DGLTrainingArguments(...), got {type(args).__name__}.")
        _check_dataset("train_dataset", kwargs.get("train_dataset"))
        self._declared = modalities
        self.disentangled: Disentangled | None = None
        self._terms: dict[str, list[torch.Tensor]] = defaultdict(list)  # since the last log, on the device
        self._group_norms: dict[str, torch.Tensor] = {}
        super().__init__(model, args, *positional, **kwargs)
        self.disentangled = self._attach(self._plain_model)
        # Our losses are means over the batch; a forward with **kwargs makes Trainer assume that they count items.
        self.model_accepts_loss_kwargs = False
        if self.label_smoother is not None:
            self.label_smoother = functools.partial(self._total_of, self.label_smoother)  # type: ignore[assignment]
        if self.compute_loss_func is not None:
            self.compute_loss_func = functools.partial(self._total_of, self.compute_loss_func)
        problem_type = getattr(getattr(self.model, "config", None), "problem_type", None)
        if compute_metrics is not None:
            self.compute_metrics = per_modality(compute_metrics)
        elif problem_type is not None:
            self.compute_metrics = compute_metrics_for(problem_type, list(self.disentangled.partition.modalities))
        self.add_callback(StopWhenNotFinite())
        self.add_callback(SaveAfterTheEpoch())

    @property
    def _plain_model(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def _attach(self, model: nn.Module) -> Disentangled:
        modalities = modalities_of(_base_model(model)) if self._declared is None else self._declared
        if self.args.parallel_mode.value == "not_distributed":  # several GPUs in one process: nn.DataParallel
            raise ValueError("Several GPUs in one process replicate the model. Use `accelerate launch` (DDP) instead.")
        handle = disentangle(model, modalities, **self.args.disentangle_kwargs())
        freeze(handle.partition, self.args.freeze or [])
        return handle

    def create_accelerator_and_postprocess(self) -> None:
        """Refuses, as early as possible, ways to shard a model under which the gradients would be wrong."""
        super().create_accelerator_and_postprocess()
        refuse_what_is_not_exact(self.accelerator.state)
        if self.is_deepspeed_enabled and self.args.clip_by_group and self.args.max_grad_norm > 0:
            logger.warning(
                "DeepSpeed clips gradients by itself, by one norm over all parameters (`max_grad_norm`), so "
                "`clip_by_group` has no effect: a large gradient of one modality makes the others' smaller. If that "
                "matters, train with DDP or FSDP2, or set `max_grad_norm: 0`."
            )

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Attaches the method to the fresh model of every `model_init` (hyperparameter search)."""
        model = super().call_model_init(trial)
        if self.disentangled is not None:  # in `__init__`, the settings that `_attach` needs are not there yet
            self.disentangled = self._attach(model)
        return model

    def continue_with(self, model: nn.Module) -> None:
        """Puts a whole model in the place of the trained one (its adapters merged): to be scored and saved."""
        assert self.disentangled is not None
        self.disentangled.remove()
        self.is_fsdp_enabled = self.is_deepspeed_enabled = False  # saving would gather what the old one had sharded
        self.model = self.model_wrapped = model.to(self.args.device)
        self.disentangled = self._attach(model)

    # ---- losses -----------------------------------------------------------------------------------------------

    def _total_of(
        self, criterion: Callable[..., torch.Tensor], outputs: Any, labels: Any, **kwargs: Any
    ) -> torch.Tensor:
        """A loss computed from outputs (label smoothing, `compute_loss_func`) becomes the sum over all terms."""
        assert self.disentangled is not None
        if not self._plain_model.training or entry(outputs, "unimodal") is None:
            return criterion(outputs, labels, **kwargs)
        return self.disentangled.loss(outputs, lambda output: criterion(output, labels, **kwargs))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Keeps the terms of the loss for `log`: as sums on the device, without waiting for it."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if self._plain_model.training:
            terms = entry(outputs, "losses") or {MULTIMODAL: loss}
            for name, term in terms.items():
                self._terms[name].append(term.detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each term (`loss_multimodal`, `loss_image`, ...) and the groups' gradient norms."""
        if "loss" in logs:
            logs.update({f"loss_{name}": mean for name, mean in self._mean_terms().items()})
            logs.update({f"grad_norm_{name}": float(norm) for name, norm in self._group_norms.items()})
            self._terms.clear()
        super().log(logs, start_time)

    def _mean_terms(self) -> dict[str, float]:
        """Means over the steps since the last log and over all processes, gathered in one go."""
        assert self.disentangled is not None
        names = [MULTIMODAL, *self.disentangled.partition.modalities]  # the same on every process, whatever it saw
        zero = torch.zeros((), device=self.args.device)
        sums = torch.stack([torch.stack([zero, *self._terms[name]]).sum() for name in names])
        counts = torch.tensor([float(len(self._terms[name])) for name in names], device=self.args.device)
        total, count = self.accelerator.reduce(torch.stack([sums, counts]), reduction="sum").tolist()
        return {name: total[i] / count[i] for i, name in enumerate(names) if count[i]}

    # ---- optimisation by group ----------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Gives the encoders their own learning rate: upstream's parameter groups are split, nothing else changes."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        encoders, patterns = self.args.encoder_learning_rate, self.args.learning_rates_by_pattern()
        if fresh and (encoders is not None or patterns):
            assert self.disentangled is not None
            of_modality = {}
            if encoders is not None:
                of_modality = self.disentangled.per_modality("encoder_learning_rate", numbers(encoders))
            partition = self.disentangled.partition
            split_by_learning_rate(optimizer, learning_rates(self._plain_model, partition, of_modality, patterns))
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clips every group by its own norm: a global one would let the modalities scale one another's gradients."""
        if not self.args.clip_by_group or self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        assert self.disentangled is not None
        self.accelerator.unscale_gradients()
        self._group_norms = clip_by_group(self.disentangled.partition, self.args.max_grad_norm)
        return torch.stack(list(self._group_norms.values())).norm()

    # ---- evaluation ---------------------------------------------------------------------------------------------

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Predicts with all modalities and with each alone: `{"logits": ..., "image": ..., "text": ...}`."""
        inputs, filled_up = self._without_repeated_rows(inputs)
        if prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        assert self.disentangled is not None
        if ignore_keys is None:
            ignore_keys = list(getattr(getattr(self.model, "config", None), "keys_to_ignore_at_inference", []))
        with self.disentangled.unimodal_outputs():
            loss, outputs, labels = super().prediction_step(model, inputs, False, [*ignore_keys, "losses"])
        assert outputs is not None
        *fused, unimodal = outputs
        fused_logits = fused[0] if len(fused) == 1 else tuple(fused)
        predictions = {"logits": fused_logits}
        reference = fused[0]
        for name in self.disentangled.partition.modalities:
            logits = _first_prediction(unimodal[name]) if name in unimodal else torch.full_like(reference, torch.nan)
            present = entry(inputs.get(name), "present")
            if present is not None:  # rows that lack the modality have no opinion of its
                logits = logits.masked_fill(~present.to(logits.device).view(-1, *[1] * (logits.dim() - 1)), torch.nan)
            predictions[name] = logits
        return loss, map_tensors(filled_up, predictions), map_tensors(filled_up, labels)

    def _without_repeated_rows(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], Callable[[Any], Any]]:
        """Takes out the rows with which Accelerate fills up the last batch: their loss would count twice.

        Returns:
            The other rows (one at least), and what brings a tensor of them back to the number that Accelerate expects.
        """
        state = self.accelerator.gradient_state
        found = tensors_in(inputs)
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0 or not found:
            return inputs, lambda tensor: tensor
        size = len(found[0])
        new = min(max(state.remainder - self.args.process_index * size, 1), size)
        rows = torch.arange(size).clamp(max=new - 1)
        return map_tensors(lambda tensor: tensor[:new], inputs), lambda tensor: tensor[rows.to(tensor.device)]

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Resumes from complete checkpoints only, and says what to do when the disk is full."""
        if resume_from_checkpoint:  # a folder, or True
            with self.args.main_process_first(local=self.args.save_on_each_node, desc="choosing the checkpoint"):
                resume_from_checkpoint = to_resume(resume_from_checkpoint, str(self.args.output_dir))
        with explaining_a_full_disk(str(self.args.output_dir)):
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Trains no step beyond `max_steps` when the checkpoint of the last one is resumed (upstream trains one)."""
        epochs_trained, steps_trained = super()._init_training_state(*args, **kwargs)
        done = self.state.global_step >= self.state.max_steps
        return (self.state.num_train_epochs if done else epochs_trained), steps_trained

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Replaces a model's files all at once, so that no crash leaves half of one."""
        folder = str(self.args.output_dir) if output_dir is None else output_dir
        if not self.args.should_save:  # upstream may need every process to gather what one of them writes
            super()._save(folder, state_dict)
            return
        with replaced_at_once(folder) as draft:
            super()._save(draft, state_dict)
            complete_adapter(self.accelerator.unwrap_model(self._plain_model), draft)

    # ---- the Hub ------------------------------------------------------------------------------------------------

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Writes our card in place of upstream's draft (which asks its reader to fill it in)."""
        if self.is_world_process_zero():
            card = create_model_card(self, model_name, language=language, license=license, tags=tags, dataset=dataset)
            card.save(os.path.join(str(self.args.output_dir), "README.md"))


def _base_model(model: nn.Module) -> nn.Module:
    """The model below PEFT."""
    return getattr(model, "get_base_model", lambda: model)()


def _first_prediction(output: Any) -> torch.Tensor:
    if isinstance(output, Mapping):
        return next(value for key, value in output.items() if key != "loss")
    return output if isinstance(output, torch.Tensor) else output[-1]


def _check_dataset(name: str, dataset: Any) -> None:
    """setfit-like hints for what is often passed in place of a split."""
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"`{name}` is a {type(dataset).__name__} with the splits {list(dataset)}, expected one of them: pass "
            f"`{name}=dataset[{list(dataset)[0]!r}]`."
        )
    if dataset is not None and hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError(f"`{name}` is empty: there is nothing to learn from.")
