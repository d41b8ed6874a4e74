"""Cross-attention inside the text encoder."""

from __future__ import annotations

from .architecture import Architecture

ROWS: dict[str, Architecture] = {}
