"""Methods by others, to compare with: OGM-GE and Gradient-Blending, as rules on losses and gradients.

How their losses are routed is a row of `methods.py`; a Trainer applies them in `hf_dgl.training.baseline_trainer`.
"""

from .g_blending import Blending
from .ogm_ge import Modulation

__all__ = ["Blending", "Modulation"]
