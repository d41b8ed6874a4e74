"""Audio towers: Voxtral, Audio Flamingo, Qwen3-ASR, Granite Speech, the Omni thinkers."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .build import AROUND, AUDIO, IMAGE, VIDEO, asked, kinds, shrunk, small
from .qwen_vl import MROPE, VISION, seen

MEL, FRAMES = 8, 16


def sounds(long: int, short: int, mask: str = "input_features_mask", frames: int = FRAMES) -> dict[str, Any]:
    """Row 0: a sound. Row 1: one of half the length. Row 2: none."""
    heard = torch.ones(2, frames, dtype=torch.long)
    heard[1, frames // 2 :] = 0
    batch = asked([(AUDIO, long)], [(AUDIO, short)], [])
    return {**batch, "input_features": torch.randn(2, MEL, frames), mask: heard}


TOWER = {"audio_config": {"max_source_positions": FRAMES // 2}}


@shrunk("VoxtralForConditionalGeneration")
def _voxtral() -> Any:
    batch = sounds(4, 4)
    del batch["input_features_mask"]
    return {**TOWER, "audio_token_id": AUDIO}, batch


@shrunk("AudioFlamingo3ForConditionalGeneration", "MusicFlamingoForConditionalGeneration")
def _flamingo() -> Any:
    return TOWER, sounds(4, 2)


@shrunk("GlmAsrForConditionalGeneration")
def _glm_asr() -> Any:
    return TOWER, sounds(2, 1)


@shrunk("Qwen3ASRForConditionalGeneration")
def _qwen3_asr() -> Any:
    return {"audio_config": {"downsample_hidden_size": 8}}, sounds(13, 7, frames=100)


@shrunk("MossTranscribeDiarizeForConditionalGeneration")
def _moss() -> Any:
    return TOWER, {**sounds(2, 1), "padding_mask": torch.ones(2, 160, dtype=torch.long)}


@shrunk("FunAsrNanoForConditionalGeneration")
def _fun() -> Any:
    frames = torch.randn(2, FRAMES, 7 * MEL)  # seven stacked
    return {"adaptor_config": {"intermediate_size": 4}}, {**sounds(16, 8), "input_features": frames}


@shrunk("GraniteSpeechForConditionalGeneration", "GraniteSpeechPlusForConditionalGeneration")
def _granite() -> Any:
    """The mask is of the projected features: three for 15 frames."""
    encoder = {"input_dim": MEL, "max_pos_emb": 8, "context_size": 8}
    heard = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    batch = {**sounds(6, 3), "input_features": torch.randn(2, 30, MEL), "input_features_mask": heard}
    return {"encoder_config": encoder}, batch


def omni(long: int, short: int, frames: int = FRAMES) -> dict[str, Any]:
    """Row 0: two pictures and a sound. Row 1: a picture and a shorter sound. Row 2: a video."""
    batch = {**seen(), **sounds(long, short, "feature_attention_mask", frames)}
    del batch["mm_token_type_ids"]
    rows = [[(IMAGE, 4), (AUDIO, long), (IMAGE, 2)], [(IMAGE, 2), (AUDIO, short)], [(VIDEO, 4)]]
    return {**batch, **asked(*rows)}


OMNI = {"text_config": MROPE, "vision_start_token_id": AROUND[IMAGE][0]}


@shrunk("Qwen2_5OmniThinkerForConditionalGeneration")
def _omni() -> Any:
    audio = {"max_source_positions": 8, "n_window": 8}
    return {**OMNI, "vision_config": VISION, "audio_config": audio}, omni(4, 2)


@shrunk("Qwen3OmniMoeThinkerForConditionalGeneration")
def _omni3() -> Any:
    audio = {"downsample_hidden_size": 8}
    vision = {**VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    return {**OMNI, "vision_config": vision, "audio_config": audio}, omni(13, 7, 100)


def patched(batch: dict[str, Any]) -> dict[str, Any]:
    """Gemma 4's pictures: patches, and the place of each."""
    places = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="xy"), -1).reshape(1, 16, 2)
    return {**batch, "pixel_values": torch.rand(2, 16, 3 * 8 * 8), "image_position_ids": places.expand(2, -1, -1)}


GEMMA = {"layer_types": ["sliding_attention", "full_attention"], "use_bidirectional_attention": "vision"}


