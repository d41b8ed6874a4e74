"""Sounds, and sounds beside pictures, among the tokens of a language model. One class, one row."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from hf_dgl.method.modalities import Modality

from .architecture import Architecture
from .sequence import TABLE, among_text, gone, writes, written

_TOWER = ("model.audio_tower", "model.multi_modal_projector")


def _gemma4(config: Any) -> dict[str, Modality]:
    """Towers are optional; so are embeddings per layer, which read the text once more."""
    own = [name for name in _EMBEDDED if getattr(config, "vision_config" if name == "image" else "audio_config")]
    first = 1 if config.model_type == "gemma4_unified" else 0  # no towers: patches and frames are embedded directly
    encoders = {name: _EMBEDDED[name][first:] for name in own}
    per_layer = getattr(config.get_text_config(), "hidden_size_per_layer_input", None)
    tables = [TABLE, f"{TABLE}_per_layer"] if per_layer else [TABLE]
    return dict(among_text(encoders, tables)(config))


def _gemma3n(config: Any) -> dict[str, Modality]:
    """An embedder's projection also reads `.embedding`, which stands at the places that no feature fills: its own."""
    encoders = {name: (tower, f"{embed}.embedding_projection") for name, (tower, embed) in _EMBEDDED.items()}
    found = dict(among_text(encoders, [TABLE, f"{TABLE}_per_layer"])(config))
    for name, (_, embed) in _EMBEDDED.items():
        found[name] = replace(found[name], parameters=(rf"{re.escape(embed)}\.",))
    return found


_EXTEND = "model.embed_tokens_extend"


def _phi4(config: Any) -> dict[str, Modality]:
    """Which projection the sound takes depends on whether there are pictures, so these stay in the call, as zeros."""
    image = f"{_EXTEND}.image_embed"
    encoders = {
        "image": [f"{image}.{part}" for part in ("img_processor", "img_projection_up", "img_projection_down")],
        "audio": [f"{_EXTEND}.audio_embed.encoder"],
    }
    found = dict(among_text(encoders, "model.embed_tokens", demanded=("image",))(config))
    for name in encoders:
        found[name] = replace(found[name], parameters=(rf"embed_tokens_extend\.{name}_embed\.",))
    return found


_EMBEDDED = {
    "image": ("model.vision_tower", "model.embed_vision"),
    "audio": ("model.audio_tower", "model.embed_audio"),
}
_GEMMA4 = written(_gemma4, gone("image", "audio"), modalities=("image", "audio", "text"))

ROWS: dict[str, Architecture] = {
    "Qwen2AudioForConditionalGeneration": writes(audio=_TOWER),
    "VoxtralForConditionalGeneration": writes(audio=_TOWER),
    "AudioFlamingo3ForConditionalGeneration": writes(audio=_TOWER),
    "MusicFlamingoForConditionalGeneration": writes(audio=_TOWER),
    "GlmAsrForConditionalGeneration": writes(audio=_TOWER),
    "Qwen3ASRForConditionalGeneration": writes(audio=_TOWER),
    "FunAsrNanoForConditionalGeneration": writes(audio=_TOWER),
    "MossTranscribeDiarizeForConditionalGeneration": writes(audio=_TOWER),
    "Gemma4ForConditionalGeneration": _GEMMA4,
    "Gemma4UnifiedForConditionalGeneration": _GEMMA4,
    "Gemma3nForConditionalGeneration": written(
        _gemma3n, gone("image", "audio"), modalities=("image", "audio", "text")
    ),
    "Phi4MultimodalForCausalLM": written(
        _phi4,
        f"No image: its positions are closed to attention, and its features are zeros. {gone('audio')}",
        modalities=("image", "audio", "text"),
    ),
    "GraniteSpeechForConditionalGeneration": writes(audio=("model.encoder", "model.projector")),
    "GraniteSpeechPlusForConditionalGeneration": writes(audio=("model.encoder", "model.projector")),
    "Dots3NoteForConditionalGeneration": writes(image=("model.vision_tower",), audio=("model.audio_tower",)),
    "InklingForConditionalGeneration": writes(image=("model.vision_tower",), audio=("model.audio_tower",)),
    "MuseSparkForConditionalGeneration": writes(
        image=("model.vision_tower", "model.vision_adapter", "model.vision_projection"), audio=("model.audio_tower",)
    ),
    "NemotronH_Omni_Reasoning_V3": writes(
        "language_model.model.embeddings",
        image=("vision_model", "multi_modal_projector"),
        audio=("audio_tower", "embed_audio"),
    ),
    "Nemotron3_5TranscribeForConditionalGeneration": writes("model.language_model.embeddings", audio=_TOWER),
    "Qwen2_5OmniThinkerForConditionalGeneration": writes(
        framing=True, image=("model.visual",), audio=("model.audio_tower",)
    ),
    "Qwen3OmniMoeThinkerForConditionalGeneration": writes(
        framing=True, image=("model.visual",), audio=("model.audio_tower",)
    ),
}
