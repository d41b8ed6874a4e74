"""Every way to a loss, for each pass of a step: a class between the baselines' Trainer and `DGLTrainer`.

Whoever computes the loss (the model, label smoothing, `compute_loss_func`, a subclass's `compute_loss`), it is done
once for each pass, on that pass's output ([`hf_dgl.method.replay`]). What is measured beside it does not depend on
that loss, nor on how a batch is cut.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_pt_utils import find_batch_size
from transformers.utils import logging

from hf_dgl.data.labels import REGRESSION
from hf_dgl.method.adaptive import adapt
from hf_dgl.method.disentangle import Disentangled
from hf_dgl.method.explained import Explained
from hf_dgl.method.forward_call import unwrapped
from hf_dgl.method.loss_rules import Looks
from hf_dgl.method.loss_state import state_of
from hf_dgl.method.outputs import entry
from hf_dgl.method.passes import MULTIMODAL
from hf_dgl.method.replay import Replay, StandIn

from .baseline_trainer import BaselineTrainer
from .items import MEAN, SHARE, how_it_counts, how_it_counts_everywhere, items_in, rows_in
from .sums import RunningMeans

logger = logging.get_logger(__name__)

_NOT_OF_A_LOSS = ("model", "model_wrapped", "deepspeed", "compute_loss_func", "compute_loss", "_taken_over")
_PATIENCE = 10  # batches in a row without a finite loss that the scaler of fp16 may skip


class LossesTrainer(BaselineTrainer):
    """A Trainer whose loss is DGL's total of any loss.

    Attributes:
        explained: What each modality explains of the labels by itself; None until it is known what they are.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Refuses losses that cannot be meant, and takes over whatever computes the loss."""
        self.explained: Explained | None = None
        self._terms = RunningMeans()  # since the last log
        self._replay: Replay | None = None  # while losses are computed
        self._seen = False  # whether a step's losses came by here
        self._looks = Looks()  # at the runs of what computes the loss
        self._is_trial = False  # while it is measured how the loss counts
        self._counts: str | None = None  # how the loss counts, where that makes a difference
        self._not_finite: Tensor | None = None  # batches in a row, where a scaler skips them
        self._factors: dict[str, float] = {}  # the user's weights of the unimodal losses
        self._shares: dict[str, float] = {}  # and shares of the multimodal gradient
        self._taken_over: Any = None
        super().__init__(*args, **kwargs)
        config = getattr(self.model, "config", None)
        if self.label_smoother is not None and getattr(config, "problem_type", None) == REGRESSION:
            raise ValueError(
                f"`label_smoothing_factor: {self.args.label_smoothing_factor:g}` smooths the probabilities of "
                "classes, and this model is for `regression`: set it to 0."
            )
        if self.neftune_noise_alpha is not None:
            _check_has_one_embedding(self.model)
        self._take_over_compute_loss()

    def compute_loss_context_manager(self) -> Any:
        """Upstream enters it just before it calls `compute_loss`, which somebody may have set anew."""
        self._take_over_compute_loss()
        return super().compute_loss_context_manager()

    def _take_over_compute_loss(self) -> None:
        """Puts `_loss_of_all_passes` in the place of `compute_loss`, which a subclass may override: it calls that."""
        if self._taken_over is None or self.__dict__.get("compute_loss") is not self._taken_over:
            compute = self.compute_loss
            self._taken_over = functools.wraps(compute)(functools.partial(self._loss_of_all_passes, compute))
            self.compute_loss = self._taken_over  # type: ignore[method-assign]

    # ---- a step -----------------------------------------------------------------------------------------------

    def _loss_of_all_passes(
        self, compute: Callable[..., Any], model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any
    ) -> Any:
        """The total of `compute(model, inputs)` over all passes in training, and its outputs of the multimodal one."""
        options = dict(zip(("return_outputs", "num_items_in_batch"), args, strict=False)) | options
        num_items = options.get("num_items_in_batch")
        named = dict(inputs) if isinstance(inputs, Mapping) else {}  # whatever is taken out of it meanwhile
        factor = self._heed_items(compute, inputs, options)
        if not (self._plain_model.training and torch.is_grad_enabled()):
            return compute(model, inputs, **options)
        self._seen = True
        handle, labels = self._handle_in_use(), self._labels_in(named)
        if self._method.adaptive:
            adapt(handle, self._explained_by(labels), self._factors, self._shares)
        handle.reads_all_outputs = self._is_computed_outside(compute)
        once = functools.partial(compute, **options)
        keeps = functools.partial(self._kept_by_a_loss, compute)
        examine = handle.has_passes and self._looks.is_due()
        replay = Replay(handle, model, inputs, examine, keeps)
        if handle.has_passes:
            with self._standing_in(replay):
                results = replay.run(once)
        else:
            results = [once(model, inputs)]  # a plain Trainer's step
        losses = [result[0] if options.get("return_outputs") else result for result in results]
        if factor is not None:
            losses = [loss * factor for loss in losses]
        heeded = options.get("num_items_in_batch") if factor is None else num_items
        total = self._total(replay, losses, named, labels, heeded)
        return (total, results[0][1]) if options.get("return_outputs") else total

    def _total(
        self, replay: Replay, losses: list[Tensor], inputs: Mapping[str, Any], labels: Any, num_items: Any
    ) -> Tensor:
        """What is trained, of the losses of all passes; keeps what is to be known of them, without waiting for it."""
        assert self.disentangled is not None
        if len(losses) == 1:
            terms, shares, predictions = {MULTIMODAL: losses[0]}, {}, {}
        else:
            steps = list(zip(replay.passes, losses, replay.predictions, strict=True))
            terms = {step.name: loss for step, loss, _ in steps if step.in_value}
            shares = {step.weight: loss for step, loss, _ in steps if not step.in_value}
            predictions = {step.name: logits for step, _, logits in steps if step.in_value and logits is not None}
        present = {name: entry(inputs.get(name), "present") for name in terms if name != MULTIMODAL}
        means, rows = self._per_row(terms, inputs, labels, present, num_items)
        for name, mean in means.items():
            self._terms.add(name, mean, rows[name])
        self._count_explained(predictions, labels, present)
        if self.modulation is not None and labels is not None:
            alone = {name: logits for name, logits in predictions.items() if name != MULTIMODAL}
            self.modulation.count(alone, labels, {name: present[name] for name in alone})
        total = self.disentangled.total(terms, shares)
        if self.blending is not None:
            self.blending.count(means, rows)
            total = self.blending.total(terms)
        if self._scaler_skips:
            before = 0 if self._not_finite is None else self._not_finite
            self._not_finite = torch.where(total.detach().isfinite(), 0, before + 1)
        return total

    def check_losses_were_seen(self) -> None:
        """Whether a `training_step` of the user's own leaves out what the method makes of the losses.

        Raises:
            ValueError: it does.
        """
        if not self._seen and (self._method.adaptive or self.modulation is not None or self.blending is not None):
            raise ValueError(
                f"`method: {self.args.method}` weighs what it sees of the losses, and the Trainer's `training_step` "
                "is overridden and computes the loss past it. Take `loss = self.compute_loss(model, inputs)` there."
            )

    def _handle_in_use(self) -> Disentangled:
        """The handle of the model that is trained.

        Raises:
            ValueError: it was removed, or is another model's: the training would be joint, without a word.
        """
        handle = self.disentangled
        assert handle is not None
        is_ours = handle.model is unwrapped(self._plain_model) or handle.model is self.accelerator.unwrap_model(
            self._plain_model, keep_torch_compile=False
        )
        if not (handle.is_attached and is_ours):
            problem = "is attached to another model" if handle.is_attached else "was removed"
            raise ValueError(
                f"The handle of this trainer (`trainer.disentangled`) {problem}, so its model would be trained "
                "jointly. A trainer trains with the handle that it has made: make a new DGLTrainer for the model; for "
                "joint training, `method='joint'`."
            )
        return handle

    def _is_overridden(self) -> bool:
        """Whether `compute_loss` is the user's own, whatever stands in its place."""
        return self._taken_over is not None and _is_overridden(self._taken_over.args[0])

    def _is_computed_outside(self, compute: Callable[..., Any]) -> bool:
        """Whether the loss may be read from anything that the model returns."""
        return self.compute_loss_func is not None or self.label_smoother is not None or _is_overridden(compute)

    @contextmanager
    def _standing_in(self, replay: Replay) -> Iterator[None]:
        """Inside, `self.model` answers as the model that `compute_loss` is given, or says why it cannot."""
        model, wrapped = self.model, self.model_wrapped
        assert model is not None
        is_called = replay.called is model or self.args.world_size == 1
        self._replay = replay
        self.model_wrapped = replay.model  # type: ignore[assignment]
        self.model = replay.model if is_called else StandIn(model, _refuse_unwrapped)  # type: ignore[assignment]
        try:
            yield
        finally:
            self.model, self.model_wrapped, self._replay = model, wrapped, None

    @property
    def current_pass(self) -> str:
        """Whose loss `compute_loss` computes at present: a modality's, or that of all (`multimodal`); `""` in a trial
        whose loss trains nothing."""
        if self._is_trial:
            return ""
        return MULTIMODAL if self._replay is None else self._replay.current

    def _kept_by_a_loss(self, compute: Callable[..., Any]) -> dict[str, Any]:
        """What it could change: of this trainer, of `compute_loss_func`, and of a `compute_loss` by its closure."""
        unseen = [self._plain_model, self.train_dataset, self.eval_dataset]
        own = state_of(self, but=_NOT_OF_A_LOSS, unseen=unseen)
        func = getattr(self.compute_loss_func, "__self__", self.compute_loss_func)  # of a method, its object
        of_func = {f"compute_loss_func.{name}": value for name, value in state_of(func, unseen=unseen).items()}
        return {**state_of(getattr(compute, "__func__", compute), unseen=[*unseen, self]), **of_func, **own}

    # ---- how a loss counts --------------------------------------------------------------------------------------

    def _heed_items(
        self, compute: Callable[..., Any], inputs: Mapping[str, Any], options: dict[str, Any]
    ) -> Tensor | None:
        """Sees to it that micro-batches and processes add up to the whole batch (`items.py`); changes `options`.

        Returns:
            What the loss is to be multiplied by; None: nothing.
        """
        num_items = options.get("num_items_in_batch")
        is_whole = self.args.gradient_accumulation_steps == 1 and self.args.world_size == 1
        is_told = self._counts is None and self.loss_is_scaled_for_ga is not None
        if num_items is None or is_whole or is_told or self.compute_loss_func is not None:
            return None
        if self._counts is None:
            assert self.disentangled is not None
            keeps = functools.partial(self._kept_by_a_loss, compute) if _is_overridden(compute) else dict
            self._is_trial = True
            try:
                found = how_it_counts(compute, self.disentangled.model, inputs, options, keeps)
            finally:
                self._is_trial = False
            self._counts = how_it_counts_everywhere(found, self.args.device)
        self.loss_is_scaled_for_ga = self._counts == SHARE
        if self._counts != MEAN:
            return None
        options["num_items_in_batch"] = None
        items = None if _is_overridden(compute) else items_in(inputs, self._loss_shifts_labels)
        if items is None:
            return None
        self.loss_is_scaled_for_ga = True
        return items / num_items * (self.accelerator.num_processes if self.args.average_tokens_across_devices else 1)

    def _per_row(
        self,
        terms: Mapping[str, Tensor],
        inputs: Mapping[str, Any],
        labels: Any,
        present: Mapping[str, Any],
        num_items: Any,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor | float]]:
        """Each term as a mean over rows, and of how many; of none, where a scaler skips what is not finite."""
        is_share = self.loss_is_scaled_for_ga
        if is_share is None:  # upstream's rule
            is_share = (self.model_accepts_loss_kwargs and num_items is not None) or self.compute_loss_func is not None
        parts = getattr(self, "current_gradient_accumulation_steps", 1) if is_share else 1
        size = find_batch_size(inputs) or 1
        means, rows = {}, {}
        for name, term in terms.items():
            means[name] = term.detach().mean() * parts  # a number, also where a loss is `[1]`
            rows[name] = rows_in(labels, size, present.get(name))
            if is_share and num_items is not None:  # the same part of all items in each micro-batch
                over = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
                rows[name] = torch.as_tensor(num_items, device=term.device) / (parts * over)
            if self._scaler_skips:
                rows[name] = torch.where(means[name].isfinite(), torch.as_tensor(rows[name], device=term.device), 0)
        return means, rows

    @property
    def _scaler_skips(self) -> bool:
        """Whether a step whose loss is not finite is left out: fp16 has a scaler, which does that."""
        return bool(self.args.fp16)

    def is_never_finite(self) -> bool:
        """Whether the last batches all had a loss that is not finite (every process has to ask)."""
        found = torch.zeros((), device=self.args.device) if self._not_finite is None else self._not_finite
        limit = _PATIENCE * self.args.gradient_accumulation_steps
        return bool(self.accelerator.reduce((found >= limit).float(), reduction="sum") > 0)

    # ---- what is explained --------------------------------------------------------------------------------------

    def _labels_in(self, inputs: Mapping[str, Any]) -> Any:
        """The labels of a batch: `labels`, or the one that goes by another name (`label_names`)."""
        names = ["labels", *self.label_names] if len(self.label_names) == 1 else ["labels"]
        return next((inputs[name] for name in names if isinstance(inputs.get(name), Tensor)), None)

    def _explained_by(self, labels: Any) -> Explained:
        if self.explained is None:
            raise ValueError(
                "`method: adaptive_dgl` weighs losses by what a constant prediction would lose, which is known for "
                "classification and regression: set `model.config.problem_type`, or use another method. A "
                "module without a config can have one: `model.config = transformers.PreTrainedConfig(problem_type="
                "'single_label_classification', num_labels=2)`."
            )
        if labels is None:
            raise ValueError(
                "`method: adaptive_dgl` measures what each modality explains of the labels, and the batch has none: "
                f"name them in `label_names` (it is {self.label_names}), or use another method."
            )
        return self.explained

    def _count_explained(self, logits: Mapping[str, Tensor], labels: Any, present: Mapping[str, Any]) -> None:
        """Counts a micro-batch; `RememberExplained` ends the step."""
        if self.explained is None or labels is None or not (logits or self._method.adaptive):
            return
        rows = {name: mask for name, mask in present.items() if mask is not None}
        if len(rows) == len(present) > 0:  # rows without any modality
            rows[MULTIMODAL] = torch.stack([mask.view(-1).bool() for mask in rows.values()]).any(0)
        try:
            self.explained.count(logits, labels, rows)
        except ValueError as error:
            if self._method.adaptive:
                raise
            logger.warning_once(str(error))

    # ---- logs ---------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each term per row (`loss_multimodal`, `loss_image`, ...), and what is explained."""
        if self.current_pass != MULTIMODAL:
            return  # by a `compute_loss` that logs: what it logs is that of all modalities, once
        if "loss" in logs:
            assert self.disentangled is not None
            terms = self._terms.means(self._names_of_terms(), self.args.device, self.accelerator.reduce)
            logs.update({f"loss_{name}": mean for name, mean in terms.items()})
            self._terms.clear()
            known = {} if self.explained is None else self.explained.known()
            logs.update({f"explained_{name}": share for name, share in known.items()})
            if self._method.adaptive:
                logs.update({f"alpha_{name}": float(alpha) for name, alpha in self.disentangled.alpha.items()})
        super().log(logs, start_time)

    def _names_of_terms(self) -> list[str]:
        assert self.disentangled is not None
        return [MULTIMODAL, *self.disentangled.partition.modalities]  # the same on every process, whatever it saw

    def sums(self) -> dict[str, Any]:
        """Adds the terms of the loss that are to be logged next."""
        terms = self._terms.state_dict(self._names_of_terms(), self.args.device, self.accelerator.reduce)
        return {**super().sums(), "terms": terms}

    def load_sums(self, kept: Mapping[str, Any]) -> None:
        """Goes on with them."""
        super().load_sums(kept)
        if self.is_world_process_zero():  # the sums are over all processes
            self._terms.load_state_dict(kept.get("terms", {}), self.args.device)


def _is_overridden(compute: Callable[..., Any]) -> bool:
    return getattr(compute, "__func__", None) is not Trainer.compute_loss


def _check_has_one_embedding(model: Any) -> None:
    """NEFTune's noise goes to the output of `get_input_embeddings()`, which not every multimodal model has."""
    try:
        embeddings = getattr(model, "get_base_model", lambda: model)().get_input_embeddings()
    except NotImplementedError:
        embeddings = None
    if embeddings is None:
        raise ValueError(
            f"`neftune_noise_alpha` adds noise to a model's one table of embeddings, and {type(model).__name__} has "
            "none (`get_input_embeddings()`): its encoders have one each. Remove it."
        )


def _refuse_unwrapped(args: Any, kwargs: Any) -> Any:
    raise ValueError(
        "Call the model that `compute_loss` is given, not `self.model`: with several processes the former is wrapped, "
        "and a call past the wrapper is not averaged over the processes."
    )
