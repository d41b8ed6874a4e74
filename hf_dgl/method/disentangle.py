"""Disentangled gradient learning (DGL, ICCV 2025, arXiv 2507.10213) for any torch model: hooks, and one backward pass.

| loss | computed with | may change |
|---|---|---|
| multimodal `L_τ` | all modalities | the fusion's parameters, and nothing else |
| unimodal `L_m` | modality `m` alone, same fusion weights | the parameters of encoder `m`, and nothing else |

`L = L_τ + Σ_m α_m L_m`, each term routed as in the table. The routing happens while the graph is *built*, so one
ordinary `loss.backward()` gives exactly these gradients, under gradient accumulation, a loss scaler, DDP and FSDP
alike:

1. *Multimodal pass.* The model runs. Each encoder's output is remembered with its graph; the fusion gets a detached
    copy.
2. *Unimodal pass for each `m`.* The model's forward runs again, inside the same call of the model. Encoder `m` returns
   what is remembered of it, the other modalities are absent, and the fusion's parameters do not require gradients
   meanwhile.

Where an encoder's output cannot stand for the encoder (parameters that bypass it, weights tied across the cut,
interleaved layers; see `cut.py`), the encoder runs again in its own pass and only its parameters require gradients
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from .checks import CheckReport, check
from .cut import nodes_of
from .engine import Engine
from .loss_rules import Looks, refuse_changes, refuse_other_leaves
from .loss_state import changed, state_beside, state_of
from .modalities import FUSION
from .outputs import DisentangledOutput, entry
from .passes import MULTIMODAL, Run


class Disentangled(Engine):
    """The handle that [`hf_dgl.disentangle`] returns; also a context manager that removes itself at the end.

    Attributes:
        model: The model that the hooks sit on (the one inside a DDP wrapper).
        partition: Which modules and parameters belong to which modality.
        alpha, multimodal_to_encoders: One number per modality; may be changed between steps. They may also be scalar
            tensors on the model's device: then nothing waits for their values.
        cuts: For each modality that was trained so far, how it meets the fusion: reused or run again, and why.
        scores_alone: Whether modalities without unimodal loss are run alone, too: in a pass that trains nothing.
        meter: Set to a [`~hf_dgl.method.gradient_meter.GradientMeter`], it measures the gradients at the encoders'
            outputs.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._looks, self._looks_inside = Looks(), Looks()
        self._after_the_first: Callable[[], None] | None = None

    @contextmanager
    def outputs_one_by_one(self, after_the_first: Callable[[], None] | None = None) -> Iterator[None]:
        """Inside, a forward with several passes gives the list of what the model returned in each, in the order of
        `passes`.

        Args:
            after_the_first: Called between the multimodal pass and the others.
        """
        before = self._one_by_one, self._after_the_first
        self._one_by_one, self._after_the_first = True, after_the_first
        try:
            yield
        finally:
            self._one_by_one, self._after_the_first = before

    def _later_passes(self, run: Run) -> list[Any]:
        if self._after_the_first is not None:
            self._after_the_first()
        looks = run.training and self._looks_inside.is_due()
        kept = state_beside(self.model) if looks else {}
        outputs = super()._later_passes(run)
        names = changed(kept, state_beside(self.model)) if looks else []
        if names:
            self._tell(
                f"The model's forward changes {', '.join(names[:5])}. A step runs it with all modalities, and once "
                "more for each alone: what must change once per step, change only `if handle.running_pass in ('', "
                "'multimodal')`, or keep it in a buffer."
            )
        return outputs

    @property
    def running_pass(self) -> str:
        """The name of the pass that runs; `""` where the model does not run."""
        return "" if self._run is None else self._run.current.name

    def loss(self, output: Any, criterion: Callable[[Any], torch.Tensor]) -> torch.Tensor:
        """The DGL total for a loss that is computed outside of the model.

        Args:
            output: What the disentangled model returned.
            criterion: Gives the loss of one output of the model, `lambda out: cross_entropy(out.logits, labels)`. It
                is called once for each pass of the step.

        Returns:
            `L_τ + Σ α_m L_m`, a scalar; the terms are put into `output.losses`.

        Raises:
            ValueError: the criterion reads something trainable beside the output, or changes what it keeps.
        """
        wrapped = isinstance(output, DisentangledOutput)
        outputs = {MULTIMODAL: output.output if wrapped else output, **(entry(output, "unimodal") or {})}
        further = entry(output, "encoder_share") or {}
        routed = len(outputs) + len(further) > 1
        examine = routed and self._looks.is_due()
        losses, kept = {}, {}
        for name, found in outputs.items():
            losses[name] = self._loss_of_one(found, criterion, routed)
            if examine and name == MULTIMODAL:
                kept = state_of(criterion, unseen=[self.model])
        shares = {share: self._loss_of_one(found, criterion, routed) for share, found in further.items()}
        if examine:
            refuse_changes(changed(kept, state_of(criterion, unseen=[self.model])))
        if isinstance(output, Mapping):
            output["losses"] = losses  # type: ignore[index]
        else:
            output.losses = losses
        return self.total(losses, shares)

    def _loss_of_one(self, output: Any, criterion: Callable[[Any], torch.Tensor], routed: bool) -> torch.Tensor:
        nodes = set(nodes_of(output)) if routed else set()
        loss = criterion(output)
        if routed:
            refuse_other_leaves(loss, nodes, self.model)
        return loss

    def check(self, batch: Mapping[str, Any]) -> CheckReport:
        """Proves on one batch that the routing of this model is right; see [`hf_dgl.method.checks.check`].

        Returns:
            A report; `print` it.

        Raises:
            hf_dgl.method.checks.CheckError: if an absent modality leaks into a unimodal loss, or a gradient is not the
            oracle's.
        """
        return check(self, batch)

    def explain(self) -> str:
        """One line per modality: its parameters, its weights, and whether its encoder is reused or run again."""
        sizes = dict(self.model.named_parameters(remove_duplicate=False))
        lines = []
        for group in self.partition.groups:
            unique = {id(sizes[name]): sizes[name] for name in self.partition.parameter_names(group)}.values()
            total, trainable = sum(p.numel() for p in unique), sum(p.numel() for p in unique if p.requires_grad)
            line = f"{group}: {total:,} parameters, {trainable:,} trainable"
            if group != FUSION:
                line += f", alpha {float(self.alpha[group]):g}, share {float(self.multimodal_to_encoders[group]):g}"
                line += f"; {self._cut_in_words(group)}"
            lines.append(line)
        return "\n".join(lines)

    def _cut_in_words(self, modality: str) -> str:
        cut = self.cuts.get(modality)
        if cut is None:
            return "reuse is decided at the first training step"
        return "encoder output reused" if cut.reuse else f"encoder runs again in its own pass: {cut.obstacle}"