def gemma4_batch(picture: int, sound: tuple[int, int], features: torch.Tensor) -> dict[str, Any]:
    """Row 0: a picture and a sound. Row 1: a shorter sound. Row 2: a picture."""
    long, short = sound
    heard = torch.ones(2, features.shape[1], dtype=torch.bool)
    heard[1, features.shape[1] // 2 :] = False
    batch = kinds(asked([(IMAGE, picture), (AUDIO, long)], [(AUDIO, short)], [(IMAGE, picture)]))
    return {**patched(batch), "input_features": features, "input_features_mask": heard}


@shrunk("Gemma4ForConditionalGeneration")
def _gemma4() -> Any:
    vision = small(tf.Gemma4VisionConfig, pooling_kernel_size=2, position_embedding_size=8)
    sizes = {"subsampling_conv_channels": [8, 4], "output_proj_dims": 16, "attention_chunk_size": 4}
    audio = small(tf.Gemma4AudioConfig, **sizes, attention_context_left=5)
    config = {
        "vision_config": vision,
        "audio_config": audio,
        "text_config": {**GEMMA, "hidden_size_per_layer_input": 4},
    }
    return config, gemma4_batch(4, (4, 2), torch.randn(2, 16, MEL))


@shrunk("Gemma4UnifiedForConditionalGeneration")
def _gemma4_unified() -> Any:
    vision = small(
        tf.Gemma4UnifiedVisionConfig, pooling_kernel_size=1, mm_embed_dim=16, mm_posemb_size=16, output_proj_dims=16
    )
    audio = small(tf.Gemma4UnifiedAudioConfig, audio_embed_dim=8)
    config = {"vision_config": vision, "audio_config": audio, "text_config": GEMMA}
    return config, gemma4_batch(16, (4, 2), torch.randn(2, 4, 8))


class TowerOfGemma3n(tf.PreTrainedModel):
    """In place of timm's, which is not installed."""

    config_class = tf.Gemma3nVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.patches = nn.Conv2d(3, config.hidden_size, kernel_size=8, stride=8)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.patches(pixel_values.tanh()))


@shrunk("Gemma3nForConditionalGeneration")
def _gemma3n() -> Any:
    """As in the real vocabulary, the end of an image is a token of the image's own table; so is that of a sound. The
    sounds are filled up with its last token."""
    tf.AutoModel.register(tf.Gemma3nVisionConfig, TowerOfGemma3n, exist_ok=True)
    tower = {"hidden_size": 16, "vocab_size": 2, "vocab_offset": 60}
    sizes = {"vocab_size": 2, "vocab_offset": 62, "input_feat_size": MEL, "sscp_conv_channel_size": [8, 4]}
    sizes |= {"conf_attention_chunk_size": 4, "conf_attention_context_left": 5}
    text = {"layer_types": ["sliding_attention", "full_attention"], "activation_sparsity_pattern": [0.0, 0.0]}
    text |= {"vocab_size_per_layer_input": 60, "hidden_size_per_layer_input": 4, "num_kv_shared_layers": 0}
    text |= {"intermediate_size": [32, 32], "laurel_rank": 4}
    heard = torch.ones(2, 64, dtype=torch.bool)
    heard[1, 32:] = False
    batch = asked([(IMAGE, 16), (AUDIO, 6)], [(AUDIO, 6)], [(IMAGE, 16)])
    batch |= {"pixel_values": torch.randn(2, 3, 32, 32), "input_features": torch.randn(2, 64, MEL)}
    for end, own in ((AROUND[IMAGE][1], 61), (AROUND[AUDIO][1], 63)):
        batch["input_ids"][batch["input_ids"] == end] = own
    counts = {"audio_soft_tokens_per_image": 6, "vision_soft_tokens_per_image": 16}
    config = {"vision_config": tower, "audio_config": sizes, "text_config": text}
    return {**config, **counts, "eoi_token_id": 61, "eoa_token_id": 63}, {**batch, "input_features_mask": heard}


@shrunk("Phi4MultimodalForCausalLM")
def _phi4() -> Any:
    """The ids of the places stand in the parts' configs. Row 0: a picture and a sound. Row 1: a shorter sound.
    Row 2: a picture."""
    vision = {"num_hidden_layers": 3, "image_size": 28, "patch_size": 7, "crop_size": 28, "image_token_id": IMAGE}
    audio = {"num_blocks": 2, "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "input_size": MEL}
    audio |= {"nemo_conv_channels": 16, "nemo_final_size": 1, "audio_token_id": AUDIO}
    heard = torch.ones(2, FRAMES, dtype=torch.bool)
    heard[1, FRAMES // 2 :] = False
    batch = asked([(IMAGE, 13), (AUDIO, 2)], [(AUDIO, 1)], [(IMAGE, 13)])
    pictures = {
        "image_pixel_values": torch.randn(2, 2, 3, 28, 28),
        "image_sizes": torch.full((2, 2), 28),
        "image_attention_mask": torch.ones(2, 2, 4, 4),
    }
    sounds = {
        "audio_input_features": torch.randn(2, FRAMES, MEL),
        "audio_embed_sizes": torch.tensor([2, 1]),
        "audio_attention_mask": heard,
    }
    return {"vision_config": vision, "audio_config": audio}, {**batch, **pictures, **sounds}
