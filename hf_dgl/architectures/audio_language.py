"""Sounds, and sounds beside pictures, among the tokens of a language model. One class, one row."""

from __future__ import annotations

from .architecture import Architecture
from .sequence import writes

_TOWER = ("model.audio_tower", "model.multi_modal_projector")

ROWS: dict[str, Architecture] = {
    "Qwen2AudioForConditionalGeneration": writes(audio=_TOWER),
    "VoxtralForConditionalGeneration": writes(audio=_TOWER),
    "AudioFlamingo3ForConditionalGeneration": writes(audio=_TOWER),
    "MusicFlamingoForConditionalGeneration": writes(audio=_TOWER),
    "GlmAsrForConditionalGeneration": writes(audio=_TOWER),
    "Qwen3ASRForConditionalGeneration": writes(audio=_TOWER),
    "FunAsrNanoForConditionalGeneration": writes(audio=_TOWER),
    "MossTranscribeDiarizeForConditionalGeneration": writes(audio=_TOWER),
    "GraniteSpeechForConditionalGeneration": writes(audio=("model.encoder", "model.projector")),
    "GraniteSpeechPlusForConditionalGeneration": writes(audio=("model.encoder", "model.projector")),
    "Qwen2_5OmniThinkerForConditionalGeneration": writes(
        framing=True, image=("model.visual",), audio=("model.audio_tower",)
    ),
    "Qwen3OmniMoeThinkerForConditionalGeneration": writes(
        framing=True, image=("model.visual",), audio=("model.audio_tower",)
    ),
}
