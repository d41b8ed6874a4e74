"""Vision towers that take patches and a grid: Qwen-VL and what is made like it."""

from __future__ import annotations

from typing import Any

import torch

from .build import IMAGE, VIDEO, asked, kinds, shrunk

GRIDS = [[1, 4, 4], [1, 4, 2], [1, 2, 4]]  # frames, rows, columns, in patches
PATCH = 3 * 2 * 4 * 4  # channels, frames, 4 x 4 pixels


def patches(grid: list[list[int]], width: int = PATCH) -> torch.Tensor:
    return torch.randn(sum(t * h * w for t, h, w in grid), width)


def seen(width: int = PATCH, video: bool = True, frames: int = 1) -> dict[str, Any]:
    """Row 0: two pictures of different size. Row 1: one. Row 2: a video."""
    rows = [[(IMAGE, 4), (IMAGE, 2)], [(IMAGE, 2)], [(VIDEO, 4)] if video else []]
    batch = kinds(asked(*rows))
    batch |= {"pixel_values": patches(GRIDS, width), "image_grid_thw": torch.tensor(GRIDS)}
    if video:
        grid = [[frames, 4, 4]]
        batch |= {"pixel_values_videos": patches(grid, width), "video_grid_thw": torch.tensor(grid)}
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
    heads = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    text = {**MROPE, **heads, "layer_types": ["linear_attention", "full_attention"], "pad_token_id": 0}
    return {"vision_config": {**VISION, "num_position_embeddings": 16}, "text_config": text}, seen()


@shrunk("Qwen3_5ForSequenceClassification")
def _qwen3_5_classifier() -> Any:
    changes, batch = _qwen3_5()
    return {**changes, "num_labels": 4}, {**batch, "labels": torch.tensor([1, 0, 3])}


@shrunk("Cosmos3OmniForConditionalGeneration")
def _cosmos_omni() -> Any:
    return _qwen3()


