"""Sounds, and sounds beside pictures, among the tokens of a language model. One class, one row."""

from __future__ import annotations

from .architecture import Architecture
from .sequence import writes

_TOWER = ("model.audio_tower", "model.multi_modal_projector")

ROWS: dict[str, Architecture] = {
    "Qwen2AudioForConditionalGeneration": writes(audio=_TOWER),
}
