"""Questions about a run: what joint training does to it, which method wins, what a step costs, what a modality adds.

Asked of recipes and of trained models, answered in numbers, tables and pictures. Nothing here trains for its own sake:
that is `hf_dgl.recipe`; drawing and tables that a training run leaves are in `hf_dgl.reports`.
"""

from .contributions import evaluate_contributions
from .inspection import inspect_source
from .probes import evaluate_probes, linear_probes
from .robustness import evaluate_robustness

__all__ = ["evaluate_contributions", "evaluate_probes", "evaluate_robustness", "inspect_source", "linear_probes"]
