"""Query tokens and decoders of their own: BLIP-2, Kosmos, T5Gemma 2."""

from __future__ import annotations

from typing import Any

import torch

from .build import IMAGE, VIDEO, asked, shrunk


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


@shrunk("T5Gemma2ForTokenClassification")
def _t5gemma2_tokens() -> Any:
    """The decoder reads the text once more, and each of its tokens is labelled."""
    changes, batch = _t5gemma2()
    labels = torch.randint(4, batch["input_ids"].shape).masked_fill(batch["attention_mask"] == 0, -100)
    return {**changes, "num_labels": 4}, {**batch, "labels": labels}


@shrunk("InstructBlipVideoForConditionalGeneration")
def _instructblip_video() -> Any:
    """Two frames of three query tokens each."""
    changes, batch = _blip2()
    del changes["image_token_index"]
    batch["input_ids"][batch["input_ids"] == IMAGE] = VIDEO
    batch = {**batch, **_longer(batch, 3), "pixel_values": torch.randn(3, 2, 3, 16, 16)}
    question = torch.randint(5, 50, (3, 4))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]])
    asked_of_queries = {"qformer_input_ids": question, "qformer_attention_mask": mask}
    return {**changes, "video_token_index": VIDEO}, {**batch, **asked_of_queries}


def _longer(batch: dict[str, Any], count: int) -> dict[str, torch.Tensor]:
    """As many more places in each row, behind its first word."""
    rows = len(batch["input_ids"])
    more = {"input_ids": VIDEO, "attention_mask": 1, "labels": -100}
    return {
        name: torch.cat([batch[name][:, :2], torch.full((rows, count), value), batch[name][:, 2:]], 1)
        for name, value in more.items()
    }


def kosmos(places: int, **image: torch.Tensor) -> dict[str, Any]:
    """An argument tells the places; one row has none."""
    batch = asked([(IMAGE, places)], [], [(IMAGE, places)])
    return {**batch, "image_embeds_position_mask": (batch["input_ids"] == IMAGE).long(), **image}


@shrunk("Kosmos2ForConditionalGeneration")
def _kosmos2() -> Any:
    return {"latent_query_num": 3}, kosmos(3, pixel_values=torch.randn(2, 3, 16, 16))


@shrunk("Kosmos2_5ForConditionalGeneration")
def _kosmos2_5() -> Any:
    """Patches that carry their row and column."""
    patches = torch.randn(2, 4, 2 + 12)
    patches[..., 0], patches[..., 1] = torch.tensor([1, 1, 2, 2]), torch.tensor([1, 2, 1, 2])
    changes = {"latent_query_num": 3, "vision_config": {"patch_embed_hidden_size": 12, "max_num_patches": 8}}
    return changes, kosmos(3, flattened_patches=patches)
