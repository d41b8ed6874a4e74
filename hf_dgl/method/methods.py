"""The methods by name: DGL, its ablations, and what it is compared with, in the same code path.

| method | the losses and their routing | what comes on top |
|---|---|---|
| `joint` | the multimodal loss trains everything | nothing: it is a plain `Trainer` |
| `auxiliary`, `*_truncation`, `dgl` | the three settings of [`disentangle`] | nothing |
| `adaptive_dgl` | between `joint` and `dgl` | how far follows what is measured in training (`adaptive.py`) |
| `ogm_ge` | as `joint` | the dominant encoders' gradients are scaled down (`ogm_ge.py`) |
| `g_blending` | as `auxiliary`, nothing is truncated | weights of the losses, anew at evaluations (`g_blending.py`) |
| `unimodal` | as `joint`, of a model that has one encoder only | the other encoders are not built (`unimodal.py`) |

The last three are by others, and take their own settings as published: gradients are clipped by one norm over all
parameters, and no share of the multimodal gradient is held back.
"""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """The three settings that make a method; `alpha` is None where the user chooses it.

    With `adaptive`, `alpha` and the share are factors of numbers that follow the training (`adaptive.py`).
    """

    alpha: float | None
    multimodal_to_encoders: float
    unimodal_to_fusion: bool
    adaptive: bool = False


METHODS: dict[str, Method] = {
    "joint": Method(alpha=0.0, multimodal_to_encoders=1.0, unimodal_to_fusion=False),
    "auxiliary": Method(alpha=None, multimodal_to_encoders=1.0, unimodal_to_fusion=True),
    "multimodal_truncation": Method(alpha=None, multimodal_to_encoders=0.0, unimodal_to_fusion=True),
    "unimodal_truncation": Method(alpha=None, multimodal_to_encoders=1.0, unimodal_to_fusion=False),
    "dgl": Method(alpha=None, multimodal_to_encoders=0.0, unimodal_to_fusion=False),
    "adaptive_dgl": Method(alpha=None, multimodal_to_encoders=1.0, unimodal_to_fusion=False, adaptive=True),
}
"""The paper's method, its ablations and plain joint training, as settings of [`disentangle`]."""

OGM_GE, G_BLENDING, UNIMODAL = "ogm_ge", "g_blending", "unimodal"

BASELINES: dict[str, Method] = {
    OGM_GE: Method(alpha=0.0, multimodal_to_encoders=1.0, unimodal_to_fusion=False),
    G_BLENDING: Method(alpha=1.0, multimodal_to_encoders=1.0, unimodal_to_fusion=True),
    UNIMODAL: Method(alpha=0.0, multimodal_to_encoders=1.0, unimodal_to_fusion=False),
}
"""How the losses of each baseline are routed, as settings of [`disentangle`]."""

ALL_METHODS: dict[str, Method] = METHODS | BASELINES
"""Every value of `method:`."""

AS_PUBLISHED = ("joint", *BASELINES)
"""Methods whose clipping and share of the multimodal gradient are not ours to choose."""

IN_WORDS = {
    "joint": "The multimodal loss trained everything (plain joint training, the baseline of the paper below).",
    OGM_GE: "The multimodal loss trained everything. At each step the gradients of the encoders that predict better "
    "by themselves were scaled down, and noise was added unless it was switched off (OGM-GE, CVPR 2022, arXiv "
    "2203.15332).",
    G_BLENDING: "The multimodal loss and those of each modality alone trained everything, with weights that followed "
    "how each overfitted and generalised (after Gradient-Blending, CVPR 2020, arXiv 1905.12681; measured on the model "
    "itself).",
    UNIMODAL: "The model has never had another modality: it shows what this encoder learns by itself.",
}
"""What a model card says of how a model was trained by a method that is not ours."""
