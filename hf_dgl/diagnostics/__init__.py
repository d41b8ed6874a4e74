"""What joint training does to a model's encoders, and which method suits the data: gradients, probes, regime."""

from .callback import DiagnoseGradients, Suppression, suppression
from .probes import evaluate_probes, linear_probes
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
    "evaluate_probes",
    "find_regime",
    "linear_probes",
    "suppression",
]
