"""Tiny encoders, models, batches and processors, built in code: no download, milliseconds each.

from tests.tiny import tiny_batch, tiny_model
model = tiny_model(("image", "text"), fusion_type="concat")
batch = tiny_batch(("image", "text"))          # {"image": {"pixel_values": ...}, "text": {...}, "labels": ...}
model(**batch).loss.backward()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image
from torch import Tensor

from hf_dgl.models import CrossModalConfig, CrossModalForSequenceClassification, CrossModalProcessor
from hf_dgl.models.processing_cross_modal import default_processor, train_tokenizer
from tests.devices import put

VOCAB_SIZE = 64
IMAGE_SIZE = 16
NUM_LABELS = 3
SAMPLING_RATE = 16000
WORDS = "the a digit sound is even odd small big loud quiet zero one two three four five".split()

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TEXT = {
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PATCHES = {"image_size": IMAGE_SIZE, "patch_size": 8}
SPEECH = {
    **SMALL,
    "vocab_size": VOCAB_SIZE,
    "conv_dim": (16, 16),
    "conv_stride": (4, 4),
    "conv_kernel": (8, 4),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
}
CONV_STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}


def _images(batch: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE)}


def _video(batch: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(batch, 2, 3, IMAGE_SIZE, IMAGE_SIZE)}


def _padded_mask(batch: int, length: int) -> Tensor:
    lengths = length - torch.arange(batch) % 3 * (length // 4)  # rows of different length, one of them full
    return (torch.arange(length) < lengths[:, None]).long()


def _tokens(batch: int, length: int = 8) -> dict[str, Tensor]:
    mask = _padded_mask(batch, length)
    return {"input_ids": torch.randint(3, VOCAB_SIZE, (batch, length)) * mask, "attention_mask": mask}


def _waveforms(batch: int, length: int = 400) -> dict[str, Tensor]:
    mask = _padded_mask(batch, length)
    return {"input_values": torch.randn(batch, length) * mask, "attention_mask": mask}


def _siglip2_images(batch: int) -> dict[str, Tensor]:
    mask = _padded_mask(batch, 6)
    shapes = torch.stack([mask.sum(1), torch.ones(batch, dtype=torch.long)], dim=1)
    return {
        "pixel_values": torch.randn(batch, 6, 3 * 8 * 8),
        "pixel_attention_mask": mask,
        "spatial_shapes": shapes,
    }


def _w2v_bert_features(batch: int) -> dict[str, Tensor]:
    return {"input_features": torch.randn(batch, 12, 8), "attention_mask": _padded_mask(batch, 12)}


def _whisper_features(batch: int) -> dict[str, Tensor]:
    return {"input_features": torch.randn(batch, 8, 40), "attention_mask": _padded_mask(batch, 40)}


def _ast_features(batch: int) -> dict[str, Tensor]:
    return {"input_values": torch.randn(batch, 32, 16)}


def _clap_features(batch: int) -> dict[str, Tensor]:
    return {"input_features": torch.randn(batch, 1, 64, 16), "is_longer": torch.zeros(batch, 1, dtype=torch.bool)}


@dataclass(frozen=True)
class Family:
    """One kind of encoder: the modality it reads, its tiny configuration, and inputs for `n` rows."""

    modality: str
    config: Callable[[], Any]
    inputs: Callable[[int], dict[str, Tensor]]


FAMILIES: dict[str, Family] = {
    "vit": Family("image", lambda: tf.ViTConfig(**SMALL, **PATCHES), _images),
    "deit": Family("image", lambda: tf.DeiTConfig(**SMALL, **PATCHES), _images),
    "dinov2": Family("image", lambda: tf.Dinov2Config(**SMALL, **PATCHES), _images),
    "clip_vision": Family("image", lambda: tf.CLIPVisionConfig(**SMALL, **PATCHES), _images),
    "siglip_vision": Family("image", lambda: tf.SiglipVisionConfig(**SMALL, **PATCHES), _images),
    "siglip2_vision": Family(
        "image", lambda: tf.Siglip2VisionConfig(**SMALL, patch_size=8, num_patches=16), _siglip2_images
    ),
    "vit_mae": Family("image", lambda: tf.ViTMAEConfig(**SMALL, **PATCHES), _images),
    "aimv2_vision": Family("image", lambda: tf.Aimv2VisionConfig(**SMALL, **PATCHES), _images),
    "clipseg_vision": Family("image", lambda: tf.CLIPSegVisionConfig(**SMALL, **PATCHES), _images),
    "chinese_clip_vision": Family("image", lambda: tf.ChineseCLIPVisionConfig(**SMALL, **PATCHES), _images),
    "altclip_vision": Family("image", lambda: tf.AltCLIPVisionConfig(**SMALL, **PATCHES), _images),
    "resnet": Family("image", lambda: tf.ResNetConfig(embedding_size=8, layer_type="basic", **CONV_STAGES), _images),
    "convnext": Family("image", lambda: tf.ConvNextConfig(num_stages=2, **CONV_STAGES), _images),
    "swin": Family(
        "image",
        lambda: tf.SwinConfig(
            image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2
        ),
        _images,
    ),
    "xclip_vision": Family(
        "video", lambda: tf.XCLIPVisionConfig(**SMALL, **PATCHES, num_frames=2, mit_hidden_size=16), _video
    ),
    "videomae": Family("video", lambda: tf.VideoMAEConfig(**SMALL, **PATCHES, num_frames=2, tubelet_size=2), _video),
    "vit_frames": Family("video", lambda: tf.ViTConfig(**SMALL, **PATCHES), _video),
    "bert": Family("text", lambda: tf.BertConfig(**SMALL, **TEXT), _tokens),
    "roberta": Family("text", lambda: tf.RobertaConfig(**SMALL, **{**TEXT, "pad_token_id": 0}), _tokens),
    "distilbert": Family(
        "text",
        lambda: tf.DistilBertConfig(vocab_size=VOCAB_SIZE, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
        _tokens,
    ),
    "modernbert": Family(
        "text", lambda: tf.ModernBertConfig(**SMALL, **TEXT, cls_token_id=1, sep_token_id=2), _tokens
    ),
    "deberta_v2": Family("text", lambda: tf.DebertaV2Config(**SMALL, **TEXT), _tokens),
    "t5": Family(
        "text",
        lambda: tf.T5Config(vocab_size=VOCAB_SIZE, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2),
        _tokens,
    ),
    "bart": Family(
        "text",
        lambda: tf.BartConfig(
            **TEXT, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32
        ),
        _tokens,
    ),
    "clip_text": Family("text", lambda: tf.CLIPTextConfig(**SMALL, **TEXT), _tokens),
    "siglip_text": Family("text", lambda: tf.SiglipTextConfig(**SMALL, **TEXT), _tokens),
    "clap_text": Family("text", lambda: tf.ClapTextConfig(**SMALL, **TEXT), _tokens),
    "altclip_text": Family("text", lambda: tf.AltCLIPTextConfig(**SMALL, **TEXT, project_dim=8), _tokens),
    "xclip_text": Family("text", lambda: tf.XCLIPTextConfig(**SMALL, **TEXT), _tokens),
    "wav2vec2": Family("audio", lambda: tf.Wav2Vec2Config(**SPEECH), _waveforms),
    "wav2vec2_group_norm": Family(
        "audio",
        lambda: tf.Wav2Vec2Config(**{**SPEECH, "feat_extract_norm": "group", "do_stable_layer_norm": False}),
        _waveforms,
    ),
    "hubert": Family("audio", lambda: tf.HubertConfig(**SPEECH), _waveforms),
    "wavlm": Family("audio", lambda: tf.WavLMConfig(**SPEECH), _waveforms),
    "w2v_bert": Family(
        "audio",
        lambda: tf.Wav2Vec2BertConfig(
            **SMALL, feature_projection_input_dim=8, mask_time_prob=0.0, layerdrop=0.0, conv_depthwise_kernel_size=3
        ),
        _w2v_bert_features,
    ),
    "ast": Family(
        "audio",
        lambda: tf.ASTConfig(**SMALL, patch_size=8, frequency_stride=8, time_stride=8, max_length=32, num_mel_bins=16),
        _ast_features,
    ),
    "whisper": Family(
        "audio",
        lambda: tf.WhisperConfig(
            vocab_size=VOCAB_SIZE,
            num_mel_bins=8,
            max_source_positions=20,
            max_target_positions=8,
            d_model=16,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        ),
        _whisper_features,
    ),
    "clap_audio": Family(
        "audio",
        lambda: tf.ClapAudioConfig(
            spec_size=64,
            num_mel_bins=16,
            window_size=4,
            patch_size=4,
            patch_stride=[4, 4],
            patch_embeds_hidden_size=8,
            depths=[1, 1],
            num_attention_heads=[2, 2],
            hidden_size=16,
            num_hidden_layers=2,
        ),
        _clap_features,
    ),
}

# The encoder that stands for a modality where a test does not care which.
DEFAULT_FAMILY = {"image": "vit", "text": "bert", "audio": "wav2vec2", "video": "videomae"}


def tiny_encoder_config(family: str) -> Any:
    """Configuration of a tiny encoder, without dropout where its family names it as BERT does."""
    config = FAMILIES[family].config()
    for name, value in NO_DROPOUT.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return config


def family_of(modality: str) -> str:
    """`"vit"` for `"image"` and `"front_image"`, ..."""
    return next(family for kind, family in DEFAULT_FAMILY.items() if kind in modality)


def tiny_config(modalities: Sequence[str] = ("image", "text"), **kwargs: Any) -> CrossModalConfig:
    """ViT, BERT and wav2vec2 of width 16, whichever of `image`, `text`, `audio`, ... are asked for; no dropout."""
    encoders = {name: tiny_encoder_config(family_of(name)) for name in modalities}
    settings = {"num_labels": NUM_LABELS, "fusion_dropout": 0.0, "bilinear_size": 4, "num_fusion_layers": 2, **kwargs}
    return CrossModalConfig(encoders=encoders, **settings)


def tiny_model(
    modalities: Sequence[str] = ("image", "text"), seed: int = 0, **kwargs: Any
) -> CrossModalForSequenceClassification:
    """A deterministic classifier over `tiny_config(modalities, **kwargs)`, in eval mode."""
    torch.manual_seed(seed)
    return put(CrossModalForSequenceClassification(tiny_config(modalities, **kwargs)).eval())


def tiny_batch(
    modalities: Sequence[str] = ("image", "text"), batch_size: int = 4, seed: int = 0, labels: bool = True
) -> dict[str, Any]:
    """A batch for `tiny_model(modalities)`; text and audio are padded."""
    torch.manual_seed(seed)
    batch: dict[str, Any] = {name: FAMILIES[family_of(name)].inputs(batch_size) for name in modalities}
    if labels:
        batch["labels"] = torch.arange(batch_size) % NUM_LABELS
    return put(batch)


def tiny_tokenizer() -> Any:
    """A fast word-level tokenizer over `WORDS`, smaller than `VOCAB_SIZE`."""
    return train_tokenizer([" ".join(WORDS)], vocab_size=VOCAB_SIZE, max_length=32)


def tiny_processor(modalities: Sequence[str] = ("image", "text")) -> CrossModalProcessor:
    """What turns PIL images, sentences of `WORDS` and 16 kHz waveforms into inputs of `tiny_model(modalities)`."""
    processors = {
        name: tiny_tokenizer() if "text" in name else default_processor(tiny_encoder_config(family_of(name)))
        for name in modalities
    }
    return CrossModalProcessor(processors)


def tiny_rows(modalities: Sequence[str] = ("image", "text"), num_rows: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Raw rows as a data set would hold them: PIL images, strings, float32 waveforms, integer labels."""
    rng = np.random.default_rng(seed)
    make = {
        "image": lambda: Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)),
        "text": lambda: " ".join(rng.choice(WORDS, size=rng.integers(2, 7))),
        "audio": lambda: rng.standard_normal(rng.integers(200, 600)).astype(np.float32),
    }
    kinds = {name: next(kind for kind in make if kind in name) for name in modalities}
    return [
        {**{name: make[kind]() for name, kind in kinds.items()}, "label": row % NUM_LABELS} for row in range(num_rows)
    ]
