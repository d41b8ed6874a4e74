"""`disentangle`: from a model, and what is known of it, to a handle in training."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from hf_dgl.method.dataflow import find_modalities
from hf_dgl.method.disentangle import Disentangled
from hf_dgl.method.engine import handle_on
from hf_dgl.method.forward_call import below_adapters, unwrapped
from hf_dgl.method.methods import METHODS
from hf_dgl.method.modalities import Modality

from .lookup import architecture_of, modalities_of, refuse_auto, row_of

logger = logging.getLogger(__name__)


def disentangle(
    model: nn.Module,
    modalities: Mapping[str, Any] | str | None = None,
    alpha: float | Mapping[str, float] = 1.0,
    multimodal_to_encoders: float | Mapping[str, float] = 0.0,
    unimodal_to_fusion: bool | None = None,
    example_batch: Mapping[str, Any] | None = None,
) -> Disentangled:
    """Makes `model` train with disentangled gradients until `handle.remove()`.

    From now on `model(**batch)` in training mode returns its usual output with `loss` = `L_τ + Σ α_m L_m`, and in
    addition `losses` (each term, unweighted, by name) and `unimodal` (the output for each modality alone). In eval
    mode and under `torch.no_grad()` the model is untouched: call `model.train()` before training, since
    `from_pretrained` and `from_encoders` return eval mode (a step in eval mode is joint training, and is told once).
    Attach after PEFT, before or after DDP/FSDP. After the first backward, a unimodal loss that has not reached its
    encoder is a `RuntimeError`: a loss of your own goes through [`Disentangled.loss`].

    Args:
        model: Any module whose forward is given all modalities and returns a dict, a dataclass such as `ModelOutput`,
            a tuple or a tensor. A `loss` entry is used if there is one; otherwise see [`Disentangled.loss`].
        modalities: Name -> [`Modality`], a dict of its fields, or just the path of its encoder module. Default: known
            from the model's class ([`hf_dgl.architectures.ARCHITECTURES`]; all models of ours). Of a known class a
            modality's name there will do in place of a path: `{"image": "image"}`. `"auto"`: found by watching the
            model on `example_batch`, checked there, and logged ([`hf_dgl.method.dataflow.propose`]).
        alpha: Weight of the unimodal losses (α of the paper, 2-5 there under SGD), one number or one per modality. 0
            skips that modality's pass. Optimisers of the Adam family are invariant to it, except through gradient
            clipping.
        multimodal_to_encoders: Share (0 to 1) of the multimodal loss's gradient that passes to the encoders, one
            number or one per modality. 0 is the paper's *multimodal gradient truncation*.
        unimodal_to_fusion: Whether the unimodal losses may train the fusion too. False is the paper's *unimodal
            gradient truncation*. Default: False; where `modalities` are known from the class, what suits it (as in
            `DGLTrainer`).
        example_batch: Keyword arguments of the model, with labels, on its device. Needed for `modalities="auto"`;
            with others, the model is looked at on it at once, not at the first training step.

    Raises:
        ValueError: unknown module paths, patterns or modality names, modules that are never called, values out of
            range, a class that is not known (without `modalities`) or for which DGL is undefined, `nn.DataParallel`.

    Example:

        >>> handle = disentangle(model.train())
        >>> out = model(**batch)
        >>> out.loss.backward()
        >>> handle.remove()
    """
    inner = unwrapped(model)
    if handle_on(inner) is not None:
        gc.collect()  # maybe it is that of a trainer that nobody has any more
    if modalities is None and unimodal_to_fusion is None:
        unimodal_to_fusion = _suits(inner)
    declared = _declared(inner, modalities, example_batch)
    handle = Disentangled(model, declared, alpha, multimodal_to_encoders, bool(unimodal_to_fusion))
    if example_batch is not None and modalities != "auto":
        try:
            handle.look_at(example_batch)
        except BaseException:
            handle.remove()
            raise
    return handle


def found_by_data_flow(model: nn.Module, batch: Mapping[str, Any] | None) -> Mapping[str, Modality]:
    """`modalities="auto"`: found on one batch, and checked there.

    Raises:
        ValueError: if the table knows that DGL is undefined for the model's class, or as
            [`hf_dgl.method.dataflow.find_modalities`] (of a class of the table, with what to do instead).
    """
    refuse_auto(model)
    try:
        return find_modalities(model, batch).modalities
    except ValueError as error:
        known = row_of(below_adapters(model))
        if known is None or known.refused:
            raise
        name = type(below_adapters(model)).__name__
        raise ValueError(
            f"{error}\n\nThe modalities of {name} are known and need not be found: leave `modalities` out, or take "
            "them from `hf_dgl.architectures.modalities_of(model)`."
        ) from error


def _declared(
    model: nn.Module, modalities: Mapping[str, Any] | str | None, example_batch: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    if modalities is None:
        return modalities_of(model)
    if not isinstance(modalities, str):
        return _without_short_names(model, modalities)
    if modalities != "auto":
        raise ValueError(
            f"`modalities` must be 'auto' or a dict such as {{'image': 'vision_model'}}, got {modalities!r}."
        )
    return found_by_data_flow(model, example_batch)


def _suits(model: nn.Module) -> bool:
    """Whether the unimodal losses should train the fusion, too, of a known class."""
    known = architecture_of(model)
    if known.method != "dgl":
        logger.warning(
            "%s: `unimodal_to_fusion=True`, which suits it (`method: %s`). %s",
            *(type(below_adapters(model)).__name__, known.method, known.absent),
        )
    return METHODS[known.method].unimodal_to_fusion


def _without_short_names(model: nn.Module, modalities: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"image": "image"}` of a known class, where the second word is a modality of the table and no module's path."""
    known = row_of(below_adapters(model))
    if known is None or known.refused or not isinstance(modalities, Mapping):
        return modalities
    table, paths = modalities_of(model), {path for path, _ in model.named_modules()}
    return {
        name: table[value] if isinstance(value, str) and value in table and value not in paths else value
        for name, value in modalities.items()
    }
