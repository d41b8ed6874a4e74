"""Methods against one another on the same recipe: the runs, their statistics, tables, files, a picture.

Each run is a command of its own, `hf-dgl train`; nothing is trained in here.
"""

from .picture import plot_comparison
from .result import Comparison, Result
from .run import compare
from .statistics import Paired, Spread, paired

__all__ = ["Comparison", "Paired", "Result", "Spread", "compare", "paired", "plot_comparison"]
