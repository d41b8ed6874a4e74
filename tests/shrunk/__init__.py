"""Tiny models made by shrinking default configs: `SHRUNK` (see `build.py`), filled by one file per family."""

from . import beside, boxes, masked, pictures, qwen_vl, seq2seq, sounds, tiled  # noqa: F401
from .build import SHRUNK, padded_left

__all__ = ["SHRUNK", "padded_left"]
