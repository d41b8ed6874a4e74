"""Optional packages: whether they are there, and what to type if not."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

PACKAGE_FOLDER = Path(__file__).parents[1]


def add_extra(extra: str) -> str:
    """The command that adds an extra to this installation: a checkout is installed otherwise than a wheel.

    Args:
        extra: Of `pyproject.toml`, e.g. `demo`.

    Example:

        >>> add_extra("demo")
        'pip install "hf-dgl[demo]"'
    """
    root = PACKAGE_FOLDER.parent
    if not (root / "pyproject.toml").is_file() or not (root / "constraints.txt").is_file():
        return f'pip install "hf-dgl[{extra}]"'
    if root == Path.cwd():
        return f'pip install -c constraints.txt -e ".[{extra}]"'
    return f'pip install -c "{root / "constraints.txt"}" -e "{root}[{extra}]"'


def require(what: str, extra: str, *packages: str) -> None:
    """Goes on only if the packages are installed.

    Args:
        what: For the message: `The demo`, `ONNX`, `LoRA`.
        extra: The extra that installs them.
        *packages: Names as they are imported.

    Raises:
        ValueError: names those that are missing, and what to type.

    Example:

        >>> require("The demo", "demo", "gradio")
    """
    missing = [name for name in packages if not _is_there(name)]
    if missing:
        noun = "package" if len(missing) == 1 else "packages"
        raise ValueError(f"{what} needs the {noun} {', '.join(missing)}. Type: {add_extra(extra)}")


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # `sys.modules[package]` is None
        return False
