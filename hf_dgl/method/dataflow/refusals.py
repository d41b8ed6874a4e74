"""Models and batches that DGL cannot be done with, and what to do instead: for `propose.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_dgl.method.checks import CheckReport
from hf_dgl.method.engine import Engine
from hf_dgl.method.outputs import entry, loss_of, tensors_in

from .inputs import WHERE_INPUTS_GO, modalities_in
from .proposal import Proposal
from .tags import Observation, evaluated


def refuse_too_few(groups: Mapping[str, Sequence[str]]) -> None:
    """The batch must have two modalities."""
    names = modalities_in(groups)
    if len(names) < 2:
        what = f"only {names[0]!r} ({', '.join(groups[names[0]])})" if names else "none"
        raise ValueError(
            f"DGL needs at least two modalities, and the batch has {what}. Labels and a decoder's inputs are what is "
            "predicted, and no modality. If another input is one, say so: `inputs={'text': ['...']}`. "
            f"{WHERE_INPUTS_GO}"
        )


def refuse_contrastive(model: nn.Module, batch: Mapping[str, Any]) -> None:
    """The loss that `return_loss` asks for (CLIP, CLAP, ...) is known to be contrastive before the model runs."""
    asked = batch.get("return_loss")
    if asked is None or not bool(asked.any() if isinstance(asked, torch.Tensor) else asked):
        return
    raise ValueError(
        f"`return_loss` in the batch asks {type(model).__name__} for a contrastive loss. It compares the modalities "
        "with each other, and one modality alone has none, so DGL is undefined here. Use the model's towers and "
        "labels: CrossModalForSequenceClassification.from_encoders({'image': checkpoint, 'text': checkpoint}, "
        "num_labels=...). If the model also has a loss from labels, leave `return_loss` out."
    )


def refuse_unseparated(
    exits: Mapping[str, Sequence[str]], seen: Observation, groups: Mapping[str, Sequence[str]]
) -> None:
    """Each modality must have an effect, and something that sees it alone."""
    for name in exits:
        if not set(groups[name]) & seen.output.inputs:
            raise ValueError(
                f"The model's output does not depend on {name!r} ({', '.join(groups[name])}): it is one modality "
                "less. Does this batch have what the model reads?"
            )
    for name in exits:
        if not exits[name]:
            where = f" It enters at {_entrance(seen, groups[name])!r}." if _entrance(seen, groups[name]) else ""
            raise ValueError(
                f"No module of the model sees {name!r} alone and with weights of its own, so it has no encoder."
                f"{where} If you know better: `modalities={{'{name}': {{'encoder': ['...']}}, ...}}`."
            )


def _entrance(seen: Observation, inputs: Sequence[str]) -> str:
    """The innermost module of those that read an input first."""
    entrance = ""
    for path, module in seen.modules.items():  # in the order of the calls
        if set(inputs) & module.raw and (not entrance or path.startswith(f"{entrance}.")):
            entrance = path
    return entrance


def refuse_untrainable(own: Mapping[str, set[str]], seen: Observation, model: nn.Module) -> None:
    """An encoder must be there, and must get gradients."""
    if not any(own.values()):
        raise ValueError(
            f"All parameters of {type(model).__name__} are fusion: no modality has an encoder of its own to train. "
            "Train it jointly, `method: joint`."
        )
    for name, found in own.items():
        if found and found <= seen.blind:
            raise ValueError(
                f"The model runs its {name} encoder ({sorted(found)[0]!r} and {len(found) - 1} more) under "
                "`torch.no_grad()`, so it cannot be trained, by DGL or otherwise."
            )


def refuse_undefined(model: nn.Module, batch: Mapping[str, Any], proposal: Proposal) -> None:
    """One modality alone must give an output, and a finite one."""
    try:
        with evaluated(model), Engine(model, proposal.modalities) as engine, engine.unimodal_outputs():
            alone = entry(model(**batch), "unimodal")
    except Exception as error:  # whatever a model says to a call that it is not made for
        raise ValueError(f"The model does not run with one modality alone: {error}\n\n{proposal}") from error
    for name, output in alone.items():
        loss = loss_of(output)
        values = tensors_in(output if loss is None else loss)
        if not all(bool(value.isfinite().all()) for value in values if value.is_floating_point()):
            raise ValueError(
                f"The loss of {name} alone is not finite (NaN or infinite): it is undefined where the other "
                "modalities are absent. A contrastive loss is, and so is whatever divides an absent modality's zeros "
                "by their own norm (CLIP's `image_embeds`). Put a head with a supervised loss on the encoders' "
                "outputs before they are normalised."
            )


_ROUNDING = 1e-5


def refuse_unmoved(report: CheckReport) -> None:
    """A modality's own loss must move with it: answers that differ in their text alone do not, without the text."""
    for name, size in report.own_gradient.items():
        if size < _ROUNDING:
            raise ValueError(
                f"The loss of {name} alone does not move with {name}: its gradient there is {size:.0e} of the "
                "multimodal loss's, which is rounding. Alone, it has nothing to learn from, so there is nothing to "
                "disentangle. Train jointly (`method: joint`), or with labels that it could predict alone."
            )
