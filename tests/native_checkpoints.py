"""Tiny multimodal checkpoints with random weights, saved as a Hub repository would be: model, processor, config.

from tests.native_checkpoints import save_checkpoint
save_checkpoint("flava", folder)
"""

from __future__ import annotations

import importlib.util
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


LANGUAGE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
EYE = {"depth": 1, "num_heads": 2, "intermediate_size": 16, "patch_size": 4, "spatial_merge_size": 2}


def _ids(tokenizer: Any, **names: str) -> dict[str, int]:
    return {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def _qwen_images() -> Any:
    return tf.Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 576}, min_pixels=64, max_pixels=576
    )


def _chat(image: str = "", audio: str = "", around: tuple[str, str] = ("", "")) -> str:
    """A chat template that writes a picture's and a sound's place, and the text."""
    begin, end = around
    return (
        "{% for m in messages %}{% for c in m['content'] %}"
        f"{{% if c['type'] == 'image' %}}{begin}{image}{end}"
        f"{{% elif c['type'] == 'audio' %}}{audio}"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )


def _qwen2_5_vl(tokenizer: Any) -> tuple[Any, Any]:
    names = {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    ids = _ids(tokenizer, image="<|image_pad|>", video="<|video_pad|>", **names)
    config = tf.Qwen2_5_VLConfig(
        text_config={**LANGUAGE, **MROPE, "vocab_size": len(tokenizer)},
        vision_config={
            **EYE,
            "hidden_size": 16,
            "out_hidden_size": 16,
            "window_size": 16,
            "fullatt_block_indexes": [0],
        },
        **ids,
    )
    template = _chat(image="<|image_pad|>", around=("<|vision_start|>", "<|vision_end|>"))
    processor = tf.Qwen2_5_VLProcessor(image_processor=_qwen_images(), tokenizer=tokenizer, chat_template=template)
    return tf.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen2_5_omni(tokenizer: Any) -> tuple[Any, Any]:
    """The thinker alone, which reads all three and writes text."""
    tokens = {f"{kind}_token": f"<|{kind}_pad|>" for kind in ("image", "audio", "video")}
    tokens |= {f"vision_{end}_token": f"<|vision_{end}|>" for end in ("bos", "eos")}
    tokens |= {f"audio_{end}_token": f"<|audio_{end}|>" for end in ("bos", "eos")}
    tokenizer.init_kwargs["extra_special_tokens"] = tokens
    tokenizer._set_model_specific_special_tokens(special_tokens=tokens)
    ids = _ids(tokenizer, image="<|image_pad|>", audio="<|audio_pad|>", video="<|video_pad|>")
    ids |= _ids(tokenizer, vision_start="<|vision_bos|>", vision_end="<|vision_eos|>")
    ids |= _ids(tokenizer, audio_start="<|audio_bos|>", audio_end="<|audio_eos|>")
    ear = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "d_model": 16, "output_dim": 16}
    config = tf.Qwen2_5OmniThinkerConfig(
        text_config={**LANGUAGE, **MROPE, "vocab_size": len(tokenizer)},
        vision_config={
            **EYE,
            "hidden_size": 16,
            "out_hidden_size": 16,
            "window_size": 16,
            "fullatt_block_indexes": [0],
        },
        audio_config={**ear, "num_mel_bins": 8, "max_source_positions": 50, "n_window": 25},
        **ids,
    )
    template = _chat("<|image_pad|>", "<|audio_bos|><|audio_pad|><|audio_eos|>", ("<|vision_bos|>", "<|vision_eos|>"))
    sounds = tf.WhisperFeatureExtractor(feature_size=8, chunk_length=1, return_attention_mask=True)
    processor = tf.Qwen2_5OmniProcessor(
        image_processor=_qwen_images(), feature_extractor=sounds, tokenizer=tokenizer, chat_template=template
    )
    return tf.Qwen2_5OmniThinkerForConditionalGeneration(config), processor


