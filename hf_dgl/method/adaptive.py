r"""`adaptive_dgl`: how much the unimodal losses weigh follows how far the modalities repeat one another.

Of the labels all modalities together explain $u_\tau$, and their answers alone, only added up, explain $u_{late}$
(`explained.py`). What adding up cannot tell is told by the interplay of the modalities: their *redundancy*

$$R = \min\left(1, \frac{u_{late} + \epsilon^2}{u_\tau + \epsilon}\right), \qquad \epsilon = 0.1$$

is 1 where each has all it takes by itself (two views of one thing, each with its own noise): there an encoder can
learn from its own loss, which is what DGL is for. It is 0 where only the interplay tells the label: there a unimodal
loss teaches its encoder nothing but noise, and full DGL starves it.

`adaptive_dgl` is joint training, the multimodal gradient reaching every encoder. To it the unimodal losses are added
(they never reach the fusion, as in DGL) with the weights

    α_m = alpha_m · R

The one constant, $\epsilon$, is the share of the labels below which a share is not to be relied on: as long as nothing
is explained, R is ε, enough to keep the fusion's answers to one modality meaningful (a bilinear fusion that is never
asked for them gives anything).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .disentangle import Disentangled
from .explained import LATE_FUSION, Explained
from .passes import MULTIMODAL

EPSILON = 0.1
"""Share of the labels explained, below which a share is not to be relied on."""


def redundancy(shares: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """R (the formula on top of this file) from [`Explained.shares`]: a scalar from 0 to 1, on their device.

    Example:

        >>> redundancy({"multimodal": torch.tensor(0.9), "late_fusion": torch.tensor(0.9)})
        tensor(0.9100)
    """
    return ((shares[LATE_FUSION] + EPSILON**2) / (shares[MULTIMODAL] + EPSILON)).clamp(max=1.0)


def adapt(handle: Disentangled, explained: Explained, alpha: Mapping[str, float]) -> None:
    """Sets the weights of the unimodal losses for the next step: `alpha` times the redundancy.

    They are tensors on the device: nothing waits for it.

    Args:
        handle: Made with `multimodal_to_encoders=1.0`, see `METHODS["adaptive_dgl"]`.
        explained: Goes on at every step.
        alpha: The user's factor for each modality.

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
    weight = redundancy(explained.shares()).float()
    for name, factor in alpha.items():
        handle.alpha[name] = factor * weight  # type: ignore[assignment]
