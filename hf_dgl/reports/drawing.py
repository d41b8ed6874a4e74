"""matplotlib, which only pictures need: the extra `plot`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def new_figure(**settings: Any) -> Any:
    """An empty `matplotlib.figure.Figure`, whose parts find their places by themselves.

    Args:
        **settings: Of the figure, e.g. `figsize=(6, 4)` in inches.

    Raises:
        ValueError: matplotlib is not installed.

    Example:

        >>> new_figure(figsize=(6, 4)).add_subplot()
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: that would keep global state and look for a display
    except ImportError as error:
        raise ValueError("Pictures need matplotlib: pip install -c constraints.txt -e '.[plot]'") from error
    return Figure(layout="constrained", **settings)
