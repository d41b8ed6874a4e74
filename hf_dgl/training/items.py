"""How a loss counts: a mean over its own (micro-)batch, or a share of the mean over the whole batch of a step.

Upstream's Trainer tells the model how many items (rows, or tokens) the whole batch of an optimizer step has, over all
micro-batches and processes, if the model's forward takes `**kwargs`. It then believes that the loss was divided by
that number (`num_items_in_batch`), and does not divide it by the number of micro-batches. Many forwards take the
number and do not read it. So it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_dgl.method.loss_state import changed
from hf_dgl.method.processes import sum_over_processes
from hf_dgl.method.replay import fresh
from hf_dgl.method.traces import without_a_trace

SHARE, MEAN = "share of the whole batch", "mean of the micro-batch"

_SAY_IT = (
    "Where a batch is cut (accumulation, processes), it is run twice beforehand, without gradients, to see whether "
    "its loss is a mean of the micro-batch or a share of the whole batch. Say which, and it is not: "
    "`trainer.loss_is_scaled_for_ga = False` for a mean, `True` for a share (divided by `num_items_in_batch`); or "
    "change what it keeps only `if self.current_pass == 'multimodal':`."
)

_TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3}  # relative, of a loss in this precision; of others:
_OTHERWISE = 1e-3


def how_it_counts_everywhere(found: str | None, device: Any) -> str | None:
    """What the processes have found together, whose batches may differ in what they tell."""
    votes = sum_over_processes(torch.tensor([found == SHARE, found == MEAN], dtype=torch.float32, device=device))
    shares, means = votes.tolist()
    return None if not shares and not means else SHARE if shares >= means else MEAN


def how_it_counts(
    compute: Callable[..., Any],
    model: nn.Module,
    inputs: Mapping[str, Any],
    options: Mapping[str, Any],
    keeps: Callable[[], dict[str, Any]] = dict,
) -> str | None:
    """Whether the loss of a batch halves with twice the `num_items_in_batch`, or does not heed it.

    Args:
        compute: `Trainer.compute_loss`, or what overrides it.
        model: That it is given, without wrappers; this leaves no trace in it.
        inputs: A batch.
        options: Further arguments of `compute`, with `num_items_in_batch`.
        keeps: Gives what `compute` could change ([`~hf_dgl.method.loss_state.state_of`]).

    Returns:
        [`SHARE`] or [`MEAN`]; None if this batch does not tell (its loss is zero, or not finite).

    Raises:
        ValueError: neither: a sum of both depends on how a batch is cut; or it cannot be measured.
    """
    losses, kept = [], keeps()
    with torch.no_grad(), without_a_trace(model):
        for factor in (1, 2):
            doubled = {**options, "num_items_in_batch": options["num_items_in_batch"] * factor}
            try:
                result = compute(model, fresh(inputs), **doubled)
            except RuntimeError as error:  # a penalty on gradients
                if "does not require grad" not in str(error):
                    raise
                raise ValueError(f"`compute_loss` needs gradients. {_SAY_IT}") from error
            losses.append(result[0] if isinstance(result, tuple) else result)
    names = changed(kept, keeps())
    if names:
        raise ValueError(f"`compute_loss` changes {', '.join(names[:5])}. {_SAY_IT}")
    once, twice = map(float, losses)
    tolerance = _TOLERANCE.get(losses[0].dtype, _OTHERWISE) * abs(once)
    if not 0 < abs(once) < float("inf"):
        return None
    if abs(twice - once) <= tolerance:
        return MEAN
    if abs(2 * twice - once) <= tolerance:
        return SHARE
    raise ValueError(
        f"With `num_items_in_batch` doubled, the loss goes from {once:.4g} to {twice:.4g}: a part of it is divided by "
        "that number and a part is not, so it depends on how a batch is cut. Divide all of it by "
        "`num_items_in_batch`, or nothing; or say how it counts by `loss_is_scaled_for_ga` of the Trainer."
    )


def items_in(inputs: Mapping[str, Any], shifts_labels: bool) -> Tensor | None:
    """How many items of a batch count, by upstream's rule; None where labels are no sequences of tokens."""
    labels = inputs.get("shift_labels", inputs.get("labels"))
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() < 2:
        return None
    if shifts_labels and "shift_labels" not in inputs:
        labels = labels[..., 1:]
    return labels.ne(-100).sum()


def rows_in(labels: Any, num_rows: int, present: Tensor | None) -> Tensor | float:
    """How many rows (or tokens) a loss is a mean of: those that have a label, and the modality.

    Args:
        labels: Of the batch; -100 in whole numbers does not count.
        num_rows: Rows of the batch.
        present: Bool `[B]`, which rows have the modality. None: all.
    """
    counted = None
    if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dim() > 0:
        counted = labels != -100
    if present is not None:
        rows = present.view(-1).bool()
        if counted is None:
            counted = rows
        elif len(counted) == len(rows):
            counted = counted & rows.to(counted.device).view(-1, *[1] * (counted.dim() - 1))
    return float(num_rows) if counted is None else counted.sum()
