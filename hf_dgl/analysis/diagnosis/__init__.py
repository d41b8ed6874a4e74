"""What joint training does to a model's encoders, and which method suits the data: gradients, regime, verdict.

Short runs, measured. Which of two methods wins in full runs is asked in `hf_dgl.analysis.comparison`.
"""

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
