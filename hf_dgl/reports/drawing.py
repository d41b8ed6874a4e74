"""What all pictures share: an empty figure, the colours of modalities, and a look at the file beforehand."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FUSED = "black"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of modalities, in their order, in every picture (Okabe and Ito's, for the colour-blind)."""


def new_figure(**settings: Any) -> Any:
    """An empty `matplotlib.figure.Figure`, whose parts find their places by themselves.

    Args:
        **settings: Of the figure, e.g. `figsize=(6, 4)` in inches.

    Example:

        >>> new_figure(figsize=(6, 4)).add_subplot()
    """
    from matplotlib.figure import Figure  # no pyplot: that would keep global state and look for a display

    return Figure(layout="constrained", **settings)


def check_drawing() -> None:
    """Goes on only if pictures can be drawn, which is better known before hours of work than after.

    Raises:
        ValueError: matplotlib, which is installed with hf_dgl, is not there.
    """
    if find_spec("matplotlib") is None:
        raise ValueError("Pictures need matplotlib, which is usually installed with hf_dgl: pip install matplotlib")


def check_picture(option: str, path: str | os.PathLike[str] | None) -> None:
    """Looks whether a picture can be written, before the work that it will show.

    Args:
        option: What the user typed, for the message: `--plot`.
        path: The file; None: no picture is wanted.

    Raises:
        ValueError: matplotlib is missing, or does not know the format.
        OSError: the file cannot be written there.

    Example:

        >>> check_picture("--plot", "benchmark.jpeg2")
        Traceback (most recent call last):
        ValueError: --plot: 'benchmark.jpeg2' ends in '.jpeg2'; pictures are written as pdf, png, svg, ...
    """
    if path is None:
        return
    check_drawing()
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(set(FigureCanvasBase.get_supported_filetypes()) - {"raw", "rgba"})
    ending = Path(path).suffix
    if ending.lower().removeprefix(".") not in known:
        what = f"ends in {ending!r}" if ending else "has no ending"
        raise ValueError(f"{option}: {str(path)!r} {what}; pictures are written as {', '.join(known)}.")
    check_file(option, path)


def check_file(option: str, path: str | os.PathLike[str] | None) -> None:
    """Looks whether a file can be written, before the work whose result it will hold.

    Args:
        option: What the user typed, for the message: `--json`.
        path: The file; None: nothing is looked at.

    Raises:
        OSError: it is a folder, its folder is not there, or it cannot be written.
    """
    if path is None:
        return
    file = Path(path)
    if file.is_dir():
        raise OSError(f"{option}: {str(path)!r} is a folder; give the name of a file in it.")
    if not file.parent.is_dir():
        raise OSError(f"{option}: there is no folder {str(file.parent)!r} to write {file.name!r} into.")
    is_new = not file.exists()
    try:
        with open(file, "ab"):
            pass
        if is_new:
            file.unlink()
    except OSError as error:
        raise OSError(f"{option}: {str(path)!r} cannot be written ({error.strerror}). Give another place.") from error


def drawn_if_possible(draw: Callable[[], None], name: str) -> list[str]:
    """Draws; what goes wrong becomes a sentence, since the numbers behind a picture are worth more than it.

    Returns:
        Sentences for the reader, none if all went well.
    """
    try:
        draw()
    except Exception as error:  # whatever it is, it must not cost the numbers
        return [f"There is no {name}: {error}"]
    return []
