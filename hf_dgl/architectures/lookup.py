"""Finds a model's row in the table."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from hf_dgl.method.forward_call import below_adapters
from hf_dgl.method.modalities import Modality, did_you_mean

from . import audio_language, interleaved, queries, refused, seq2seq, single_stream, two_stream, vision_language
from .architecture import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    **two_stream.ROWS,
    **vision_language.ROWS,
    **audio_language.ROWS,
    **seq2seq.ROWS,
    **queries.ROWS,
    **single_stream.ROWS,
    **interleaved.ROWS,
    **refused.ROWS,
}
"""Class name of the model -> its row."""


def architecture_of(model: nn.Module) -> Architecture:
    """The row of a model's class, or of the nearest class that it is derived from.

    Raises:
        ValueError: the class is not in the table (says what to declare), or DGL is undefined for it (says why, and
            what to do instead).

    Example:

        >>> architecture_of(BridgeTowerForImageAndTextRetrieval(config)).method
        'dgl'
    """
    model = below_adapters(model)
    found = row_of(model)
    if found is None:
        raise ValueError(_unknown(model))
    if found.refused:
        raise ValueError(f"{type(model).__name__}: {found.refused}")
    return found


def row_of(model: nn.Module) -> Architecture | None:
    """The row of a model's class, or of the nearest class that it is derived from; refused ones, too."""
    return next((ARCHITECTURES[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in ARCHITECTURES), None)


def refuse_auto(model: nn.Module) -> None:
    """What the table refuses, `modalities="auto"` refuses, too: some such losses look well on one batch.

    A class of the user's with a forward of its own may be another matter than the refused one it is derived from.

    Raises:
        ValueError: with the table's reason.
    """
    model = below_adapters(model)
    for kind in type(model).__mro__:
        row = ARCHITECTURES.get(kind.__name__)
        if row is not None:
            if row.refused and getattr(kind, "forward", None) is type(model).forward:
                raise ValueError(f"{type(model).__name__}: {row.refused}")
            return


def modalities_of(model: nn.Module, partition: str | None = None) -> Mapping[str, Modality]:
    """The modalities of a model of a known architecture.

    Args:
        model: Of a known class, or a PEFT model of one.
        partition: Which one, where the architecture has several. Default: its first.

    Raises:
        ValueError: if the architecture is not known or refused, or has no such partition.

    Example:

        >>> sorted(modalities_of(CrossModalForSequenceClassification(config)))
        ['image', 'text']
    """
    model = below_adapters(model)
    partitions = architecture_of(model).partitions
    if partition is None:
        partition = next(iter(partitions))
    if partition not in partitions:
        raise ValueError(
            f"{type(model).__name__} has no partition {partition!r}{did_you_mean(partition, list(partitions))} "
            f"It has {list(partitions)}."
        )
    return partitions[partition](getattr(model, "config", None))


def _unknown(model: nn.Module) -> str:
    name = type(model).__name__
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    family = str(model_type or name).replace("_", "").replace("-", "")
    relatives = [known for known in ARCHITECTURES if known.lower().startswith(family)]
    also = f" Of this family, {relatives} are known." if relatives else ""
    return (
        f"The modalities of {name} (model_type {model_type!r}) are not known.{also} Declare them, e.g. "
        "`modalities={'image': {'inputs': ['pixel_values'], 'encoder': ['vision_model']}, 'text': {...}}`, or let "
        "them be found on one batch, which proves them, too: `DGLTrainer(..., modalities='auto')`, or "
        "`disentangle(model, 'auto', example_batch=batch)` in a loop of your own."
    )
