"""Vision towers that take patches and a grid: Qwen-VL and what is made like it."""

from __future__ import annotations

from typing import Any

import torch

from .build import IMAGE, VIDEO, asked, kinds, shrunk

GRIDS = {"image": [[1, 4, 4], [1, 4, 2], [1, 2, 4]], "video": [[1, 4, 4]]}  # frames, rows, columns, in patches
PATCH = 3 * 2 * 4 * 4  # channels, frames, 4 x 4 pixels


def patches(grid: list[list[int]], width: int = PATCH) -> torch.Tensor:
    return torch.randn(sum(t * h * w for t, h, w in grid), width)


def seen(width: int = PATCH, video: bool = True) -> dict[str, Any]:
    """Row 0: two pictures of different size. Row 1: one. Row 2: a video."""
    rows = [[(IMAGE, 4), (IMAGE, 2)], [(IMAGE, 2)], [(VIDEO, 4)] if video else []]
    batch = kinds(asked(*rows))
    batch |= {"pixel_values": patches(GRIDS["image"], width), "image_grid_thw": torch.tensor(GRIDS["image"])}
    if video:
        batch |= {"pixel_values_videos": patches(GRIDS["video"], width)}
        batch |= {"video_grid_thw": torch.tensor(GRIDS["video"])}
    return batch


VISION = {"patch_size": 4, "spatial_merge_size": 2}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}


@shrunk("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")
def _qwen2() -> Any:
    return {"vision_config": VISION, "text_config": MROPE}, seen()


@shrunk("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration")
def _qwen3() -> Any:
    vision = {**VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    return {"vision_config": vision, "text_config": MROPE}, seen()


@shrunk("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration")
def _qwen3_5() -> Any:
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    text = {**MROPE, **heads, "layer_types": ["linear_attention", "full_attention"], "pad_token_id": 0}
    return {"vision_config": {**VISION, "num_position_embeddings": 16}, "text_config": text}, seen()


@shrunk("Qwen3_5ForSequenceClassification")
def _qwen3_5_classifier() -> Any:
    changes, batch = _qwen3_5()
    return {**changes, "num_labels": 4}, {**batch, "labels": torch.tensor([1, 0, 3])}
