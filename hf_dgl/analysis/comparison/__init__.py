"""Methods against one another on the same recipe: the runs, their statistics, tables, files, a picture."""

from .picture import plot_comparison
from .result import Comparison, Result
from .run import compare
from .statistics import Paired, Spread, paired

__all__ = ["Comparison", "Paired", "Result", "Spread", "compare", "paired", "plot_comparison"]
