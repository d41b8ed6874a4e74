"""Detectors that match boxes with words: Grounding DINO."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

from .build import shrunk


@shrunk("GroundingDinoForObjectDetection", "MMGroundingDinoForObjectDetection")
def _grounding_dino() -> Any:
    """Two classes to each text, ended by a full stop each; the boxes' labels are their numbers."""
    swin = {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2], "window_size": 2}
    backbone = tf.SwinConfig(**swin, drop_path_rate=0.0, out_features=["stage2", "stage3", "stage4"])
    sizes = {"d_model": 32, "encoder_layers": 1, "num_queries": 5, "max_text_len": 10, "fusion_droppath": 0.0}
    tokens = torch.tensor([[101, 5, 6, 1012, 7, 1012, 102, 0], [101, 8, 1012, 7, 1012, 102, 0, 0]])
    tokens = torch.cat([tokens, torch.tensor([[101, 5, 6, 9, 1012, 10, 1012, 102]])])
    batch = {"input_ids": tokens, "attention_mask": (tokens != 0).long(), "token_type_ids": torch.zeros_like(tokens)}
    labels = [{"class_labels": torch.tensor([i % 2]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.2]])} for i in range(3)]
    config = {"backbone_config": backbone, "text_config": {"vocab_size": 1100}, "disable_custom_kernels": True}
    return {**config, **sizes}, {**batch, "pixel_values": torch.randn(3, 3, 64, 64), "labels": labels}
