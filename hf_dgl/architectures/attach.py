"""`disentangle`: from a model, and what is known of it, to a handle in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hf_dgl.method.dataflow import find_modalities
from hf_dgl.method.disentangle import Disentangled
from hf_dgl.method.forward_call import unwrapped


def disentangle(
    model: nn.Module,
    modalities: Mapping[str, Any] | str,
    alpha: float | Mapping[str, float] = 1.0,
    multimodal_to_encoders: float | Mapping[str, float] = 0.0,
    unimodal_to_fusion: bool = False,
    example_batch: Mapping[str, Any] | None = None,
) -> Disentangled:
    """Makes `model` train with disentangled gradients until `handle.remove()`.

    From now on `model(**batch)` in training mode returns its usual output with `loss` = `L_τ + Σ α_m L_m`, and in
    addition `losses` (each term, unweighted, by name) and `unimodal` (the output for each modality alone). In eval
    mode and under `torch.no_grad()` the model is untouched. Attach after PEFT, before or after DDP/FSDP.

    Args:
        model: Any module whose forward is given all modalities and returns a dict, a dataclass such as `ModelOutput`,
            a tuple or a tensor. A `loss` entry is used if there is one; otherwise see [`Disentangled.loss`].
        modalities: Name -> [`Modality`], a dict of its fields, or just the path of its encoder module. `"auto"`: found
            by watching the model on `example_batch`, checked there, and logged ([`hf_dgl.method.dataflow.propose`]).
        alpha: Weight of the unimodal losses (α of the paper, 2-5 there under SGD), one number or one per modality. 0
            skips that modality's pass. Optimisers of the Adam family are invariant to it, except through gradient
            clipping.
        multimodal_to_encoders: Share (0 to 1) of the multimodal loss's gradient that passes to the encoders, one
            number or one per modality. 0 is the paper's *multimodal gradient truncation*.
        unimodal_to_fusion: Whether the unimodal losses may train the fusion too. False is the paper's *unimodal
            gradient truncation*.
        example_batch: For `modalities="auto"`: keyword arguments of the model, with labels, on its device.

    Raises:
        ValueError: unknown module paths, patterns or modality names, values out of range, `nn.DataParallel`.

    Example:

        >>> handle = disentangle(model, {"image": "vision_model", "text": "text_model"}, alpha=1.0)
        >>> out = model(**batch)
        >>> out.loss.backward()
        >>> handle.remove()
    """
    if isinstance(modalities, str):
        if modalities != "auto":
            raise ValueError(
                f"`modalities` must be 'auto' or a dict such as {{'image': 'vision_model'}}, got {modalities!r}."
            )
        modalities = find_modalities(unwrapped(model), example_batch).modalities
    return Disentangled(model, modalities, alpha, multimodal_to_encoders, unimodal_to_fusion)
