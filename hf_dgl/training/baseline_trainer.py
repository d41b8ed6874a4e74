"""What the published baselines (`methods.py`) add to the Trainer: a class between it and `DGLTrainer`.

| method | when | what |
|---|---|---|
| `ogm_ge` | each forward; after the last backward of a step | scores are counted; gradients are changed |
| `g_blending` | each forward; each evaluation | the losses are weighed; the weights are estimated anew |
| `unimodal` | at the beginning | the model must have the one encoder |
"""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_dgl.data.labels import SINGLE_LABEL
from hf_dgl.method.baselines.g_blending import Blending
from hf_dgl.method.baselines.ogm_ge import Modulation
from hf_dgl.method.disentangle import Disentangled
from hf_dgl.method.methods import ALL_METHODS, G_BLENDING, OGM_GE, UNIMODAL, Method

from .callbacks import BlendAtEvaluations
from .groups_trainer import GroupsTrainer


class BaselineTrainer(GroupsTrainer):
    """A Trainer that can train by `ogm_ge`, `g_blending` and `unimodal`; for other methods it changes nothing.

    Attributes:
        modulation, blending: What `ogm_ge` and `g_blending` follow in training; None for other methods.
    """

    modulation: Modulation | None = None
    blending: Blending | None = None

    @property
    def _method(self) -> Method:
        return ALL_METHODS[self.args.method or "dgl"]

    def _begin_baseline(self, handle: Disentangled, problem_type: str | None) -> None:
        """Starts afresh with a model; refuses one that the method is not for."""
        names, method = list(handle.partition.modalities), self.args.method
        if method == UNIMODAL and names != [self.args.modality]:
            raise ValueError(
                f"`method: unimodal` with `modality: {self.args.modality}` trains a model that has this encoder only, "
                f"got one with {names}: build it with one encoder, `from_encoders({{'{names[0]}': ...}})`, as "
                "`hf-dgl train` does. The fusion of a multimodal checkpoint cannot be taken apart."
            )
        self.modulation = self._modulation_of(handle, problem_type) if method == OGM_GE else None
        self.blending = Blending(names) if method == G_BLENDING else None
        self.remove_callback(BlendAtEvaluations)
        if self.blending is not None:
            self.add_callback(BlendAtEvaluations(self))

    def _modulation_of(self, handle: Disentangled, problem_type: str | None) -> Modulation:
        if problem_type != SINGLE_LABEL:
            raise ValueError(
                "`method: ogm_ge` compares the probabilities of the true class, so it is for models with "
                f"`config.problem_type = {SINGLE_LABEL!r}`, got {problem_type!r}. Set it if that is what your labels "
                "are, or use another method, e.g. `dgl`."
            )
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(
                "`method: ogm_ge` changes whole gradients between backward and step, which FSDP and DeepSpeed keep in "
                "pieces: train with DDP (recipes/accelerate/ddp.yaml)."
            )
        return Modulation(handle, self.args.ogm_alpha, self.args.ogm_noise, self.args.seed)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Changes the gradients where upstream does not clip them (`max_grad_norm: 0`); else `_clip_grad_norm` has."""
        if grad_norm is None:
            self._modulate()
        return super()._get_grad_norm(model, grad_norm)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Changes the gradients before they are clipped."""
        self._modulate()
        return super()._clip_grad_norm(model)

    def _modulate(self) -> None:
        """OGM-GE: after the last backward of a step, before clipping."""
        if self.modulation is not None:
            epoch, end = self.state.epoch or 0.0, self.args.ogm_end_epoch
            active = epoch >= self.args.ogm_start_epoch and (end is None or epoch < end)
            self.modulation.modulate(self.state.global_step, active)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds `ogm_coefficient_image`, ..., or `weight_image`, ..."""
        if "loss" in logs:
            for rule in (self.modulation, self.blending):
                logs.update({} if rule is None else rule.logs())
        super().log(logs, start_time)
