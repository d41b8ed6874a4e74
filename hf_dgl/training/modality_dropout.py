"""`modality_dropout`: rows lose modalities in training, as they may later in use; no unimodal loss is needed for that.

After ModDrop (Neverova et al., "ModDrop: adaptive multi-modal gesture recognition", TPAMI 2016, arXiv 1501.00102),
with one difference: a row keeps at least one of the modalities that it has. What a row loses is absent, as where its
data lack it: no token of it is read, and it is not made up of zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_dgl.method.forward_call import below_adapters
from hf_dgl.method.outputs import tensors_in


def modalities_to_drop(model: Any) -> list[str]:
    """The modalities that single rows of a model's batches may lack.

    Raises:
        ValueError: a model that is not built from encoders: only a whole batch can lack a modality there.

    Example:

        >>> modalities_to_drop(CrossModalForSequenceClassification.from_encoders(encoders, num_labels=3))
        ['image', 'text']
    """
    base = below_adapters(model)
    names = getattr(getattr(base, "config", None), "modalities", None)
    if not names:
        raise ValueError(
            f"`modality_dropout` leaves modalities out row by row, which {type(base).__name__} cannot do: it needs a "
            "model that is built from `encoders`. Remove `modality_dropout`."
        )
    return list(names)


def drop_modalities(
    batch: Mapping[str, Any], modalities: Sequence[str], probability: float, generator: torch.Generator
) -> dict[str, Any]:
    """Marks modalities of rows as absent: each with `probability`, independently; one of them always stays.

    Args:
        batch: Modality -> its inputs `[B, ...]`, perhaps with `present: BoolTensor[B]`; `labels` and the like.
        modalities: Those that may be lost. Others, and one that the whole batch lacks, are left as they are.
        probability: From 0 to 1; with 1, every row keeps one modality, each as likely.
        generator: On the CPU, where all draws are made.

    Returns:
        The batch, with `present` in the inputs of every modality. Its tensors are not copied.

    Example:

        >>> batch = {"image": {"pixel_values": torch.ones(2, 3)}, "text": {"input_ids": torch.ones(2, 5)}}
        >>> drop_modalities(batch, ["image", "text"], 1.0, torch.Generator().manual_seed(0))["image"]["present"]
        tensor([False, False])
    """
    names = [name for name in modalities if name in batch]
    if not names:
        return dict(batch)
    tensors = [tensors_in(batch[name])[0] for name in names]
    there = [
        batch[name]["present"].bool().cpu() if "present" in batch[name] else torch.ones(len(tensor), dtype=torch.bool)
        for name, tensor in zip(names, tensors, strict=True)
    ]
    has_BM = torch.stack(there, dim=1)
    draws_BM = torch.rand(has_BM.shape, generator=generator).masked_fill(~has_BM, -1.0)
    stays_BM = has_BM & ((draws_BM >= probability) | (draws_BM == draws_BM.max(dim=1, keepdim=True).values))
    lost = {
        name: {**batch[name], "present": stays_BM[:, index].to(tensors[index].device)}
        for index, name in enumerate(names)
    }
    return {**batch, **lost}
