"""What joint training does to a model's encoders, and which method suits the data: gradients, regime, verdict."""

from .callback import DiagnoseGradients, Suppression, suppression
from .regime import Explained, Regime, find_regime
from .result import Diagnosis
from .run import diagnose

__all__ = [
    "DiagnoseGradients",
    "Diagnosis",
    "Explained",
    "Regime",
    "Suppression",
    "diagnose",
    "find_regime",
    "suppression",
]
