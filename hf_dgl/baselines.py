"""What DGL is compared with, in the same code path: methods that others published, and training one modality alone.

| method | the losses and their routing | what comes on top |
|---|---|---|
| `joint` | the multimodal loss trains everything | nothing: it is a plain `Trainer` |
| `ogm_ge` | as `joint` | the dominant encoders' gradients are scaled down (`modulation.py`) |
| `g_blending` | as `auxiliary`, nothing is truncated | weights of the losses, anew at evaluations (`blending.py`) |
| `unimodal` | as `joint`, of a model that has one encoder only | the other encoders are not built (`unimodal.py`) |

They take their own settings as published: gradients are clipped by one norm over all parameters, and no share of the
multimodal gradient is held back.
"""

from __future__ import annotations

from .disentangle import METHODS, Method

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
