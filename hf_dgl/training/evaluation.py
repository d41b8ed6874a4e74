"""Evaluation with all modalities and with each alone: every option of upstream's evaluation, once per modality.

Upstream's loop runs unchanged. What it collects of the fused predictions (gathered from the processes, padded,
preprocessed, moved to the CPU, in one array or batch by batch) is collected in the same way of each modality's, and
`compute_metrics` is called for the fused ones first and then for each modality, one after the other: metrics that add
up batches (`batch_eval_metrics`) never see two modalities at a time.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction
from transformers.trainer_pt_utils import find_batch_size, nested_numpify
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput
from transformers.utils import logging

from hf_dgl.method.loss_rules import Looks
from hf_dgl.method.loss_state import changed
from hf_dgl.method.outputs import entry, map_tensors, tensors_in
from hf_dgl.method.replay import Replay

from .losses_trainer import LossesTrainer
from .metrics import DefaultMetrics, only_rows

logger = logging.get_logger(__name__)

_FUSED, _ALONE, _PRESENT = "fused", "alone", "present"


class Alone(NamedTuple):
    """What the modalities of one batch answer by themselves.

    Attributes:
        predictions: Modality -> what upstream would take from the model's output: a tensor `[N, ...]` or several.
        present: Modality -> bool `[N]`: which rows have it. Of the others the predictions mean nothing.
        losses: Modality -> its loss, a scalar, where there is one.
    """

    predictions: dict[str, Any]
    present: dict[str, torch.Tensor]
    losses: dict[str, torch.Tensor]


class EvaluatingTrainer(LossesTrainer):
    """A Trainer that predicts with all modalities and with each alone, and scores both in the same way."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is evaluated yet."""
        self._evaluated: dict[str, list[torch.Tensor]] = defaultdict(list)  # losses alone: [sum over rows, rows]
        self._is_filler = False  # whether this process evaluates rows again that another one has already
        self._alone: Alone | None = None  # of the batch that `prediction_step` was given last
        self._losses_alone: dict[str, torch.Tensor] = {}
        self._gives_each_modality = False
        self._looks_in_evaluation = Looks()
        super().__init__(*args, **kwargs)

    def predict_each_modality(self, test_dataset: Any, **kwargs: Any) -> PredictionOutput:
        """As `predict`, with `{"logits": fused, modality: predictions, ...}` whatever the method.

        Args:
            test_dataset: As in `predict`.
            **kwargs: Of `predict`.

        Returns:
            As `predict`. Rows that lack a modality are NaN in its predictions (-100 where they are integers).

        Example:

            >>> trainer.predict_each_modality(test).predictions["image"].shape
            (1000, 10)
        """
        self._gives_each_modality = True
        try:
            return self.predict(test_dataset, **kwargs)
        finally:
            self._gives_each_modality = False

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Keeps what each modality alone predicts; it returns what upstream returns."""
        batch, (inputs, filled_up) = inputs, self._without_repeated_rows(inputs)
        assert self.disentangled is not None
        # What upstream makes of the model's output, it makes of its output from each modality alone.
        predict = functools.partial(
            super().prediction_step, prediction_loss_only=prediction_loss_only, ignore_keys=ignore_keys
        )
        replay = Replay(self.disentangled, model, self._prepare_inputs(inputs))
        with self.disentangled.unimodal_outputs(), self._standing_in(replay):
            runs: list[Any] = replay.run(self._telling_of_changes(predict))
        loss, fused, labels = runs[0]
        alone: dict[str, Any] = {step.name: run for step, run in zip(replay.passes[1:], runs[1:], strict=True)}
        self._keep_losses({name: run[0] for name, run in alone.items() if run[0] is not None}, inputs)
        if prediction_loss_only:
            return loss, None, None
        if not len(fused):  # of a tuple, upstream takes the first entry for the loss, also where there is none
            fused, *others = replay.predictions
            alone = {name: (None, logits) for name, logits in zip(alone, others, strict=True)}
        self._alone = self._predicted_alone({name: run[1] for name, run in alone.items()}, fused, inputs)
        self._alone = self._alone._replace(
            predictions=map_tensors(filled_up, self._alone.predictions),
            present=map_tensors(filled_up, self._alone.present),
        )
        main_input = getattr(self.model, "main_input_name", None)
        if "inputs" in self.args.include_for_metrics and main_input is not None and main_input not in batch:
            batch[main_input] = {
                name: {**batch[name], "present": rows}  # which else only batches have that lack something
                for name, rows in self._alone.present.items()
                if name in batch
            }
        return loss, map_tensors(filled_up, fused), map_tensors(filled_up, labels)

    def _telling_of_changes(self, predict: Callable[..., Any]) -> Callable[..., Any]:
        """`predict`; it warns if a loss of the user's own changes what it keeps each time that it is computed."""
        is_own = self._is_overridden() or self.compute_loss_func is not None
        if not (is_own and self._looks_in_evaluation.is_due()):
            return predict
        kept: list[dict[str, Any]] = []

        def one(model: Any, batch: Any) -> Any:
            result = predict(model, batch)
            kept.append(self._kept_by_a_loss(self._taken_over.args[0]))
            names = changed(kept[0], kept[-1])
            if names:
                logger.warning_once(
                    f"What computes the loss changes {', '.join(names[:5])}. An evaluation runs it with all "
                    "modalities, and once more for each alone: change it only `if self.current_pass == 'multimodal':`."
                )
            return result

        return one

    def _predicted_alone(self, predicted: Mapping[str, Any], fused: Any, inputs: Mapping[str, Any]) -> Alone:
        assert self.disentangled is not None
        predictions, present = {}, {}
        reference = tensors_in(fused)[0]
        for name in self.disentangled.partition.modalities:
            has_it = torch.full((len(reference),), name in predicted, device=reference.device)
            rows = entry(inputs.get(name), "present")
            present[name] = has_it if rows is None else has_it & rows.to(reference.device)
            if name in predicted:
                predictions[name] = predicted[name]
            else:  # other batches, or other processes, have it
                predictions[name] = map_tensors(torch.zeros_like, fused)
        return Alone(predictions, present, self._losses_alone)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Collects and scores each modality's predictions beside the fused ones; adds losses of each modality."""
        self._evaluated.clear()
        with _each_modality(self) as evaluation:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        assert self.disentangled is not None
        # Also of one of several sets: `set1_loss_image`.
        ends = tuple(f"loss_{name}" for name in self.disentangled.partition.modalities)
        wanted = (self.args.metric_for_best_model or "").endswith(ends)
        if output.metrics is not None and (output.predictions is None or self.blending is not None or wanted):
            losses = self._mean_losses_alone()
            output.metrics.update({f"{metric_key_prefix}_loss_{name}": loss for name, loss in losses.items()})
        as_upstream = self.args.method == "joint" and not self._gives_each_modality
        return output._replace(predictions=evaluation.predictions(output.predictions, as_upstream))

    def _mean_losses_alone(self) -> dict[str, float]:
        """Means over all rows and processes."""
        assert self.disentangled is not None
        names = list(self.disentangled.partition.modalities)  # the same on every process
        zero = torch.zeros(2, device=self.args.device)
        sums = torch.stack([torch.stack([zero, *self._evaluated[name]]).sum(0) for name in names])
        found = zip(names, self.accelerator.reduce(sums).tolist(), strict=True)
        return {name: total / rows for name, (total, rows) in found if rows}

    def _keep_losses(self, losses: Mapping[str, torch.Tensor], inputs: Mapping[str, Any]) -> None:
        """Of one batch in evaluation, by modality."""
        self._losses_alone = {name: loss.detach() for name, loss in losses.items()}
        num_rows = 0 if self._is_filler else find_batch_size(inputs) or 1
        for name, loss in self._losses_alone.items():
            rows = torch.tensor(float(num_rows), device=loss.device)
            self._evaluated[name].append(torch.stack([loss.float() * rows, rows]))

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


