"""One row of the table: how DGL meets one class of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_dgl.method.modalities import Modality

Declare = Callable[[Any], Mapping[str, Modality]]
"""From a model's config to its modalities."""


@dataclass(frozen=True)
class Architecture:
    """How DGL meets one class of models.

    Args:
        partitions: Name -> modalities for a config; the first is the default. Interleaved models have two:
            `embeddings` (the layers that mix modalities are fusion as a whole) and `by_name` (within them, what is not
            cross-attention belongs to the text).
        absent: What "a modality is absent" means in this model, in words.
        modalities: Their names; those that a config leaves out (a tower that it has not) included.
        method: The default of `DGLTrainingArguments.method` for this model: `multimodal_truncation` where an absent
            modality is zeros that the fusion's attention refills, since full DGL would starve on them.
        note: What else a user should know, in a sentence; told once.
        refused: Why DGL is undefined here, and what to do instead; `""` if it is not.
    """

    partitions: Mapping[str, Declare] = field(default_factory=dict)
    absent: str = ""
    modalities: tuple[str, ...] = ("image", "text")
    method: str = "dgl"
    note: str = ""
    refused: str = ""
