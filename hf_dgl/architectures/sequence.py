"""Features put among the tokens of a language model, which is the fusion."""

from __future__ import annotations

from .architecture import Architecture

ROWS: dict[str, Architecture] = {}