@contextmanager
def _each_modality(trainer: EvaluatingTrainer) -> Iterator[_Evaluation]:
    """Inside, upstream's loop calls the user's functions through an [`_Evaluation`]."""
    own = trainer.preprocess_logits_for_metrics, trainer.compute_metrics
    evaluation = _Evaluation(trainer, *own)
    trainer.preprocess_logits_for_metrics = evaluation.preprocess
    trainer.compute_metrics = None if own[1] is None else evaluation.compute_metrics
    try:
        yield evaluation
    finally:
        trainer.preprocess_logits_for_metrics, trainer.compute_metrics = own
        trainer._alone = None


class _Evaluation:
    """One run of upstream's loop: between it and the user's functions.

    Args:
        trainer: Whose `prediction_step` keeps what modalities answer alone.
        preprocess, compute_metrics: The user's, if there are any.
    """

    def __init__(self, trainer: EvaluatingTrainer, preprocess: Any, compute_metrics: Any) -> None:
        self._trainer, self._preprocess, self._compute = trainer, preprocess, compute_metrics
        self._batches: list[EvalPrediction] = []  # with `batch_eval_metrics`: until all are there
        self._losses: dict[str, list[Any]] = defaultdict(list)
        self._names = list(trainer.disentangled.partition.modalities) if trainer.disentangled else []

    def preprocess(self, logits: Any, labels: Any) -> Any:
        """Stands for `preprocess_logits_for_metrics`: adds the predictions of each modality alone."""
        own = self._preprocess or (lambda logits, labels: logits)
        fused, alone = own(logits, labels), self._trainer._alone
        self._trainer._alone = None
        if alone is None:  # a subclass predicts in its own way
            return fused
        accelerator = self._trainer.accelerator
        predictions = accelerator.pad_across_processes(alone.predictions, dim=1, pad_index=-100)
        self._add_losses(alone.losses)
        each = {name: own(part, labels) for name, part in predictions.items()}
        return {_FUSED: fused, _ALONE: each, _PRESENT: alone.present}

    def _add_losses(self, losses: Mapping[str, torch.Tensor]) -> None:
        args = self._trainer.args
        if "loss" in args.include_for_metrics:
            for name in self._names:
                loss = losses.get(name, torch.full((), torch.nan, device=args.device))
                repeated = self._trainer.gather_function(loss.mean().repeat(args.eval_batch_size))
                self._losses[name].append(repeated)

    def compute_metrics(self, prediction: EvalPrediction, **kwargs: Any) -> dict[str, float]:
        """Stands for `compute_metrics`: calls it for the fused predictions and for each modality alone."""
        if "compute_result" in kwargs:
            return self._add_batch(prediction, kwargs["compute_result"])
        if not _is_ours(prediction.predictions):
            return self._compute(prediction)
        if isinstance(self._compute, DefaultMetrics):
            return self._compute(self._whole(prediction.predictions, prediction.label_ids))
        metrics = dict(self._compute(_part(prediction, _FUSED)))
        for name in self._names:
            losses = nested_numpify(self._losses[name]) if self._losses[name] else None
            if losses and isinstance(prediction.losses, np.ndarray):
                losses = np.concatenate(losses)
            alone = _of_modality(prediction, name, losses)
            if alone is not None:
                metrics |= {f"{key}_{name}": value for key, value in self._compute(alone).items()}
        return metrics

    def _add_batch(self, prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        """With `batch_eval_metrics`: the fused predictions at once, those of the modalities when all are there."""
        if not _is_ours(prediction.predictions):
            return self._compute(prediction, compute_result=compute_result)
        self._batches.append(prediction)
        if isinstance(self._compute, DefaultMetrics):
            if not compute_result:
                return {}
            parts = [nested_numpify((batch.predictions, batch.label_ids)) for batch in self._batches]
            return self._compute(self._whole([part[0] for part in parts], [part[1] for part in parts]))
        metrics = self._compute(_part(prediction, _FUSED), compute_result=compute_result)
        if not compute_result:
            return metrics
        metrics = dict(metrics)
        for name in self._names:
            losses = self._losses[name] or [None] * len(self._batches)
            batches = [_of_modality(*pair) for pair in zip(self._batches, [name] * len(losses), losses, strict=True)]
            readable = [batch for batch in batches if batch is not None]
            for batch in readable:
                found = self._compute(batch, compute_result=batch is readable[-1])
            if readable:
                metrics |= {f"{key}_{name}": value for key, value in found.items()}
        return metrics

    def _whole(self, predictions: Any, labels: Any) -> EvalPrediction:
        """For our own metrics: whole arrays, whatever upstream was told to collect."""
        each = self.predictions(predictions, as_upstream=False)
        if isinstance(each, list):
            each = {name: _concatenated([batch[name] for batch in each]) for name in each[0]}
            labels = _concatenated(labels)
        return EvalPrediction(each, labels)

    def predictions(self, collected: Any, as_upstream: bool) -> Any:
        """What `predict` returns: the fused predictions alone, or with those of each modality beside them.

        Args:
            collected: From upstream's loop; with `eval_do_concat_batches: false` a list of batches.
            as_upstream: The fused predictions alone.
        """
        if isinstance(collected, list) and _is_ours(collected):
            return [self.predictions(batch, as_upstream) for batch in collected]
        if not _is_ours(collected):
            return collected
        fused = collected[_FUSED]
        if as_upstream:
            return fused
        alone, present = collected[_ALONE], collected[_PRESENT]
        return {"logits": fused, **{name: _without(alone[name], present[name]) for name in alone}}


def _is_ours(predictions: Any) -> bool:
    first = predictions[0] if isinstance(predictions, list) and predictions else predictions
    return isinstance(first, Mapping) and set(first) == {_FUSED, _ALONE, _PRESENT}


def _part(prediction: EvalPrediction, *path: str, losses: Any = None) -> EvalPrediction:
    """The fused predictions, or one modality's, in place of all."""
    batches = prediction.predictions if isinstance(prediction.predictions, list) else [prediction.predictions]
    parts = []
    for batch in batches:
        part: Any = batch
        for key in path:
            part = part[key]
        parts.append(part)
    predictions = parts if isinstance(prediction.predictions, list) else parts[0]
    losses = prediction.losses if losses is None else losses
    return EvalPrediction(predictions, prediction.label_ids, prediction.inputs, losses)


def _of_modality(prediction: EvalPrediction, name: str, losses: Any) -> EvalPrediction | None:
    """What upstream would give of a modality alone, in the rows that have it; None if none has."""
    alone = _part(prediction, _ALONE, name, losses=None if prediction.losses is None else losses)
    rows: Any = _part(prediction, _PRESENT, name).predictions
    if not isinstance(rows, list):
        if rows.all():
            return alone
        return EvalPrediction(*(only_rows(part, rows) for part in _elements(alone))) if rows.any() else None
    if all(part.all() for part in rows):
        return alone
    kept = [index for index, part in enumerate(rows) if part.any()]
    parts: Any = (None if p is None else [only_rows(p[i], rows[i]) for i in kept] for p in _elements(alone))
    return EvalPrediction(*parts) if kept else None


def _elements(prediction: EvalPrediction) -> tuple[Any, ...]:
    return prediction.predictions, prediction.label_ids, prediction.inputs, prediction.losses


def _without(tree: Any, rows: np.ndarray) -> Any:
    """Arrays with NaN, or -100, where a row lacks the modality."""
    if isinstance(tree, Mapping):
        return {key: _without(value, rows) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(_without(value, rows) for value in tree)
    if rows.all():
        return tree
    lacking = np.nan if np.issubdtype(tree.dtype, np.floating) else -100
    return np.where(rows.reshape(-1, *[1] * (tree.ndim - 1)), tree, np.asarray(lacking, dtype=tree.dtype))


def _concatenated(batches: Any) -> Any:
    first = batches[0]
    if isinstance(first, (tuple, list)):
        return tuple(_concatenated(list(parts)) for parts in zip(*batches, strict=True))
    return np.concatenate(batches)
