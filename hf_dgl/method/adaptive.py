r"""`adaptive_dgl`: how much the unimodal losses weigh follows what the modalities explain of the labels.

Modality $m$ alone explains $u_m$ of the labels, all together explain $u_\tau$ (`explained.py`), and

$$R = \min(1, \textstyle\sum_m u_m / u_\tau)$$

says whether the modalities repeat or complete one another. Where they are independent given the label (two views of
one thing, each with its own noise), information theory has $\sum_m I(m; y) \ge I(all; y)$, so $R = 1$: each encoder
can learn from its own loss, which is what DGL is for. Where the label is told by their interplay, what each tells
alone adds up to less than what they tell together: $R < 1$, and a unimodal loss teaches its encoder little but noise.
Full DGL starves the encoders there.

`adaptive_dgl` is joint training, the multimodal gradient reaching every encoder. To it the unimodal losses are added
(they never reach the fusion, as in DGL) with the weights

    α_m = alpha_m · max(0.03, R¹² · min(1, 3 u_m / u_τ) · min(1, u_τ / 0.4)²)

R¹² closes at once where R falls below 1. The second factor spares a modality that says nothing, the third waits until
the fused loss has shown whether there is an interplay: what a modality tells alone is often learned first. The 0.03
keep the fusion's answers to one modality calibrated: without them an encoder that is never asked alone may look as if
it told nothing (a bilinear fusion), and the gate would stay shut.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .disentangle import Disentangled
from .explained import Explained
from .passes import MULTIMODAL

_LEAST = 0.05  # of the labels explained, below which ratios to it mean nothing

_LEAST_WEIGHT = 0.03  # of a unimodal loss


def adapt(handle: Disentangled, explained: Explained, alpha: Mapping[str, float]) -> None:
    """Sets the weights of the unimodal losses for the next step (the formula on top of this file).

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
    shares = explained.shares()
    together = shares.pop(MULTIMODAL)
    reference = together.clamp(min=_LEAST)
    redundancy = (torch.stack(list(shares.values())).sum() / reference).clamp(max=1.0)
    gate = redundancy**12 * (together / 0.4).clamp(max=1.0) ** 2
    for name, share in shares.items():
        weight = (gate * (3 * share / reference).clamp(max=1.0)).clamp(min=_LEAST_WEIGHT)
        handle.alpha[name] = alpha[name] * weight.float()  # type: ignore[assignment]
