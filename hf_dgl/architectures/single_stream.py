"""Embeddings, then one transformer over all modalities."""

from __future__ import annotations

from .architecture import Architecture

ROWS: dict[str, Architecture] = {}
