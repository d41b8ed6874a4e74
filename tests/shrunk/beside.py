"""Sounds beside pictures, each with a tower of its own: dots.note, Muse Spark, Nemotron Omni, Inkling."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

from .build import AUDIO, IMAGE, VIDEO, asked, shrunk, small
from .qwen_vl import GRIDS, PATCH, VISION, patches

ROWS = [[(IMAGE, 4), (AUDIO, 2), (IMAGE, 2)], [(IMAGE, 2), (AUDIO, 1)], [(VIDEO, 4)]]
"""Row 0: two pictures and a sound. Row 1: a picture and a shorter sound. Row 2: a video."""


def seen_and_heard(width: int, *rows: Any, frames: int = 1) -> dict[str, Any]:
    grid = [[frames, 4, 4]]
    return {
        **asked(*rows or ROWS),
        "pixel_values": patches(GRIDS, width),
        "image_grid_thw": torch.tensor(GRIDS),
        "pixel_values_videos": patches(grid, width),
        "video_grid_thw": torch.tensor(grid),
    }


@shrunk("Dots3NoteForConditionalGeneration")
def _dots() -> Any:
    """80 samples are a token: 8 frames of 10."""
    vision = {**VISION, "adapter_in_dim": 16, "adapter_out_dim": 16, "adapter_merge_size": 2}
    vision |= {"mlp_layer_types": ["dense", "sparse"], "per_layer_config": {}}
    audio = {"adapter_input_size": 16, "adapter_out_dim": 16, "feature_size": 8, "hop_length": 10}
    audio |= {"downsample_hidden_size": 8, "conv_output_size": 8, "samples_per_token": 80}
    text = {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 2, "shared_experts_intermediate_size": 32}
    return {"vision_config": vision, "audio_config": audio, "text_config": text}, {
        **seen_and_heard(PATCH // 2),
        "input_features": torch.randn(2, 8, 16),
        "chunk_sample_lengths": torch.tensor([160, 80]),
    }


@shrunk("MuseSparkForConditionalGeneration")
def _muse_spark() -> Any:
    audio = {"patch_sizes": [2, 2], "hidden_sizes": [8, 16], "depths": [1, 1], "out_hidden_size": 16}
    audio |= {"num_hidden_layers": 2}
    vision = {"patch_size": 4, "merge_size": 2, "pos_emb_height": 4, "pos_emb_width": 4, "max_position_embeddings": 16}
    text = {"moe_hidden_size": 16}
    return {"vision_config": vision, "audio_config": audio, "text_config": text, "out_hidden_size": 64}, {
        **seen_and_heard(PATCH),
        "input_values": torch.randn(2, 8),
        "input_values_mask": torch.tensor([[1] * 8, [1] * 4 + [0] * 4]),
    }


@shrunk("InklingForConditionalGeneration")
def _inkling() -> Any:
    text = {"swa_num_attention_heads": 2, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "sliding_window_size": 8}
    text |= {"d_rel": 4, "rel_extent": 16, "n_routed_experts": 4, "local_layer_ids": [0]}
    config = {"vision_config": {"patch_size": 8}, "audio_config": {"n_mel_bins": 4, "mel_vocab_size": 8}}
    return {**config, "text_config": text}, {
        **asked([(IMAGE, 4), (AUDIO, 3)], [(IMAGE, 2), (AUDIO, 2)], []),
        "pixel_values": torch.randn(6, 2, 8, 8, 3),
        "audio_input_ids": torch.randint(8, (2, 3, 4)),
        "audio_input_ids_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }


MAMBA = {"layers_block_type": ["linear_attention", "full_attention"], "ssm_state_size": 8, "mamba_num_heads": 4}
MAMBA |= {"mamba_head_dim": 8, "n_groups": 2, "chunk_size": 8}


@shrunk("NemotronH_Omni_Reasoning_V3")
def _nemotron_omni() -> Any:
    grid = torch.tensor([[4, 4], [4, 2], [2, 4]])
    config = {"vision_hidden_size": 16, "image_token_id": IMAGE, "audio_token_id": AUDIO, "text_config": MAMBA}
    vision = {"patch_dim": 3 * 8 * 8, "video_patch_dim": 2 * 3 * 8 * 8, "max_img_size": 32, "mlp_ratio": 2.0}
    audio = small(tf.ParakeetEncoderConfig, attention_bias=False, scale_input=False, subsampling_conv_channels=8)
    audio |= {"projection_hidden_size": 16, "projection_bias": False}
    return {**config, "vision_config": vision, "audio_config": audio}, {  # upstream counts one frame more
        **asked([(IMAGE, 4), (AUDIO, 2), (IMAGE, 2)], [(IMAGE, 2), (AUDIO, 1)], []),
        "pixel_values": torch.randn(32, 3 * 8 * 8),
        "image_grid_hw": grid,
        "input_features": torch.randn(2, 16, 8),
        "input_features_mask": torch.tensor([[1] * 16, [1] * 7 + [0] * 9]),
    }


@shrunk("NeoMMEForMaskedLM")
def _neomme() -> Any:
    """A picture is patches of 8 x 8; words that are asked for are words of the text."""
    config = {"embedding_rank": 8, "layer_types": ["sliding_attention", "full_attention"], "residual_multiplier": None}
    config |= {"head_dim": 16, "per_layer_config": {0: {"sliding_window": 4}, 1: {"sliding_window": None}}}
    batch = asked([(IMAGE, 4), (IMAGE, 2)], [(IMAGE, 2)], [])
    return config, {**batch, "pixel_values": torch.randn(8, 3 * 8 * 8)}


@shrunk("Nemotron3_5TranscribeForConditionalGeneration")
def _nemotron_transcribe() -> Any:
    speakers = {"head_config": {"audio_hidden_size": 16}, "chunk_length": 4, "chunk_right_context": 1}
    audio = {"diarization_config": {**speakers, "chunk_left_context": 1}}
    return {"audio_config": audio, "text_config": MAMBA}, {
        **asked([(AUDIO, 4)], [(AUDIO, 2)], []),
        "input_features": torch.randn(2, 32, 8),
        "input_features_mask": torch.tensor([[1] * 32, [1] * 16 + [0] * 16]),
    }
