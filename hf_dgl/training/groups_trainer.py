"""Optimisation by group in the Trainer: learning rates and clipping for each encoder and the fusion (`groups.py`)."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn

from .arguments import numbers
from .groups import check_learning_rates, clip_by_group, learning_rates, split_by_learning_rate
from .saving_trainer import SavingTrainer


class GroupsTrainer(SavingTrainer):
    """A Trainer that optimises each encoder and the fusion by settings of their own.

    Attributes:
        group_norms: Gradient norms before clipping, of the last step, by group; scalars on the device.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Refuses an optimizer of the user's own where learning rates by group are asked for."""
        self.group_norms: dict[str, torch.Tensor] = {}
        self._common_group = 0  # of parameters whose learning rate is `learning_rate`
        self._split_optimizer: weakref.ref[torch.optim.Optimizer] | None = None
        super().__init__(*args, **kwargs)
        if self.optimizer is not None:
            self._check_own_optimizer()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Gives the encoders their own learning rate: upstream's parameter groups are split, nothing else changes."""
        fresh = self.optimizer is None
        if not fresh:
            self._check_own_optimizer()
        optimizer = super().create_optimizer(model)
        encoders, patterns = self.args.encoder_learning_rate, self.args.learning_rates_by_pattern()
        if fresh and self.args.learning_rates_by_group:
            assert self.disentangled is not None
            of_modality = {}
            if encoders is not None:
                of_modality = self.disentangled.partition.per_modality("encoder_learning_rate", numbers(encoders))
            partition = self.disentangled.partition
            rates = learning_rates(self._plain_model, partition, of_modality, patterns)
            split_by_learning_rate(optimizer, rates)
            check_learning_rates(optimizer, self._plain_model, rates)
            common = [group["lr"] == optimizer.defaults.get("lr") for group in optimizer.param_groups]
            self._common_group = common.index(True) if any(common) else 0
            self._split_optimizer = weakref.ref(optimizer)
        return optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Says whose mistake it is that a schedule takes no such setting."""
        try:
            return super().create_scheduler(*args, **kwargs)
        except TypeError as error:
            if not self.args.lr_scheduler_kwargs:
                raise
            raise ValueError(
                f"lr_scheduler_kwargs: the schedule `{self.args.to_dict()['lr_scheduler_type']}` does not "
                f"take {self.args.lr_scheduler_kwargs} ({error})."
            ) from error

    def _check_own_optimizer(self) -> None:
        """Learning rates by group are given to an optimizer that is made here: refuses to ignore them in silence."""
        used, own = self.args.learning_rates_by_group, self._split_optimizer and self._split_optimizer()
        optimizer: Any = self.optimizer
        while optimizer is not own and hasattr(optimizer, "optimizer"):  # Accelerate and DeepSpeed wrap it
            optimizer = optimizer.optimizer
        if used and optimizer is not own:
            raise ValueError(
                f"`{used[0]}` sets the learning rates of an optimizer that the Trainer makes, and it has another one "
                f"({type(optimizer).__name__}), which it would leave as it is. Remove `{used[0]}`, and give the "
                "learning rates in the parameter groups of `optimizers=(yours, None)`; or let the Trainer make it: "
                "`optim`, `optim_args`, or `optimizer_cls_and_kwargs=(cls, {...})`."
            )

    def _get_learning_rate(self) -> float:
        """Logs what has become of `learning_rate`; upstream takes the first group's, which may be an encoder's."""
        first = super()._get_learning_rate()
        if not self.args.learning_rates_by_group or self.is_deepspeed_enabled or self.optimizer is None:
            return first
        return float(self.optimizer.param_groups[self._common_group]["lr"])

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> tuple[nn.Module, Any]:
        """Looks whether learning rates by group were given to an optimizer: others may make it (DeepSpeed)."""
        found = super()._prepare_for_training(*args, **kwargs)
        self._check_own_optimizer()
        return found

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clips every group by its own norm: a global one would let the modalities scale one another's gradients."""
        if not self.args.clip_by_group or self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        assert self.disentangled is not None
        self.accelerator.unscale_gradients()
        self.group_norms = clip_by_group(self.disentangled.partition, self.args.max_grad_norm)
        return torch.stack(list(self.group_norms.values())).norm()
