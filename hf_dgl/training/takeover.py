"""Whose model is it? A trainer that is gone frees its model, and a new one takes over."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from hf_dgl.architectures.attach import disentangle
from hf_dgl.method.disentangle import Disentangled
from hf_dgl.method.engine import Engine, handle_on

_OF_TRAINERS: weakref.WeakSet[Engine] = weakref.WeakSet()


def take_over(trainer: Any, model: nn.Module, modalities: Any, **settings: Any) -> Disentangled:
    """Attaches the method to a model for as long as `trainer` is there.

    Another trainer's handle is removed: that trainer trains no more. Copies and pickles of the model are plain models.

    Args:
        trainer: Whose end is the handle's.
        model, modalities, **settings: As in [`hf_dgl.disentangle`].

    Raises:
        ValueError: if the model has a handle that is no trainer's.

    Example:

        >>> handle = take_over(trainer, model, {"image": "vision_model", "text": "text_model"}, alpha=1.0)
    """
    other = handle_on(model)
    if other is not None and other in _OF_TRAINERS:
        other.remove()
    handle = disentangle(model, modalities, **settings)
    handle.stay_behind()
    _OF_TRAINERS.add(handle)
    weakref.finalize(trainer, handle.remove).atexit = False
    return handle
