"""`DGLTrainer`: a `transformers.Trainer` that trains with disentangled gradients and evaluates each modality.

It owns no loop. What it overrides, and why, stands in the first line of each method. Saving, resuming and pushing are
in `saving_trainer.py`, what published baselines add is in `baseline_trainer.py`.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import EvalPrediction, TrainingArguments
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from hf_dgl.architectures import architecture_of, modalities_of
from hf_dgl.architectures.attach import disentangle, found_by_data_flow
from hf_dgl.method.adaptive import ChanceLevel, Explained, adapt
from hf_dgl.method.disentangle import Disentangled
from hf_dgl.method.forward_call import below_adapters
from hf_dgl.method.gradient_meter import GradientMeter
from hf_dgl.method.outputs import entry, first_prediction, map_tensors, tensors_in
from hf_dgl.method.passes import MULTIMODAL

from .arguments import DGLTrainingArguments, numbers
from .baseline_trainer import BaselineTrainer
from .callbacks import LeaveInputsAlone, RememberExplained, SaveAfterTheEpoch, StopWhenNotFinite, WarnWhenStarved
from .groups import clip_by_group, freeze, learning_rates, split_by_learning_rate
from .metrics import compute_metrics_for, per_modality
from .parallelism import refuse_what_is_not_exact
from .sums import RunningMeans

logger = logging.get_logger(__name__)

_MEASURE_JOINT_EVERY = 10  # steps, with `log_gradients`: there it takes passes of its own


class DGLTrainer(BaselineTrainer):
    """Fine-tunes a multimodal model with disentangled gradient learning.

    Every argument of `transformers.Trainer` means what it means there. With `method="joint"` it is a plain `Trainer`.

    Args:
        model: A [`CrossModalForSequenceClassification`], or any model together with `modalities`.
        args: The method's settings are fields of it.
        modalities: Name -> [`Modality`], a dict of its fields, or a module path. Default: known from the model.
            `"auto"`: found by watching the model on the first training batch ([`hf_dgl.method.dataflow.propose`]).
        compute_metrics: From an `EvalPrediction` to metrics, as upstream. It is called for the fused predictions, and
            again for those of each modality alone, whose metrics get the modality's name as a suffix
            (`accuracy_image`). Default: the usual ones of the model's `problem_type`.
        **kwargs: Of `transformers.Trainer`.

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
        model: Any = None,
        args: TrainingArguments | None = None,
        *positional: Any,
        modalities: Mapping[str, Any] | str | None = None,
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
        self._terms = RunningMeans()  # of the loss, since the last log
        self._evaluated: dict[str, list[torch.Tensor]] = defaultdict(list)  # losses alone: [sum over rows, rows]
        self._is_filler = False  # whether this process evaluates rows again that another one has already
        self._group_norms: dict[str, torch.Tensor] = {}
        self.explained: Explained | None = None
        super().__init__(model, args, *positional, **kwargs)
        self._begin_with(self._plain_model)
        assert self.disentangled is not None
        # Our losses are means over the batch; a forward with **kwargs makes Trainer assume that they count items.
        self.model_accepts_loss_kwargs = False
        if self.label_smoother is not None:
            self.label_smoother = functools.partial(self._total_of, self.label_smoother)
        if self.compute_loss_func is not None:
            self.compute_loss_func = functools.partial(self._total_of, self.compute_loss_func)
        problem_type = getattr(getattr(self.model, "config", None), "problem_type", None)
        if compute_metrics is not None:
            self.compute_metrics = per_modality(compute_metrics)
        elif problem_type is not None:
            self.compute_metrics = compute_metrics_for(problem_type, list(self.disentangled.partition.modalities))
        elif self.eval_dataset is not None and not self.args.prediction_loss_only:
            logger.warning(
                "Evaluation gives losses only: nothing says what the labels are. Set `model.config.problem_type` "
                "(e.g. 'single_label_classification') for accuracies, fused and of each modality alone, or pass "
                "`compute_metrics`."
            )
        self.add_callback(LeaveInputsAlone())
        self.add_callback(StopWhenNotFinite())
        self.add_callback(WarnWhenStarved(self.disentangled.multimodal_to_encoders))
        self.add_callback(SaveAfterTheEpoch())
        self.add_callback(RememberExplained(lambda: self.explained))

    def _begin_with(self, model: nn.Module) -> None:
        """Attaches the method to a model that is not trained yet, and forgets what was seen of another."""
        self.disentangled = self._attach(model)
        problem_type = getattr(getattr(model, "config", None), "problem_type", None)
        self.explained = None if problem_type is None else self._explain(model, problem_type)
        self._begin_baseline(self.disentangled, problem_type)

    def _attach(self, model: nn.Module) -> Disentangled:
        modalities = self._modalities(model)
        if self.args.parallel_mode.value == "not_distributed":  # several GPUs in one process: nn.DataParallel
            raise ValueError("Several GPUs in one process replicate the model. Use `accelerate launch` (DDP) instead.")
        handle = disentangle(model, modalities, **self.args.disentangle_kwargs())
        freeze(handle.partition, self.args.freeze or [])
        if self.args.log_gradients:
            needs_passes = not any(map(handle.trains_alone, handle.alpha))
            handle.meter = GradientMeter(every=_MEASURE_JOINT_EVERY if needs_passes else 1)
        self._factors = dict(handle.alpha)  # the user's; a method may change the handle's
        return handle

    def _modalities(self, model: nn.Module) -> Mapping[str, Any]:
        """As declared, or as the table of architectures has them; with the method that suits the model."""
        if self._declared is not None:
            if self.args.partition is not None:
                raise ValueError(
                    "`partition` chooses one of the known ones, and `modalities` declares one: remove either."
                )
            self.args.method = self.args.method or "dgl"
            if isinstance(self._declared, str):
                self._declared = self._found(model, self._declared)
            return self._declared
        known, name = architecture_of(model), type(below_adapters(model)).__name__
        if known.note:
            logger.warning_once(f"{name}: {known.note}")
        if self.args.method is None:
            self.args.method = known.method
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
        with torch.random.fork_rng():  # the order of the data stays as it would have been
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
        """Keeps the terms of the loss for `log`, on the device, without waiting for it; adapts their weights."""
        training, labels = self._plain_model.training, inputs.get("labels")
        adaptive = self._method.adaptive
        if training and adaptive:
            assert self.disentangled is not None
            adapt(self.disentangled, self._explained_by(inputs), self._factors)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if training:
            terms = entry(outputs, "losses") or {MULTIMODAL: loss}
            for name, term in terms.items():
                self._terms.add(name, term)
            if self.explained is not None and labels is not None and (adaptive or len(terms) > 1):
                self.explained.update(terms, labels)
            loss = self._baseline_loss(loss, terms, entry(outputs, "unimodal"), inputs, labels)
        else:
            rows = torch.tensor(float(0 if self._is_filler else find_batch_size(inputs) or 1), device=loss.device)
            for name, term in (entry(outputs, "losses") or {}).items():
                self._evaluated[name].append(torch.stack([term.detach().float() * rows, rows]))
        return (loss, outputs) if return_outputs else loss

    def _explain(self, model: nn.Module, problem_type: str) -> Explained:
        """Begins to follow what each modality explains of the labels."""
        assert self.disentangled is not None
        config: Any = model.config
        width = getattr(config, "num_qa_labels", None) or getattr(config, "num_labels", None)  # the former: LXMERT
        chance = ChanceLevel(problem_type, width or 1)
        return Explained(list(self.disentangled.partition.modalities), chance, everywhere=self._method.adaptive)

    def _explained_by(self, inputs: Mapping[str, Any]) -> Explained:
        if self.explained is None:
            raise ValueError(
                "`method: adaptive_dgl` weighs losses by what a constant prediction would lose, which is known for "
                "classification and regression: set `model.config.problem_type`, or use another method. A "
                "module without a config can have one: `model.config = transformers.PreTrainedConfig(problem_type="
                "'single_label_classification', num_labels=2)`."
            )
        return self.explained

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each term (`loss_multimodal`, `loss_image`, ...) and what is known of the gradients."""
        if "loss" in logs:
            logs.update({f"loss_{name}": mean for name, mean in self._mean_terms().items()})
            logs.update({f"grad_norm_{name}": float(norm) for name, norm in self._group_norms.items()})
            logs.update(self._explained_so_far())
            if self.disentangled is not None and self.disentangled.meter is not None:
                names = list(self.disentangled.partition.modalities)
                logs.update(self.disentangled.meter.means(names, self.args.device, self.accelerator.reduce))
            self._terms.clear()
        super().log(logs, start_time)

    def _explained_so_far(self) -> dict[str, float]:
        """`explained_image`, ...: what each explains of the labels, 0 to 1; `alpha_image`, ... where they adapt."""
        if self.explained is None or self.explained.state_dict()["running"] is None:
            return {}
        assert self.disentangled is not None
        found = {f"explained_{name}": float(share) for name, share in self.explained.shares().items()}
        if self._method.adaptive:
            found |= {f"alpha_{name}": float(alpha) for name, alpha in self.disentangled.alpha.items()}
        return found

    def _mean_terms(self) -> dict[str, float]:
        """Means over the steps since the last log and over all processes, gathered in one go."""
        return self._terms.means(self._names_of_terms(), self.args.device, self.accelerator.reduce)

    def _names_of_terms(self) -> list[str]:
        assert self.disentangled is not None
        return [MULTIMODAL, *self.disentangled.partition.modalities]  # the same on every process, whatever it saw

    def sums(self) -> dict[str, Any]:
        """Adds what is to be logged next: the terms of the loss, and what is known of the gradients."""
        terms = self._terms.state_dict(self._names_of_terms(), self.args.device, self.accelerator.reduce)
        meter = None if self.disentangled is None else self.disentangled.meter
        kept = {name: rule.state_dict() for name, rule in [("meter", meter), ("modulation", self.modulation)] if rule}
        return {**super().sums(), "terms": terms, **kept}

    def load_sums(self, kept: Mapping[str, Any]) -> None:
        """Goes on with them."""
        super().load_sums(kept)
        if self.is_world_process_zero():  # the sums are over all processes
            self._terms.load_state_dict(kept.get("terms", {}), self.args.device)
        meter = None if self.disentangled is None else self.disentangled.meter
        for name, rule in [("meter", meter), ("modulation", self.modulation)]:
            if rule and name in kept:
                rule.load_state_dict(kept[name])

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
                of_modality = self.disentangled.partition.per_modality("encoder_learning_rate", numbers(encoders))
            partition = self.disentangled.partition
            split_by_learning_rate(optimizer, learning_rates(self._plain_model, partition, of_modality, patterns))
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clips every group by its own norm: a global one would let the modalities scale one another's gradients."""
        self._modulate()
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
        assert self.disentangled is not None
        if prediction_loss_only:
            with self.disentangled.unimodal_outputs():  # whose losses `compute_loss` keeps
                return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
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
            logits = first_prediction(unimodal[name]) if name in unimodal else torch.full_like(reference, torch.nan)
            present = entry(inputs.get(name), "present")
            if present is not None:  # rows that lack the modality have no opinion of its
                logits = logits.masked_fill(~present.to(logits.device).view(-1, *[1] * (logits.dim() - 1)), torch.nan)
            predictions[name] = logits
        return loss, map_tensors(filled_up, predictions), map_tensors(filled_up, labels)

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Adds the loss of each modality alone (`eval_loss_image`) where there are no predictions to score."""
        self._evaluated.clear()
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        if (output.predictions is None or self.blending is not None) and output.metrics is not None:
            assert self.disentangled is not None
            names = list(self.disentangled.partition.modalities)  # the same on every process
            zero = torch.zeros(2, device=self.args.device)
            sums = torch.stack([torch.stack([zero, *self._evaluated[name]]).sum(0) for name in names])
            for name, (total, rows) in zip(names, self.accelerator.reduce(sums).tolist(), strict=True):
                if rows:
                    output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_loss_{name}"] = total / rows
        return output

    def _without_repeated_rows(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], Callable[[Any], Any]]:
        """Takes out the rows with which Accelerate fills up the last batch: their loss would count twice.

        Returns:
            The other rows (one at least), and what brings a tensor of them back to the number that Accelerate expects.
        """
        state = self.accelerator.gradient_state
        found = tensors_in(inputs)
        self._is_filler = False
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0 or not found:
            return inputs, lambda tensor: tensor
        size = len(found[0])
        self._is_filler = state.remainder <= self.args.process_index * size
        new = min(max(state.remainder - self.args.process_index * size, 1), size)
        rows = torch.arange(size).clamp(max=new - 1)
        return map_tensors(lambda tensor: tensor[:new], inputs), lambda tensor: tensor[rows.to(tensor.device)]


def _check_dataset(name: str, dataset: Any) -> None:
    """setfit-like hints for what is often passed in place of a split."""
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"`{name}` is a {type(dataset).__name__} with the splits {list(dataset)}, expected one of them: pass "
            f"`{name}=dataset[{list(dataset)[0]!r}]`."
        )
    if dataset is not None and hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError(f"`{name}` is empty: there is nothing to learn from.")
