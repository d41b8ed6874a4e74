"""Vision towers that see a picture whole and in tiles, and learn what stands between them: OCR models, Molmo 2."""

from __future__ import annotations

from typing import Any

import torch

from .build import IMAGE, asked, kinds, shrunk
from .pictures import SIZE

TILED = (1, 0, 1)  # tiles of each picture


@shrunk("Molmo2ForConditionalGeneration")
def _molmo2() -> Any:
    """Four patches make a place. The embedding of the placeholder stays, and the picture is added to it."""
    vision = {"image_size": [32, 32], "num_position_embeddings": 16}
    batch = kinds(asked([(IMAGE, 4), (IMAGE, 2)], [(IMAGE, 4)], []))
    patches = torch.arange(48).reshape(12, 4)
    return {
        "vision_config": vision,
        "adapter_config": {"vision_feature_layer": [-1, -2]},
        "image_patch_id": IMAGE,
    }, {
        **batch,
        "pixel_values": torch.randn(3, 16, 8 * 8 * 3),
        "image_token_pooling": patches[[0, 1, 2, 3, 4, 5, 8, 9, 10, 11]],
        "image_grids": torch.tensor([[2, 2, 0, 0], [1, 2, 0, 0], [2, 2, 0, 0]]),
    }


@shrunk("Granite4VisionForConditionalGeneration")
def _granite4_vision() -> Any:
    """Row 0: a picture, whole and as one tile (rows end with a line break). Row 1: one. Row 2: none."""
    each = 4 + 2 * 3  # whole, and two lines of a tile
    batch = asked([(IMAGE, each)], [(IMAGE, each)], [])
    vision = {"hidden_size": 64, "image_size": 32}
    config = {"vision_config": vision, "image_grid_pinpoints": [[32, 32]], "downsample_rate": "1/2"}
    layers = {"deepstack_layer_map": [[-1, 0]], "spatial_target_layers": [1, 2, 3, 4]}
    layers |= {"text_config": {"num_hidden_layers": 5}}
    pixels = {"pixel_values": torch.randn(2, 2, 3, 32, 32), "image_sizes": torch.tensor([[32, 32], [32, 32]])}
    return {**config, **layers, "vision_feature_select_strategy": "default"}, {
        **batch,
        **pixels,
        "vision_feature_select_strategy": "default",
    }


@shrunk("GraniteDoclingForConditionalGeneration")
def _granite_docling() -> Any:
    """Row 0: two tiles. Row 1: one. Row 2: one."""
    vision = {**SIZE, "scale_factor": 2, "deepstack_visual_indexes": [0]}
    batch = asked([(IMAGE, 8)], [(IMAGE, 4)], [(IMAGE, 4)])
    tiles = torch.tensor([[True, True], [True, False], [True, False]])
    return {"vision_config": vision}, {
        **batch,
        "pixel_values": torch.randn(3, 2, 3, 32, 32),
        "pixel_attention_mask": tiles,
    }


@shrunk("MistralLarge4ForConditionalGeneration")
def _mistral_large4() -> Any:
    sizes = torch.tensor([[32, 32], [32, 16], [16, 32]])
    batch = asked([(IMAGE, 4), (IMAGE, 2)], [(IMAGE, 2)], [])
    text = {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 2, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    text |= {"no_rope_layers": None, "kv_source_layers": None, "indexer_types": None}
    return {"vision_config": SIZE, "text_config": text}, {
        **batch,
        "pixel_values": torch.randn(3, 3, 32, 32),
        "image_sizes": sizes,
    }


@shrunk("Step3p7ForConditionalGeneration")
def _step3p7() -> Any:
    """16 places for a picture, 4 for a tile of it."""
    vision = {"image_size": 64, "mlp_ratio": 2.0, "max_position_embeddings": 64}
    batch = asked([(IMAGE, 8), (IMAGE, 4)], [(IMAGE, 8)], [])
    text = {"share_expert_dim": 32, "sliding_window": 8}
    return {"vision_config": vision, "text_config": text}, {
        **batch,
        "pixel_values": torch.randn(3, 3, 64, 64),
        "pixel_values_local": torch.randn(2, 3, 64, 64),
        "num_local_patches": list(TILED),
    }


TEXT = {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2}
SAM = {"image_size": 64, "output_channels": 8, "downsample_channels": [8, 16], "global_attn_indexes": [0]}


@shrunk("DeepseekOcr2ForConditionalGeneration")
def _deepseek_ocr2() -> Any:
    """A picture and a tile are 144 places each; a separator ends them."""
    batch = asked([(IMAGE, 2 * 144 + 1)], [(IMAGE, 144 + 1)], [])
    vision = {"sam_config": SAM, "encoder_config": {"num_hidden_layers": 2}}
    return {"vision_config": vision, "text_config": TEXT}, {
        **batch,
        "pixel_values": torch.randn(2, 3, 64, 64),
        "pixel_values_local": torch.randn(1, 3, 64, 64),
        "num_local_patches": [1, 0],
    }


@shrunk("UnlimitedOcrForConditionalGeneration")
def _unlimited_ocr() -> Any:
    """A line of places ends with a line break, the picture with a separator."""
    return {"vision_config": {"sam_config": SAM, "encoder_config": {"image_size": 16}}}, {
        **asked([(IMAGE, 6 + 6 + 1)], [(IMAGE, 6 + 1)], []),
        "pixel_values": torch.randn(2, 3, 64, 64),
        "pixel_values_local": torch.randn(1, 3, 64, 64),
        "num_local_patches": [1, 0],
        "patches_grid": [[1, 1], [1, 1]],
    }
