"""Vision towers that take pictures of one size: LLaVA's kin, InternVL, Llama 4."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

from .build import IMAGE, VIDEO, asked, shrunk


def pictures(places: int, size: int = 32, **more: Any) -> dict[str, Any]:
    """Row 0: two pictures. Row 1: one. Row 2: none."""
    batch = asked([(IMAGE, places), (IMAGE, places)], [(IMAGE, places)], [])
    return {**batch, "pixel_values": torch.randn(3, 3, size, size), **more}


SIZE = {"image_size": 32}


@shrunk("InternVLForConditionalGeneration")
def _internvl() -> Any:
    return {"vision_config": {"image_size": [32, 32], "patch_size": [8, 8]}}, pictures(4)


@shrunk("QianfanOCRForConditionalGeneration")
def _qianfan() -> Any:
    return {"vision_config": {"image_size": [32, 32], "patch_size": [8, 8]}}, pictures(4)


@shrunk("AyaVisionForConditionalGeneration")
def _aya() -> Any:
    return {"vision_config": SIZE}, pictures(4)


@shrunk("Cohere2VisionForConditionalGeneration")
def _cohere2() -> Any:
    return {"vision_config": SIZE}, pictures(4)


@shrunk("GotOcr2ForConditionalGeneration")
def _got() -> Any:
    return {"vision_config": {"image_size": 64, "output_channels": 8}}, pictures(4, 64)


@shrunk("VipLlavaForConditionalGeneration")
def _vip_llava() -> Any:
    return {"vision_config": SIZE, "vision_feature_layers": [-1, -2]}, pictures(16)


@shrunk("DeepseekVLForConditionalGeneration")
def _deepseek_vl() -> Any:
    return {"vision_config": SIZE}, pictures(16)


@shrunk("JanusForConditionalGeneration")
def _janus() -> Any:
    vq = {"base_channels": 32, "channel_multiplier": [1], "latent_channels": 8, "num_res_blocks": 1}
    vq |= {"embed_dim": 8, "num_embeddings": 8}
    return {"vision_config": {**SIZE, "hidden_dropout_rate": 0.0}, "vq_config": vq}, pictures(16)


@shrunk("Llama4ForConditionalGeneration")
def _llama4() -> Any:
    vision = {**SIZE, "pixel_shuffle_ratio": 0.5, "intermediate_size": 64}
    vision |= dict.fromkeys(("projector_input_dim", "projector_output_dim", "vision_output_dim"), 16)
    text = {"moe_layers": [1], "no_rope_layers": [1, 0], "layer_types": ["chunked_attention", "full_attention"]}
    return {"vision_config": vision, "text_config": text}, pictures(4)


@shrunk("Mistral3ForConditionalGeneration", "LightOnOcrForConditionalGeneration")
def _mistral3() -> Any:
    sizes = torch.tensor([[32, 32], [32, 16], [16, 32]])
    batch = asked([(IMAGE, 4), (IMAGE, 2)], [(IMAGE, 2)], [])
    return {"vision_config": SIZE}, {**batch, "pixel_values": torch.randn(3, 3, 32, 32), "image_sizes": sizes}


@shrunk("Lfm2VlForConditionalGeneration")
def _lfm2() -> Any:
    vision = {"num_patches": 16}
    return {"vision_config": vision, "text_config": {"layer_types": ["conv", "full_attention"]}}, {
        **asked([(IMAGE, 4), (IMAGE, 2)], [(IMAGE, 2)], []),
        "pixel_values": torch.randn(3, 16, 192),
        "spatial_shapes": torch.tensor([[4, 4], [4, 2], [2, 4]]),
        "pixel_attention_mask": torch.tensor([[1] * 16, [1] * 8 + [0] * 8, [1] * 8 + [0] * 8]),
    }


@shrunk("Ovis2ForConditionalGeneration")
def _ovis2() -> Any:
    return {"vision_config": SIZE, "visual_indicator_token_ids": [51, 52, 53, 54, 55]}, pictures(16)


@shrunk("AriaForConditionalGeneration")
def _aria() -> Any:
    return {"vision_config": SIZE, "projector_patch_to_query_dict": {16: 4}}, pictures(4)


@shrunk("FastVlmForConditionalGeneration")
def _fast_vlm() -> Any:
    """Another tower in place of timm's, which gives feature maps, too."""
    vision = {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "hidden_size": 16}
    return {"vision_config": tf.ConvNextConfig(**vision, image_size=32)}, pictures(16)


@shrunk("PerceptionLMForConditionalGeneration")
def _perception() -> Any:
    """Another tower in place of timm's."""
    tower = tf.Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        model_args={"embed_dim": 16},
    )
    batch = pictures(4)
    batch["pixel_values"] = batch["pixel_values"][:, None]
    return {"vision_config": tower, "vision_use_cls_token": True, "projector_pooling_ratio": 2}, batch


@shrunk("LlavaNextVideoForConditionalGeneration")
def _llava_next_video() -> Any:
    """Row 0: a picture, whole and as one tile (rows end with a line break). Row 1: none. Row 2: a video."""
    batch = asked([(IMAGE, 10)], [], [(VIDEO, 2)])
    config = {"vision_config": {"image_size": 16}, "image_grid_pinpoints": [[16, 16]]}
    batch |= {"pixel_values": torch.randn(1, 2, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}
    return config, {**batch, "pixel_values_videos": torch.randn(1, 2, 3, 16, 16)}


@shrunk("VideoLlavaForConditionalGeneration")
def _video_llava() -> Any:
    batch = asked([(IMAGE, 4)], [], [(VIDEO, 2 * 5)])
    config = {"vision_config": {"image_size": 16}}
    batch |= {"pixel_values_images": torch.randn(1, 3, 16, 16)}
    return config, {**batch, "pixel_values_videos": torch.randn(1, 2, 3, 16, 16)}


@shrunk("DeepseekVLHybridForConditionalGeneration")
def _deepseek_hybrid() -> Any:
    high = {"image_size": 64, "output_channels": 8}
    batch = pictures(16, high_res_pixel_values=torch.randn(3, 3, 64, 64))
    return {"vision_config": SIZE, "high_res_vision_config": {**high, "global_attn_indexes": [0]}}, batch


def bidirectional() -> Any:
    text = {"local_attention": 8, "global_attn_every_n_layers": 2}
    batch = asked([(IMAGE, 1)], [(IMAGE, 1)], [(IMAGE, 1)])
    batch["input_ids"][1, -3:] = 0
    batch["attention_mask"][1, -3:] = 0
    return {"text_config": text, "pixel_shuffle_factor": 2}, {**batch, "pixel_values": torch.randn(3, 1, 3, 16, 16)}


@shrunk("ModernVBertForMaskedLM", "UltraVBertForMaskedLM")
def _vbert() -> Any:
    config, batch = bidirectional()
    return config, batch


@shrunk("ModernVBertForTokenClassification", "UltraVBertForTokenClassification")
def _vbert_tokens() -> Any:
    config, batch = _vbert()
    kinds = torch.randint(2, batch["input_ids"].shape)
    return config, {**batch, "labels": torch.where(batch["attention_mask"].bool(), kinds, -100)}


@shrunk("FuyuForCausalLM")
def _fuyu() -> Any:
    """The image is patches and one linear layer."""
    text = {"hidden_dropout": 0.0, "pad_token_id": 0}
    batch = {**asked([(IMAGE, 4), (IMAGE, 4)], [(IMAGE, 4)], []), "pixel_values": torch.randn(3, 4, 192)}
    return {"text_config": text, "patch_size": 8}, batch
