"""Files that a row names by address or by path, brought here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_dgl.data.addresses import fetch
from hf_dgl.data.columns import is_address, whole_path


def located(value: Any, timeout: float, folder: str | Path | None) -> Any:
    """A media value whose address is fetched, and whose relative path is told what it is relative to."""
    if is_address(value):
        return {"path": value, "bytes": fetch(value, timeout)}
    return value if folder is None else whole_path(value, Path(folder))
