r"""`adaptive_dgl`: each encoder learns from its own loss as far as it can, and from the multimodal one for the rest.

Modality $m$ alone explains $u_m$ of the labels, when its answer is calibrated. What all explain together, $u_\tau$,
beyond what their answers explain when they are only added up, $u_{late}$ (`late_fusion.py`), is told by their
*interplay* alone:

$$i = \max(0, u_\tau - u_{late})$$

The gradient of encoder $m$ is divided accordingly between the two losses that can train it,

    R_m · alpha_m · unimodal + (1 - R_m) · multimodal,        R_m = (u_m + δ) / (u_m + i + 2 δ),        δ = 0.05

- Modalities that repeat one another: there is no interplay, R_m is near 1, and this is DGL.
- Labels that only the interplay tells: u_m is 0 and i is not, R_m is near 0, and this is joint training. Under full
  DGL the encoders would starve.
- A modality that tells nothing beside one that tells all: both are near 0, and its R_m is a half, as at the beginning.

The fusion is trained by the multimodal loss, always. The one constant, δ, is the share of the labels that counts as
little: with as much on either side, the gradient is divided in equal parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from .disentangle import Disentangled
from .explained import LATE_FUSION, Explained, part_of_late_fusion
from .passes import MULTIMODAL

LITTLE = 0.05
"""Share of the labels explained that counts as little."""


def own_parts(shares: Mapping[str, torch.Tensor], modalities: Iterable[str]) -> dict[str, torch.Tensor]:
    """R_m of the formula on top of this file, by modality: scalars from 0 to 1.

    Args:
        shares: Of [`Explained.shares`].
        modalities: Names.

    Example:

        >>> found = {"multimodal": 0.9, "late_fusion": 0.9, "late_fusion_image": 0.6}
        >>> own_parts({name: torch.tensor(share) for name, share in found.items()}, ["image"])
        {'image': tensor(0.9286)}
    """
    interplay = (shares[MULTIMODAL] - shares[LATE_FUSION]).clamp(min=0.0)
    alone = {name: shares[part_of_late_fusion(name)] for name in modalities}
    return {name: (share + LITTLE) / (share + interplay + 2 * LITTLE) for name, share in alone.items()}


def adapt(
    handle: Disentangled, explained: Explained, alpha: Mapping[str, float], share: Mapping[str, float] | None = None
) -> None:
    """Sets, for the next step, weights of the unimodal losses and shares of the multimodal gradient (formula above).

    They are tensors on the device: nothing waits for them.

    Args:
        handle: Made with `multimodal_to_encoders=1.0`, see `METHODS["adaptive_dgl"]`.
        explained: Goes on at every step.
        alpha: The user's factor of each modality's unimodal loss.
        share: The user's factor of its share of the multimodal gradient. Default: 1.

    Example:

        >>> handle = disentangle(model, modalities, multimodal_to_encoders=1.0)
        >>> explained = Explained(["image", "text"], ChanceLevel("single_label_classification", 10))
        >>> for batch in loader:
        ...     adapt(handle, explained, {"image": 1.0, "text": 1.0})
        ...     out = model(**batch)
        ...     out.loss.backward()
        ...     logits = {"multimodal": out.logits, **{name: one.logits for name, one in out.unimodal.items()}}
        ...     explained.count(logits, batch["labels"])
        ...     explained.step()
    """
    for name, part in own_parts(explained.shares(), alpha).items():
        part = part.float()
        handle.alpha[name] = alpha[name] * part  # type: ignore[assignment]
        kept = 1.0 if share is None else share[name]
        handle.multimodal_to_encoders[name] = kept * (1 - part)  # type: ignore[assignment]
