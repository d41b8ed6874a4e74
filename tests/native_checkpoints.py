"""Tiny multimodal checkpoints with random weights, saved as a Hub repository would be: model, processor, config.

from tests.native_checkpoints import save_checkpoint
save_checkpoint("flava", folder)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from hf_dgl.models import FlavaForSequenceClassification, train_tokenizer

WORDS = "is this a funny image of cat dog and the what where yes no two red green answer question text".split()
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
REGIONS, FEATURES = 3, 8


def tiny_tokenizer(*special: str) -> Any:
    """Words, and further special tokens that are known to the vocabulary."""
    tokenizer = train_tokenizer([" ".join(WORDS)], max_length=512)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)} if special else {})
    tokenizer.add_special_tokens({"bos_token": "[CLS]", "eos_token": "[SEP]"})
    return tokenizer


def _flava(tokenizer: Any) -> tuple[Any, Any]:
    config = tf.FlavaConfig(
        text_config={**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 12},
        image_config={**SMALL, "image_size": 16, "patch_size": 8},
        multimodal_config=SMALL,
        image_codebook_config={"hidden_size": 4, "num_groups": 1, "vocab_size": 8},
    )
    size = {"height": 16, "width": 16}
    images = tf.FlavaImageProcessorPil(size=size, crop_size=size)
    return FlavaForSequenceClassification(config), tf.FlavaProcessor(images, tokenizer)


def _bridgetower(tokenizer: Any) -> tuple[Any, Any]:
    text = {**SMALL, "hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 20, "pad_token_id": 0}
    config = tf.BridgeTowerConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        text_config={**text, "vocab_size": len(tokenizer)},
        vision_config={"hidden_size": 64, "num_hidden_layers": 2, "patch_size": 8, "image_size": 16},
    )
    images = tf.BridgeTowerImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"shortest_edge": 16}, size_divisor=8
    )
    return tf.BridgeTowerForImageAndTextRetrieval(config), tf.BridgeTowerProcessor(images, tokenizer)


def _lxmert(tokenizer: Any) -> tuple[Any, Any]:
    config = tf.LxmertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=16,
        l_layers=1,
        x_layers=1,
        r_layers=1,
        visual_feat_dim=FEATURES,
        num_qa_labels=5,
        max_position_embeddings=12,
    )
    return tf.LxmertForQuestionAnswering(config), tokenizer


def _blip(tokenizer: Any) -> tuple[Any, Any]:
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 12, "bos_token_id": 2, "sep_token_id": 3}
    config = tf.BlipConfig(
        text_config={**text, "pad_token_id": 0, "eos_token_id": 3, "encoder_hidden_size": 16},
        vision_config={**SMALL, "image_size": 16, "patch_size": 8},
    )
    images = tf.BlipImageProcessorPil(size={"height": 16, "width": 16})
    return tf.BlipForQuestionAnswering(config), tf.BlipProcessor(images, tokenizer)


def _modernvbert(tokenizer: Any) -> tuple[Any, Any]:
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = tf.ModernVBertConfig(
        text_config={
            **SMALL,
            "model_type": "modernbert",
            "vocab_size": len(tokenizer),
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "max_position_embeddings": 64,
        },
        vision_config={**SMALL, "model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4},
        image_token_id=image_token,
        pixel_shuffle_factor=2,
    )
    images = tf.Idefics3ImageProcessorPil(
        size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False
    )
    return tf.ModernVBertForSequenceClassification(config), tf.Idefics3Processor(images, tokenizer, image_seq_len=4)


_BUILDERS: dict[str, tuple[Callable[[Any], tuple[Any, Any]], tuple[str, ...]]] = {
    "flava": (_flava, ()),
    "bridgetower": (_bridgetower, ()),
    "lxmert": (_lxmert, ()),
    "blip": (_blip, ()),
    "modernvbert": (_modernvbert, ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")),
}


def save_checkpoint(name: str, folder: Path) -> str:
    """Saves the checkpoint `name` into `folder`, and returns it as text."""
    torch.manual_seed(0)
    build, special = _BUILDERS[name]
    model, processor = build(tiny_tokenizer(*special))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
