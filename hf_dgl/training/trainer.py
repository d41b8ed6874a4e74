"""`DGLTrainer`: a `transformers.Trainer` that trains with disentangled gradients and evaluates each modality.

It owns no loop. What it overrides, and why, stands in the first line of each method. Saving, resuming and pushing are
in `saving_trainer.py`, what published baselines add is in `baseline_trainer.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from hf_dgl.architectures import architecture_of, modalities_of
from hf_dgl.architectures.attach import found_by_data_flow
from hf_dgl.method.chance import ChanceLevel
from hf_dgl.method.disentangle import Disentangled
from hf_dgl.method.explained import Explained
from hf_dgl.method.forward_call import below_adapters
from hf_dgl.method.gradient_meter import GradientMeter
from hf_dgl.method.traces import random_numbers_kept

from .arguments import DGLTrainingArguments
from .best_metric import check_before_training, check_measured, greater_is_better
from .callbacks import (
    CheckTheFirstBackward,
    ComeLast,
    LeaveInputsAlone,
    RememberExplained,
    StopWhenNotFinite,
    WarnWhenStarved,
)
from .class_weights import CheckThatItCounts, WeightedLoss, weighted_loss
from .evaluation import EvaluatingTrainer
from .groups import freeze
from .lengths import STRATEGIES, with_lengths
from .metrics import compute_metrics_for
from .modality_dropout import drop_modalities, modalities_to_drop
from .parallelism import refuse_what_is_not_exact
from .search import default_objective
from .takeover import take_over

logger = logging.get_logger(__name__)

_MEASURE_JOINT_EVERY = 10  # steps, with `log_gradients`: there it takes passes of its own


class DGLTrainer(EvaluatingTrainer):
    """Fine-tunes a multimodal model with disentangled gradient learning.

    Every argument of `transformers.Trainer` means what it means there. With `method="joint"` it is a plain `Trainer`.

    The loss may be computed in every way that a Trainer knows: by the model, with label smoothing, by
    `compute_loss_func`, or by a subclass's `compute_loss`. The last is run once for each pass of a step, and the model
    that it is given answers with the output of that pass; so it calls that model once, reads nothing trainable beside
    its output, and changes what it keeps (a counter, a queue, sums of a metric) only `if self.current_pass ==
    "multimodal"` (else it is an error at the first step).

    Args:
        model: A [`CrossModalForSequenceClassification`], or any model together with `modalities`.
        args: The method's settings are fields of it.
        modalities: Name -> [`Modality`], a dict of its fields, or a module path. Default: known from the model.
            `"auto"`: found by watching the model on the first training batch ([`hf_dgl.method.dataflow.propose`]).
        compute_metrics: From an `EvalPrediction` to metrics, as upstream. It is called for the fused predictions, and
            again for those of each modality alone, whose metrics get the modality's name as a suffix
            (`accuracy_image`). Default: the usual ones of the model's `problem_type`.
        ...: All other arguments are those of `transformers.Trainer`.

    Attributes:
        disentangled: The handle of the model in training ([`Disentangled`]).
        explained: What each modality explains of the labels by itself ([`Explained`]); None until it is known what
            they are.
        recipe: Text of the recipe that is run, for the model card.

    Example:

        >>> trainer = DGLTrainer(model, DGLTrainingArguments("out"), train_dataset=train, eval_dataset=validation,
        ...                      data_collator=collator, processing_class=processor)
        >>> trainer.train()
        >>> trainer.evaluate()
        {'eval_loss': 0.4, 'eval_accuracy': 0.9, 'eval_accuracy_image': 0.6, 'eval_accuracy_text': 0.8, ...}
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., Any] | None = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[..., Any] | None = None,
        *,
        modalities: Mapping[str, Any] | str | None = None,
    ) -> None:
        """Attaches the method to the model, and wraps losses so that they see each modality."""
        if args is None:
            args = DGLTrainingArguments("tmp_trainer")
        if not isinstance(args, DGLTrainingArguments):
            raise ValueError(f"`args` must be DGLTrainingArguments(...), got {type(args).__name__}.")
        _check_dataset("train_dataset", train_dataset)
        callbacks = _with_early_stopping(args, callbacks)
        self._declared = modalities
        self._weighted: WeightedLoss | None = None
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self._weigh_classes()
        self._begin_with(self._plain_model)
        assert self.disentangled is not None
        problem_type = getattr(getattr(self.model, "config", None), "problem_type", None)
        if self.compute_metrics is None and problem_type is not None:
            self.compute_metrics = compute_metrics_for(problem_type, list(self.disentangled.partition.modalities))
        elif self.compute_metrics is None and self.eval_dataset is not None and not self.args.prediction_loss_only:
            logger.warning(
                "Evaluation gives losses only: nothing says what the labels are. Set `model.config.problem_type` "
                "(e.g. 'single_label_classification') for accuracies, fused and of each modality alone, or pass "
                "`compute_metrics`."
            )
        self._settle_direction()
        self.add_callback(LeaveInputsAlone())
        self.add_callback(ComeLast(lambda: self.disentangled))
        self.add_callback(StopWhenNotFinite(self.is_never_finite if self._scaler_skips else None))
        self.add_callback(CheckTheFirstBackward(lambda: self.disentangled, self.check_losses_were_seen))
        self.add_callback(WarnWhenStarved(self.disentangled.multimodal_to_encoders))
        self.add_callback(RememberExplained(lambda: self.explained, lambda: self._handle_in_use().has_passes))

    def _begin_with(self, model: nn.Module) -> None:
        """Attaches the method to a model that is not trained yet, and forgets what was seen of another."""
        self.disentangled = self._attach(model)
        problem_type = getattr(getattr(model, "config", None), "problem_type", None)
        self._begin_baseline(self.disentangled, problem_type)
        self.explained = None
        if problem_type is not None:
            config: Any = model.config
            width = getattr(config, "num_qa_labels", None) or getattr(config, "num_labels", None)  # the former: LXMERT
            mean, std = getattr(config, "label_mean", None), getattr(config, "label_std", None)
            chance = ChanceLevel(problem_type, width or 1, None if mean is None or std is None else (mean, std))
            self.explained = Explained(list(self.disentangled.alpha), chance)

    def _attach(self, model: nn.Module) -> Disentangled:
        modalities = self._modalities(model)
        if self.args.parallel_mode.value == "not_distributed":  # several GPUs in one process: nn.DataParallel
            raise ValueError("Several GPUs in one process replicate the model. Use `accelerate launch` (DDP) instead.")
        if self.args.modality_dropout:
            modalities_to_drop(model)  # tells what cannot be, before training
        handle = take_over(self, model, modalities, **self.args.disentangle_kwargs())
        freeze(handle.partition, self.args.freeze or [])
        if self.args.log_gradients:
            needs_passes = not any(map(handle.trains_alone, handle.alpha))
            handle.meter = GradientMeter(every=_MEASURE_JOINT_EVERY if needs_passes else 1)
        self._factors, self._shares = dict(handle.alpha), dict(handle.multimodal_to_encoders)  # the user's, at first
        handle.scores_alone = self._method.adaptive  # it also listens to encoders that are frozen
        return handle

    def _modalities(self, model: nn.Module) -> Mapping[str, Any]:
        """As declared, or as the table of architectures has them; with the method that suits the model."""
        if self._declared is not None:
            if self.args.partition is not None:
                raise ValueError(
                    "`partition` chooses one of the known ones, and `modalities` declares one: remove either."
                )
            if self.args.method is None:
                self._settle(method="dgl")
            if isinstance(self._declared, str):
                self._declared = self._found(model, self._declared)
            return self._declared
        known, name = architecture_of(model), type(below_adapters(model)).__name__
        if known.note:
            logger.warning_once(f"{name}: {known.note}")
        if self.args.method is None:
            self._settle(method=known.method)
            if known.method != "dgl":
                logger.warning_once(f"{name} is trained with `method: {known.method}`. {known.absent}")
        return modalities_of(model, self.args.partition)

    def _found(self, model: nn.Module, how: str) -> Mapping[str, Any]:
        """`modalities="auto"`: found, and checked, on a batch of the training data."""
        if how != "auto":
            raise ValueError(
                f"`modalities` must be 'auto' or a dict such as {{'image': 'vision_model'}}, got {how!r}."
            )
        if self.train_dataset is None:
            raise ValueError("`modalities='auto'` watches the model on a training batch: give a `train_dataset`.")
        with random_numbers_kept(model):  # the order of the data stays as it would have been
            batch = self._prepare_inputs(next(iter(self.get_train_dataloader())))
        return found_by_data_flow(model, batch)

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
            self._begin_with(model)
        return model

    def _hp_search_setup(self, trial: Any) -> None:
        """Attaches the method again: upstream makes a trial's model before it sets the trial's arguments."""
        super()._hp_search_setup(trial)
        if trial is not None and self.disentangled is not None:
            self.disentangled.remove()
            self._begin_with(self._plain_model)
            self.remove_callback(WarnWhenStarved)
            self.add_callback(WarnWhenStarved(self.disentangled.multimodal_to_encoders))

    def _weigh_classes(self) -> None:
        """`class_weights` is a `compute_loss_func`."""
        wanted = self.args.class_weights
        if wanted is None:
            return
        other = "compute_loss_func" if self.compute_loss_func is not None else "label_smoothing_factor"
        if self.compute_loss_func is not None or self.args.label_smoothing_factor:
            raise ValueError(f"`class_weights` and `{other}` both say what the loss is: remove one of them.")
        config = getattr(below_adapters(self._plain_model), "config", None)
        self._weighted = weighted_loss(wanted, config, self.train_dataset)
        self.compute_loss_func = self._weighted
        self.add_callback(CheckThatItCounts(self._weighted))

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """With `class_weights`, what the weighted sum is divided by."""
        if self._weighted is None or not batch_samples or "labels" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        items = torch.stack([self._weighted.items(batch["labels"]) for batch in batch_samples]).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            items = self.accelerator.gather(items.reshape(1)).sum()
        return items

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """With `modality_dropout`, rows lose modalities: drawn from seed and step, so a resumed run draws the same."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        probability = self.args.modality_dropout
        if probability:
            place = [self.args.seed, self.state.global_step, self.args.process_index]
            generator = torch.Generator().manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
            names = modalities_to_drop(self._plain_model)
            batches = [drop_modalities(batch, names, probability, generator) for batch in batches]
        return batches, num_items

    def _settle_direction(self) -> None:
        """Which checkpoint is the best one is told by the metric, unless the user has."""
        metric = self.args.metric_for_best_model
        if metric is None or self.args.direction_is_given:
            return
        assert self.disentangled is not None
        datasets = self.eval_dataset if isinstance(self.eval_dataset, Mapping) else ()
        better = greater_is_better(metric, list(self.disentangled.partition.modalities), datasets)
        if better != self.args.greater_is_better:
            self._settle(greater_is_better=better)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Tells what an evaluation would raise hours later."""
        check_before_training(self)
        return super()._inner_training_loop(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Names the nearest metric where there is none of this name."""
        check_measured(self.args.metric_for_best_model, metrics)
        return super()._determine_best_metric(metrics, trial)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Groups rows by the length of their text or audio, where upstream would take that of an image's path."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return super()._get_train_sampler(self._with_lengths(dataset))

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """As the rows to train on."""
        return super()._get_eval_sampler(self._with_lengths(eval_dataset))

    def _with_lengths(self, dataset: Any) -> Any:
        if str(self.args.train_sampling_strategy) not in STRATEGIES:
            return dataset
        return with_lengths(dataset, self.processing_class, self.args.length_column_name)

    def hyperparameter_search(
        self,
        hp_space: Callable[..., Any] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] = "minimize",
        backend: Any = None,
        hp_name: Callable[..., str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Without an objective, upstream's is told by the fused scores alone, as if no modality had its own."""
        if compute_objective is None:
            assert self.disentangled is not None
            compute_objective = default_objective(list(self.disentangled.partition.modalities))
        return super().hyperparameter_search(
            hp_space, compute_objective, n_trials, direction, backend, hp_name, **kwargs
        )

    def continue_with(self, model: nn.Module) -> None:
        """Puts a whole model in the place of the trained one (its adapters merged): to be scored and saved."""
        assert self.disentangled is not None
        self.disentangled.remove()
        self.is_fsdp_enabled = self.is_deepspeed_enabled = False  # saving would gather what the old one had sharded
        self.model = self.model_wrapped = model.to(self.args.device)
        self.disentangled = self._attach(model)

    # ---- logs -------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what is known of the gradients: norms by group, and at the encoders' outputs."""
        if "loss" in logs:
            logs.update({f"grad_norm_{name}": float(norm) for name, norm in self.group_norms.items()})
            if self.disentangled is not None and self.disentangled.meter is not None:
                names = list(self.disentangled.partition.modalities)
                logs.update(self.disentangled.meter.means(names, self.args.device, self.accelerator.reduce))
        super().log(logs, start_time)

    def sums(self) -> dict[str, Any]:
        """Adds what is known of the gradients and is to be logged next."""
        meter = None if self.disentangled is None else self.disentangled.meter
        kept = {name: rule.state_dict() for name, rule in [("meter", meter), ("modulation", self.modulation)] if rule}
        return {**super().sums(), **kept}

    def load_sums(self, kept: Mapping[str, Any]) -> None:
        """Goes on with it."""
        super().load_sums(kept)
        meter = None if self.disentangled is None else self.disentangled.meter
        for name, rule in [("meter", meter), ("modulation", self.modulation)]:
            if rule and name in kept:
                rule.load_state_dict(kept[name])


def _with_early_stopping(args: DGLTrainingArguments, callbacks: Any) -> Any:
    """The callbacks, and the one that `early_stopping_patience` asks for."""
    if args.early_stopping_patience is None:
        return callbacks
    if any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks or []):
        raise ValueError("`early_stopping_patience` and an EarlyStoppingCallback in `callbacks`: remove one of them.")
    return [*(callbacks or []), EarlyStoppingCallback(args.early_stopping_patience)]


def _check_dataset(name: str, dataset: Any) -> None:
    """setfit-like hints for what is often passed in place of a split."""
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"`{name}` is a {type(dataset).__name__} with the splits {list(dataset)}, expected one of them: pass "
            f"`{name}=dataset[{list(dataset)[0]!r}]`."
        )
    if dataset is not None and hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError(f"`{name}` is empty: there is nothing to learn from.")