@shrunk("Cosmos3EdgeForConditionalGeneration")
def _cosmos_edge() -> Any:
    return {"vision_config": {**VISION, "num_patches": 16}, "text_config": MROPE}, seen(PATCH // 2)


@shrunk("Qwen4ExpForConditionalGeneration")
def _qwen4() -> Any:
    changes, batch = _qwen3_5()
    indexer = {"n_heads": 2, "kv_heads": 1, "head_dim": 8, "budget": 8, "compress_ratio": 2}
    text = {f"indexer_{key}": value for key, value in indexer.items()} | {"hc_count": 2, "hc_lowrank": 4}
    return {**changes, "text_config": {**changes["text_config"], **text}}, batch


@shrunk(
    "Glm4vForConditionalGeneration",
    "Glm46VForConditionalGeneration",
    "GlmOcrForConditionalGeneration",
)
def _glm() -> Any:
    """A video has the image's places, so upstream takes either in one batch."""
    return {"vision_config": {**VISION, "image_size": 16}, "text_config": MROPE}, seen(video=False)


@shrunk("Glm4vMoeForConditionalGeneration")
def _glm_moe() -> Any:
    changes, batch = _glm()
    text = {"rope_parameters": {**MROPE["rope_parameters"], "mrope_section": [1, 1, 0]}}
    return {**changes, "text_config": text}, batch


@shrunk("Glm5NextForConditionalGeneration")
def _glm5() -> Any:
    text = {"qk_rope_head_dim": 0, "layer_types": ["linear_attention", "indexed_attention"]}
    text |= {"mlp_layer_types": ["dense", "sparse"], "linear_head_dim": 8, "linear_num_heads": 2}
    text |= {"index_head_dim": 8, "index_n_heads": 2, "hc_mult": 2}
    return {"vision_config": {**VISION, "image_size": 16}, "text_config": text}, seen(video=False)


def without_kinds(video: bool = True) -> dict[str, Any]:
    return {key: value for key, value in seen(video=video).items() if key != "mm_token_type_ids"}


@shrunk("Exaone4_5_ForConditionalGeneration", "HyperCLOVAXVisionV2ForConditionalGeneration")
def _exaone() -> Any:
    return {"vision_config": VISION}, without_kinds()


@shrunk("MiniMaxM3SparseForConditionalGeneration")
def _minimax() -> Any:
    return {"vision_config": VISION}, without_kinds()


def unfolded(batch: dict[str, Any], names: tuple[str, ...] = ("pixel_values",)) -> dict[str, Any]:
    """Patches as small pictures."""
    return {**batch, **{name: torch.randn(len(batch[name]), 3, 4, 4) for name in names}}


@shrunk("PaddleOCRVLForConditionalGeneration")
def _paddle() -> Any:
    return {"vision_config": {**VISION, "image_size": 16}, "text_config": MROPE}, unfolded(seen(video=False))


@shrunk("CohereCompassForConditionalGeneration")
def _compass() -> Any:
    mrope = MROPE["rope_parameters"]
    ropes = {"sliding_attention": mrope, "full_attention": mrope}
    text = {"layer_types": ["sliding_attention", "full_attention"], "rope_parameters": ropes}
    return {"vision_config": VISION, "text_config": text}, seen()


@shrunk("Kimi_K25ForConditionalGeneration")
def _kimi() -> Any:
    vision = {**VISION, "pos_emb_height": 4, "pos_emb_width": 4}
    return {"vision_config": vision}, unfolded(without_kinds(), ("pixel_values", "pixel_values_videos"))


@shrunk("VideoLlama3ForConditionalGeneration")
def _videollama() -> Any:
    sizes = {"image_merge_sizes": torch.tensor([2, 2, 2]), "video_merge_sizes": torch.tensor([2])}
    batch = without_kinds()
    batch |= {name: batch[name][:, : PATCH // 2] for name in ("pixel_values", "pixel_values_videos")}
    return {"vision_config": VISION}, {**batch, **sizes}


@shrunk("Ernie4_5_VLMoeForConditionalGeneration")
def _ernie() -> Any:
    text = {"rope_parameters": {**MROPE["rope_parameters"], "mrope_section": [1, 1, 2]}}
    text |= {"moe_intermediate_size": [32, 32], "moe_num_experts": 4, "moe_k": 2}
    return {"vision_config": VISION, "text_config": text}, seen(PATCH // 2, frames=2)


@shrunk("MuseGlimmerForConditionalGeneration")
def _muse() -> Any:
    return {"vision_config": VISION, "out_hidden_size": 64}, without_kinds()


@shrunk("Inkling2ForConditionalGeneration")
def _inkling2() -> Any:
    batch = without_kinds(video=False)
    return {"vision_config": VISION}, {
        **batch,
        "pixel_values": torch.randn(8, 8, 8, 3),
        "image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 1], [1, 1, 2]]),  # in places
    }


@shrunk("Lfm3VlForConditionalGeneration")
def _lfm3() -> Any:
    return {"vision_config": VISION, "text_config": {"layer_types": ["conv", "full_attention"]}}, without_kinds()


@shrunk("HunYuanVLForConditionalGeneration")
def _hunyuan() -> Any:
    """Nothing in the config tells what stands between two pictures, so there is one in a row."""
    batch = kinds(asked([(IMAGE, 8)], [(IMAGE, 6)], [(IMAGE, 5)]))
    batch |= {"pixel_values": patches(GRIDS, PATCH // 2), "image_grid_thw": torch.tensor(GRIDS)}
    return {"vision_config": {**VISION, "max_image_size": 16}, "text_config": {"head_dim": 8, **MROPE}}, batch


def minicpm(each: int, *rows: Any) -> Any:
    """All patches of all pictures in one row; 16 of them are `each` places."""
    changes, _ = _qwen3_5()
    batch = kinds(asked(*rows or ([(IMAGE, each), (IMAGE, 2 * each)], [(IMAGE, each)], [])))
    pixels = {"pixel_values": torch.randn(1, 3, 4, 64 * 4), "target_sizes": torch.tensor([[4, 4], [4, 8], [4, 4]])}
    config = {"vision_config": {"patch_size": 4, "insert_layer_id": 0}, "text_config": changes["text_config"]}
    return {**config, "image_token_id": IMAGE, "video_token_id": VIDEO}, {**batch, **pixels}


@shrunk("MiniCPMV4_6ForConditionalGeneration")
def _minicpm_4_6() -> Any:
    return minicpm(1)


@shrunk("MiniCPMV4_7ForConditionalGeneration")
def _minicpm_4_7() -> Any:
    """A second picture in a row would count as a slice of the first."""
    return minicpm(1, [(IMAGE, 1)], [(IMAGE, 2)], [(IMAGE, 1)])


@shrunk("MiniCPMOcrForConditionalGeneration")
def _minicpm_ocr() -> Any:
    return minicpm(4)
