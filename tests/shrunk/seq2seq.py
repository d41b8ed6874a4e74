"""Query tokens and decoders of their own: BLIP-2, T5Gemma 2."""

from __future__ import annotations

from typing import Any

import torch

from .build import IMAGE, asked, shrunk


@shrunk("Blip2Model")
def _blip2() -> Any:
    text = {"ffn_dim": 32, "word_embed_proj_dim": 16, "do_layer_norm_before": True}
    batch = asked([(IMAGE, 3)], [(IMAGE, 3)], [(IMAGE, 3)])
    batch["input_ids"][1, -1], batch["attention_mask"][1, -1], batch["labels"][1, -1] = 0, 0, -100
    queries = {"num_query_tokens": 3, "image_token_index": IMAGE, "qformer_config": {"encoder_hidden_size": 16}}
    return {"text_config": text, **queries}, {**batch, "pixel_values": torch.randn(3, 3, 16, 16)}


@shrunk("T5Gemma2ForConditionalGeneration")
def _t5gemma2() -> Any:
    """The answer is in the decoder alone."""
    ids = {"image_token_index": IMAGE, "eoi_token_index": 52}
    layers = {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8}
    encoder = {"text_config": layers, "vision_config": {"image_size": 32}, "mm_tokens_per_image": 4, **ids}
    batch = asked([(IMAGE, 4)], [], [(IMAGE, 4)])
    config = {"encoder": {**encoder, "boi_token_index": 51}, "decoder": layers, **ids}
    return config, {**batch, "pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.randint(5, 50, (3, 4))}
