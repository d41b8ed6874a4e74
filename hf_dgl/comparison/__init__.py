"""What `hf-dgl compare` says about its runs: statistics, tables, files, a picture."""

from .picture import plot_comparison
from .result import Comparison, Result
from .statistics import Paired, Spread, paired

__all__ = ["Comparison", "Paired", "Result", "Spread", "paired", "plot_comparison"]
