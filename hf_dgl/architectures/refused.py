"""Models for which a modality alone has no loss, and what to do instead."""

from __future__ import annotations

from .architecture import Architecture

ROWS: dict[str, Architecture] = {}
