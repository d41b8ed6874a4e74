"""Whether a name is a folder that is there, one that was mistyped, or a Hub id."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from hf_dgl.method.modalities import did_you_mean

_SIGNS = ("config.json", "adapter_config.json")
"""One of these is in every folder with a model."""


def check_source(source: str | os.PathLike[str]) -> None:
    """Goes on unless a folder is meant that is not there, or holds no model: the Hub need not be asked then.

    Args:
        source: A folder or a Hub id, as the user wrote it. `outputs/mine` is a folder if there is an `outputs` here.

    Raises:
        ValueError: names the nearest folder with a model.

    Example:

        >>> check_source("outputs/image_txt")
        Traceback (most recent call last):
        ValueError: There is no folder 'outputs/image_txt' ...; did you mean 'outputs/image_text'?
    """
    name, path = os.fspath(source), Path(source).expanduser()
    if path.is_file():
        raise ValueError(f"{name!r} is a file; a model is a folder, such as `hf-dgl train` writes, or a Hub id.")
    if path.is_dir():
        if any((path / sign).is_file() for sign in _SIGNS):
            return
        inside = _models_in(path)
        hint = f" There are models in {', '.join(inside[:5])}." if inside else ""
        raise ValueError(f"There is no model in the folder {name!r} (no config.json).{hint}")
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or name.endswith("/")
    if is_path or (len(path.parts) > 1 and Path(path.parts[0]).is_dir()):
        there = _models_in(path.parent) or _models_in(path.parent.parent)
        raise ValueError(f"There is no folder {name!r} (seen from {Path.cwd()}){did_you_mean(name, there)}")


def nearest_model(name: str) -> str:
    """What was meant by a name that the Hub does not know: a folder with a model, here or one step below; maybe `""`.

    Example:

        >>> nearest_model("image_txt")
        ": did you mean 'outputs/image_text'?"
    """
    here = [*_models_in(Path()), *(found for folder in Path().glob("*/") for found in _models_in(folder))]
    names = {part: path for path in here for part in (path, Path(path).name)}
    near = [] if Path(name).is_dir() else difflib.get_close_matches(name, names, 1)
    return f": did you mean {names[near[0]]!r}?" if near else ""


def _models_in(folder: Path) -> list[str]:
    """Folders with a model, one step below."""
    return sorted({str(file.parent) for sign in _SIGNS for file in folder.glob(f"*/{sign}")})
