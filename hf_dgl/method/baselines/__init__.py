"""Methods by others, to compare with: OGM-GE and Gradient-Blending."""

from .g_blending import Blending
from .ogm_ge import Modulation

__all__ = ["Blending", "Modulation"]
