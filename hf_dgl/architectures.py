"""Where the modalities of known architectures live: `model_type` -> declaration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from .modalities import Modality


def _cross_modal(config: Any) -> dict[str, Modality]:
    """Our own model: one encoder module and one (grouped) input per modality; an absent one is left out of the
    call."""
    return {
        name: Modality(inputs=[name], encoder=[f"cross_modal.encoders.{name}"], absent="omit")
        for name in config.encoders
    }


ARCHITECTURES: dict[str, Callable[[Any], Mapping[str, Modality]]] = {"cross_modal": _cross_modal}


def modalities_of(model: nn.Module) -> Mapping[str, Modality]:
    """The modalities of a model of a known architecture.

    Raises:
        ValueError: if the architecture is not known; the message says what to declare.

    Example:

        >>> sorted(modalities_of(CrossModalForSequenceClassification(config)))
        ['image', 'text']
    """
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type not in ARCHITECTURES:
        example = "modalities={'image': {'inputs': ['pixel_values'], 'encoder': ['vision_model']}, 'text': {...}}"
        raise ValueError(
            f"Got a {type(model).__name__} (model_type {model_type!r}), whose modalities are not known. Known: "
            f"{list(ARCHITECTURES)}. Declare them, e.g. `{example}`."
        )
    return ARCHITECTURES[model_type](config)