def without_videos(monkeypatch: Any) -> None:
    """Processors that also read videos need torchvision; where it is not, this lets them read all else."""
    if importlib.util.find_spec("torchvision") is not None:
        return

    def init(self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        for kind in ("image", "video"):
            setattr(self, f"{kind}_token", f"<|{kind}_pad|>")
            setattr(self, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>"))
        tf.ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def init_omni(
        self: Any, image_processor: Any = None, feature_extractor: Any = None, tokenizer: Any = None, **kwargs: Any
    ) -> None:
        for name in ("image", "audio", "video", "vision_bos", "vision_eos", "audio_bos", "audio_eos"):
            setattr(self, f"{name}_token", getattr(tokenizer, f"{name}_token"))
        for name in ("image", "audio", "video"):
            setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(getattr(self, f"{name}_token")))
        tf.ProcessorMixin.__init__(self, image_processor, feature_extractor, tokenizer, **kwargs)

    monkeypatch.setattr(tf.Qwen2_5_VLProcessor, "__init__", init)
    monkeypatch.setattr(tf.Qwen2_5OmniProcessor, "__init__", init_omni)


def _gemma3(tokenizer: Any) -> tuple[Any, Any]:
    tokens = {"image_token": "<image_soft>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    tokenizer.init_kwargs["extra_special_tokens"] = tokens
    tokenizer._set_model_specific_special_tokens(special_tokens=tokens)
    config = tf.Gemma3Config(
        text_config={**LANGUAGE, "vocab_size": len(tokenizer), "sliding_window": 8, "query_pre_attn_scalar": 8},
        vision_config={**SMALL, "image_size": 16, "patch_size": 4},
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.convert_tokens_to_ids("<boi>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<eoi>"),
        pad_token_id=0,
    )
    images = tf.Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    return tf.Gemma3ForSequenceClassification(config), tf.Gemma3Processor(images, tokenizer, image_seq_length=4)


def _qwen2_audio(tokenizer: Any) -> tuple[Any, Any]:
    ids = {"audio_token_index": tokenizer.convert_tokens_to_ids("<|AUDIO|>")}
    tower = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "d_model": 16}
    config = tf.Qwen2AudioConfig(
        text_config={**LANGUAGE, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        audio_config={**tower, "num_mel_bins": 8, "max_source_positions": 50},
        **ids,
    )
    sounds = tf.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    template = _chat(audio="<|audio_bos|><|AUDIO|><|audio_eos|>")
    return tf.Qwen2AudioForConditionalGeneration(config), tf.Qwen2AudioProcessor(sounds, tokenizer, template)


def _instructblip_t5(tokenizer: Any) -> tuple[Any, Any]:
    """Its config does not say that it is an encoder-decoder."""
    t5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = tf.InstructBlipConfig(
        text_config={**t5, "vocab_size": len(tokenizer), "decoder_start_token_id": 0, "eos_token_id": 3},
        vision_config={**SMALL, "image_size": 16, "patch_size": 8},
        qformer_config={**SMALL, "vocab_size": len(tokenizer), "encoder_hidden_size": 16},
        num_query_tokens=3,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = tf.BlipImageProcessorPil(size={"height": 16, "width": 16})
    processor = tf.InstructBlipProcessor(images, tokenizer, tokenizer, num_query_tokens=3)
    return tf.InstructBlipForConditionalGeneration(config), processor


_BUILDERS: dict[str, tuple[Callable[[Any], tuple[Any, Any]], tuple[str, ...]]] = {
    "flava": (_flava, ()),
    "bridgetower": (_bridgetower, ()),
    "lxmert": (_lxmert, ()),
    "blip": (_blip, ()),
    "instructblip_t5": (_instructblip_t5, ("<image>",)),
    "gemma3": (_gemma3, ("<image_soft>", "<boi>", "<eoi>")),
    "qwen2_audio": (_qwen2_audio, ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")),
    "qwen2_5_vl": (_qwen2_5_vl, ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")),
    "qwen2_5_omni": (
        _qwen2_5_omni,
        (
            *("<|image_pad|>", "<|video_pad|>", "<|audio_pad|>"),
            *("<|vision_bos|>", "<|vision_eos|>", "<|audio_bos|>", "<|audio_eos|>"),
        ),
    ),
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
