"""The machine of the method: hooks on a model that run the passes of a step inside one forward.

`disentangle.py` says what the method is, `passes.py` what a pass is, `cut.py` when an encoder's output may be reused.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import nn

from .copies import leave_behind
from .cut import Cut, find_cuts
from .forward_call import NO_DATA_PARALLEL, bound_arguments, is_present, unwrapped
from .gradient_meter import GradientMeter, Measurement
from .modalities import FUSION, Partition, resolve
from .net import GradientNet
from .outputs import extended, loss_of
from .passes import MULTIMODAL, Pass, Routing, Run, gradient_only, is_whole, passes_of_a_step, recompute_under

logger = logging.getLogger(__name__)

_E = TypeVar("_E", bound="Engine")


class Engine:
    """The hooks on a model, and what they do in a step; [`~hf_dgl.Disentangled`] is what users hold.

    A context manager that removes itself at the end. Arguments and attributes: see there.
    """

    def __init__(
        self,
        model: nn.Module,
        modalities: Mapping[str, Any],
        alpha: float | Mapping[str, float] = 1.0,
        multimodal_to_encoders: float | Mapping[str, float] = 0.0,
        unimodal_to_fusion: bool = False,
    ) -> None:
        self.model = unwrapped(model)
        if handle_on(self.model) is not None:
            raise ValueError("The model is disentangled already: call `remove()` on the first handle.")
        self.partition: Partition = resolve(self.model, modalities)
        per_modality = self.partition.per_modality
        self.alpha = per_modality("alpha", alpha, upper=None)
        self.multimodal_to_encoders = per_modality("multimodal_to_encoders", multimodal_to_encoders, upper=1.0)
        self.unimodal_to_fusion = unimodal_to_fusion
        self.cuts: dict[str, Cut] = {}
        self.scores_alone = False
        self.meter: GradientMeter | None = None
        self.reads_all_outputs = False
        self.passes: list[Pass] = []
        self.net = GradientNet(self.partition)
        self._modality_of = {path: name for name, found in self.partition.encoders.items() for path in found}
        self._plans: dict[Any, dict[str, Cut]] = {}
        self._told: set[str] = set()
        self._looked = False
        self._run: Run | None = None
        self._also_in_eval: dict[str, Any] | None = None  # what `unimodal_outputs` gave
        self._one_by_one = False
        self._encoder_hooks: list[Any] = []
        # `prepend`: FSDP2's own post-forward hook must see the outputs of all passes, so ours runs before it.
        self._root_hooks = [
            self.model.register_forward_pre_hook(self._before, with_kwargs=True),
            self.model.register_forward_hook(self._after, prepend=True, with_kwargs=True, always_call=True),
        ]
        self._copies_are_plain = False
        self._undo: list[Callable[[], None]] = []

    # ---- what a user calls ------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Takes every hook off again. The model is as it was before [`disentangle`]."""
        for hook in [*self._root_hooks, *self._encoder_hooks]:
            hook.remove()
        for step in self._undo:
            step()
        self._root_hooks, self._encoder_hooks, self._undo = [], [], []

    def stay_behind(self) -> None:
        """From now on, copies and pickles of the model are plain models; else a copy has a handle of its own."""
        assert not self._encoder_hooks, "to be called before the first step"
        self._copies_are_plain = True
        self._undo.append(leave_behind(self.model, self._root_hooks))

    def come_last(self) -> None:
        """Lets what others do before a forward (DeepSpeed's engine announces it to its parameters) come before ours.

        Hooks run in the order in which they were put on: needed where a model is wrapped after it was disentangled.
        """
        hooks: Any = self.model._forward_pre_hooks  # an OrderedDict, whatever torch's annotation says
        for hook in self._root_hooks[:1]:  # none, after `remove`
            hooks.move_to_end(hook.id)

    def _is_before_zero3(self) -> bool:
        """Whether parameters are partitioned by an engine that is told of a forward only after our hook."""
        is_last = next(reversed(self.model._forward_pre_hooks)) == self._root_hooks[0].id
        return not is_last and hasattr(next(self.model.parameters()), "ds_status")

    def __enter__(self: _E) -> _E:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @contextmanager
    def unimodal_outputs(self) -> Iterator[dict[str, Any]]:
        """Inside, forwards in eval mode or under `no_grad` also give `unimodal` and `losses` (`loss` stays as it
        is).

        Yields:
            A dictionary that holds, after each such forward, modality -> its output alone.
        """
        before, self._also_in_eval = self._also_in_eval, {}
        try:
            yield self._also_in_eval
        finally:
            self._also_in_eval = before

    @property
    def is_attached(self) -> bool:
        """Whether the hooks are on the model: from the beginning until [`Engine.remove`]."""
        return bool(self._root_hooks)

    @property
    def has_passes(self) -> bool:
        """Whether a training step may be more than one plain forward (joint training is not)."""
        alone = self.scores_alone or self.meter is not None or any(map(self.trains_alone, self.alpha))
        return alone or not all(map(is_whole, self.multimodal_to_encoders.values()))

    def look_at(self, batch: Mapping[str, Any]) -> None:
        """Decides on one batch, rather than at the first training step, which encoders can be reused.

        Args:
            batch: Keyword arguments of the model, on its device.

        Raises:
            ValueError: what the first step would raise: an encoder that is never called, or runs without gradients.
        """
        call = dict(batch)
        with torch.enable_grad():
            self._plan(self._present(call), call)

    def trains_alone(self, modality: str) -> bool:
        """Whether the modality has a unimodal pass (an `alpha` on the device may become zero; nobody waits to see)."""
        return isinstance(self.alpha[modality], torch.Tensor) or self.alpha[modality] != 0

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            logger.warning(message)

    # ---- one training step ------------------------------------------------------------------------------------

    @torch.compiler.disable
    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the model: plans the passes and opens the multimodal one."""
        if getattr(module, "_is_replica", False):
            raise ValueError(NO_DATA_PARALLEL)
        self.passes = []
        training = module.training and torch.is_grad_enabled()
        if not training and self._also_in_eval is None:
            self._tell_of_eval_mode()
            return
        if training:
            self.net.verify()
        if self._is_before_zero3():
            raise ValueError(
                "Under DeepSpeed ZeRO-3 the model must be disentangled last: call `disentangle` after "
                "`accelerator.prepare` or `deepspeed.initialize`, or the handle's `come_last()`."
            )
        call = bound_arguments(self.model, args, kwargs)
        present = self._present(call)
        cuts: dict[str, Cut] = {} if training else self._cuts_in_evaluation(present, call)
        measurement = None
        if training:
            measures = self.meter is not None and self.meter.is_due()
            passes = self._passes(present, cuts, measures)
            if len(passes) == 1 and passes[0].trains >= set(present):
                return  # nothing to route: plain joint training
            cuts = self._plan(present, call)
            passes = self._passes(present, cuts, measures)
            measurement = self._measurement(passes, cuts) if measures else None
        else:
            passes = [Pass(MULTIMODAL, frozenset(), 1.0), *(Pass(name, frozenset(), 1.0) for name in present)]
        self._attach_to_encoders()
        if training:
            self.net.begin(step.name for step in passes if step.name in step.trains and self.trains_alone(step.name))
        self.passes = passes
        shares = self.multimodal_to_encoders
        self._run = Run(self.model, self.partition, call, passes, cuts, shares, training, measurement)
        self._run.open(passes[0])

    @torch.compiler.disable
    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook of the model: runs the remaining passes and gathers their outputs. Also after failures."""
        run, self._run = self._run, None
        if run is None:
            return None
        run.close()
        if output is None:  # forward raised (hooks with `always_call` are then given None)
            return None
        outputs = [output, *self._later_passes(run)]
        for step, found in zip(run.passes, outputs, strict=True):
            self.net.watch_output(step.name, found)
        return outputs if self._one_by_one else self._assemble(run, outputs)

    def _tell_of_eval_mode(self) -> None:
        if torch.is_grad_enabled() and self.has_passes and not self.model.training:
            self._tell(
                "The model is in eval mode with gradients on: what is trained like this is plain joint training, "
                "without the unimodal losses. Call `model.train()` before a training step (`from_pretrained` and "
                "`from_encoders` return eval mode), and `torch.no_grad()` around an evaluation."
            )

    def _later_passes(self, run: Run) -> list[Any]:
        """The outputs of all passes after the first."""
        self._run = run
        try:
            return [self._later_pass(run, step) for step in run.passes[1:]]
        finally:
            self._run = None

    def _later_pass(self, run: Run, step: Pass) -> Any:
        run.open(step)
        try:
            output = self.model.forward(**run.call_for(step))
        finally:
            run.close()
        obstacle = run.mismatch()
        if not obstacle:
            return output
        # From now on the encoder runs again in its own pass, in the steps to come too (these cuts are the plan's).
        run.cuts[step.name] = self.cuts[step.name] = Cut(run.cuts[step.name].exits, obstacle)
        logger.info("Modality %r: the encoder runs again in its own pass: %s.", step.name, obstacle)
        return self._later_pass(run, step)

    def run_passes(self, run: Run) -> list[Any]:
        """The outputs of all passes of `run`, without calling the model's own hooks (for the checks)."""
        self._attach_to_encoders()
        self._run = run
        try:
            run.open(run.passes[0])
            output = self.model.forward(**run.call)
        finally:
            run.close()
            self._run = None
        return [output, *self._later_passes(run)]

    def _present(self, call: Mapping[str, Any]) -> list[str]:
        return [name for name, modality in self.partition.modalities.items() if is_present(modality.inputs, call)]

    def _passes(self, present: list[str], cuts: Mapping[str, Cut], measures: bool = False) -> list[Pass]:
        """The passes of one step (the table on top of this file). Without `cuts`, every encoder counts as reusable."""
        trainable = self._trainable_groups()
        alone = {name: self.alpha[name] for name in present if self.trains_alone(name)}
        for name in [name for name in alone if name not in trainable]:
            self._tell(f"Modality {name!r} has no trainable parameters: its unimodal pass is skipped.")
            del alone[name]
        shares = {name: self.multimodal_to_encoders[name] for name in present}
        measured = [name for name in present if measures and name in trainable and name not in alone]
        passes = passes_of_a_step(alone, shares, trainable, cuts, self.unimodal_to_fusion, measured)
        run = {step.name for step in passes}
        return passes + [Pass(name, frozenset(), 0.0) for name in present if self.scores_alone and name not in run]

    def _measurement(self, passes: list[Pass], cuts: Mapping[str, Cut]) -> Measurement:
        """Of the modalities whose features are the one way from encoder to fusion; the others are told."""
        assert self.meter is not None
        for name, cut in cuts.items():
            if not cut.reuse:
                self._tell(f"The gradients at the encoder's output of {name!r} are not measured: {cut.obstacle}.")
        alone = [step for step in passes[1:] if step.in_value and step.name in cuts and cuts[step.name].reuse]
        return self.meter.begin({step.name: step.weight for step in alone})

    def _trainable_groups(self) -> set[str]:
        groups: set[str] = set()
        for parameter, owners in self.partition.parameters():
            if parameter.requires_grad:
                groups |= owners or {FUSION}
        return groups

    def _assemble(self, run: Run, outputs: list[Any]) -> Any:
        output, later = outputs[0], list(zip(run.passes, outputs, strict=True))[1:]
        unimodal = {step.name: entry for step, entry in later if step.in_value}
        shares = {step.weight: entry for step, entry in later if not step.in_value}
        extra: dict[str, Any] = {"unimodal": unimodal}
        if not run.training and self._also_in_eval is not None:
            self._also_in_eval.clear()
            self._also_in_eval.update(unimodal)
        if shares:
            extra["encoder_share"] = shares
        found = {MULTIMODAL: loss_of(output), **{name: loss_of(entry) for name, entry in unimodal.items()}}
        losses = {name: loss for name, loss in found.items() if loss is not None}
        if len(losses) == len(found):
            extra["losses"] = losses
            if run.training:
                share_losses = {share: loss_of(entry) for share, entry in shares.items()}
                extra["loss"] = self.total(losses, share_losses)  # type: ignore[arg-type]
        return extended(output, extra)

    def total(self, losses: Mapping[str, torch.Tensor], shares: Mapping[Any, torch.Tensor]) -> torch.Tensor:
        """`L_τ + Σ α_m L_m`.

        Args:
            losses: Of the passes by name.
            shares: Of the passes that only pass a share of the multimodal gradient on -> their loss.
        """
        total = losses[MULTIMODAL]
        for name, loss in losses.items():
            if name != MULTIMODAL:
                total = total + (self.alpha[name] * loss if self.trains_alone(name) else gradient_only(loss))
        for share, loss in shares.items():  # its value is in the total already: only the gradient is added
            total = total + share * gradient_only(loss)
        return total

    # ---- reuse or run again -----------------------------------------------------------------------------------

    def _plan(self, present: list[str], call: dict[str, Any]) -> dict[str, Cut]:
        """The cuts for the present modalities and `requires_grad` flags, by a trial forward for each new case."""
        flags = tuple(parameter.requires_grad for parameter, _ in self.partition.parameters())
        key = (flags, tuple(present), self.reads_all_outputs)
        if key not in self._plans:
            self._plans[key] = cuts = self._trial(present, call)
            for name in self._trainable_groups() & set(present):
                if name not in cuts:
                    raise ValueError(
                        f"No gradient reaches the encoder of modality {name!r} from the model's output "
                        f"({', '.join(self.partition.encoders[name])}): it runs without gradients, or is not used."
                    )
            self.cuts.update(cuts)
            for name, cut in cuts.items():
                if not cut.reuse:
                    logger.info("Modality %r: the encoder runs again in its own pass: %s.", name, cut.obstacle)
        return self._plans[key]

    def _cuts_in_evaluation(self, present: list[str], call: dict[str, Any]) -> dict[str, Cut]:
        """What training has found; before any, what one trial finds: then each encoder runs once, not in every pass.

        What neither finds (an encoder without gradients, say) runs again, which is right for all models.
        """
        unknown = any(name not in self.cuts for name in present)
        if unknown and not self._looked and not torch.is_inference_mode_enabled():
            self._looked = True
            with suppress(ValueError, torch.OutOfMemoryError):
                self.look_at(call)
        return self.cuts

    def _trial(self, present: list[str], call: dict[str, Any]) -> dict[str, Cut]:
        undo = recompute_under(Routing(self.model, self.partition, None, moves_statistics=True))
        try:
            return find_cuts(self.model, self.partition, present, call, self.reads_all_outputs)
        except ValueError as error:
            if "use_reentrant=False" not in str(error):  # what torch says to a `context_fn` there
                raise
            raise ValueError(
                "Reentrant activation checkpointing forgets the routing when it recomputes, and its gradients would "
                "be wrong. Use `gradient_checkpointing_kwargs={'use_reentrant': False}`."
            ) from error
        finally:
            undo()

    def _attach_to_encoders(self) -> None:
        """Hooks on the encoders come at the first step, so that they run inside those of FSDP and PEFT."""
        if self._encoder_hooks:
            return
        for modules in self.partition.encoders.values():
            for path, module in modules.items():
                hook = module.register_forward_hook(functools.partial(self._encoder_called, path), with_kwargs=True)
                self._encoder_hooks.append(hook)
                if self._copies_are_plain:
                    self._undo.append(leave_behind(module, [hook]))

    @torch.compiler.disable
    def _encoder_called(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Forward hook of an encoder module: remembers its output and gives the fusion what it may see of it."""
        if self._run is None:
            return None
        self.net.watch_encoder(self._modality_of[path], output)
        return self._run.hand_over(self._modality_of[path], path, (args, kwargs), output)


def handle_on(model: nn.Module) -> Engine | None:
    """The handle whose hooks are on a model, whoever attached it; None for a plain model."""
    owners = (getattr(hook, "__self__", None) for hook in unwrapped(model)._forward_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Engine)), None)
