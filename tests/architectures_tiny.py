"""Tiny random models of known architectures, each with a batch that gives a finite loss: no download, float32, CPU.

from tests.architectures_tiny import TINY
model, batch = TINY["LxmertForQuestionAnswering"]()      # eval mode, no dropout; 3 rows, labels included
model(**batch)["loss"].backward()

A model that computes no supervised loss by itself gets a head of a few lines (`with_head`); its name here says so
(`BlipForImageTextRetrieval+CE`). Every parameter is perturbed: zero-initialised gates and biases hide errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import nn

from tests.devices import put

B, L, VOCAB, CLASSES = 3, 6, 64, 4
TINY: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {}

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {**SIZES, **SPECIAL, "vocab_size": VOCAB, "max_position_embeddings": 64}
BERT = {**TEXT, **NO_DROPOUT}
VISION = {**SIZES, "image_size": 16, "patch_size": 8}
LLAMA = {**TEXT, "num_key_value_heads": 2, "model_type": "llama", "head_dim": 8}
GEMMA = {**LLAMA, "sliding_window": 8, "query_pre_attn_scalar": 8}
BART = {
    **SPECIAL,
    "vocab_size": VOCAB,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "decoder_start_token_id": 1,
}


def tiny(name: str) -> Callable[[Any], Any]:
    """Registers a builder under the model's class name; seeds it, perturbs the parameters, sets eval mode."""

    def register(build: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> Any:
        def seeded() -> tuple[nn.Module, dict[str, Any]]:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model, batch = build()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(0.05 * torch.randn_like(parameter))
            return put(model.float().eval()), put(batch)

        TINY[name] = seeded
        return build

    return register


class WithHead(nn.Module):
    """A model with a linear head and cross-entropy on what `read` takes from its output."""

    def __init__(self, model: nn.Module, read: Callable[[Any], torch.Tensor], width: int, **kwargs: Any) -> None:
        super().__init__()
        self.model, self.read, self.kwargs = model, read, kwargs
        self.head = nn.Linear(width, CLASSES)

    def forward(self, labels: torch.Tensor | None = None, **inputs: Any) -> dict[str, Any]:
        logits = self.head(self.read(self.model(**inputs, **self.kwargs)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


# ---- batches ----


def ids(length: int = L) -> torch.Tensor:
    """Token ids without special ones (nor those used as image and audio places, 50 and up)."""
    return torch.randint(5, 50, (B, length))


def text(length: int = L) -> dict[str, torch.Tensor]:
    """Ids and a mask with one padded row."""
    tokens, mask = ids(length), torch.ones(B, length, dtype=torch.long)
    tokens[1, -1:] = 0
    mask[1, -1:] = 0
    return {"input_ids": tokens, "attention_mask": mask}


def image(size: int = 16, *leading: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(B, *leading, 3, size, size)}


def classes(number: int = CLASSES) -> dict[str, torch.Tensor]:
    return {"labels": torch.randint(number, (B,))}


def with_places(token: int, count: int, length: int = L) -> dict[str, torch.Tensor]:
    """A text in which `count` places are those of the image (or sound), after the first token; right-padded row 1."""
    batch = text(length)
    places = torch.full((B, count), token)
    ones = torch.ones_like(places)
    return {
        "input_ids": torch.cat([batch["input_ids"][:, :1], places, batch["input_ids"][:, 1:]], 1),
        "attention_mask": torch.cat([batch["attention_mask"][:, :1], ones, batch["attention_mask"][:, 1:]], 1),
    }


def answers(batch: dict[str, Any], last: int = 2) -> dict[str, torch.Tensor]:
    """Token labels: only the last `last` tokens are predicted."""
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -last:] = batch["input_ids"][:, -last:]
    return {**batch, "labels": labels}


# ---- two streams ----


def _bridgetower_config() -> tf.BridgeTowerConfig:
    return tf.BridgeTowerConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        text_config={**BERT, "hidden_size": 64, "num_hidden_layers": 3},
        vision_config={"hidden_size": 64, "num_hidden_layers": 3, "patch_size": 8, "image_size": 16},
        num_labels=2,
        logit_scale_init_value=2.6,
        contrastive_hidden_size=16,
        hidden_dropout_prob=0.0,
    )


@tiny("BridgeTowerForImageAndTextRetrieval")
def _bridgetower() -> Any:
    batch = {**text(), **image(), **classes(2)}
    return tf.BridgeTowerForImageAndTextRetrieval(_bridgetower_config()), batch


@tiny("BridgeTowerForMaskedLM")
def _bridgetower_mlm() -> Any:
    return tf.BridgeTowerForMaskedLM(_bridgetower_config()), {**text(), **image(), "labels": ids()}


@tiny("BridgeTowerForContrastiveLearning")
def _bridgetower_contrastive() -> Any:
    return tf.BridgeTowerForContrastiveLearning(_bridgetower_config()), {**text(), **image(), "return_loss": True}


def _flava_config() -> tf.FlavaConfig:
    return tf.FlavaConfig(
        text_config=BERT,
        image_config={**VISION, **NO_DROPOUT},
        multimodal_config={**SIZES, **NO_DROPOUT},
        hidden_size=16,
        projection_dim=16,
        num_labels=CLASSES,
    )


@tiny("FlavaForSequenceClassification")
def _flava() -> Any:
    from hf_dgl.models import FlavaForSequenceClassification

    return FlavaForSequenceClassification(_flava_config()), {**text(), **image(), **classes()}


@tiny("FlavaModel+CE")
def _flava_model() -> Any:
    model = WithHead(tf.FlavaModel(_flava_config()), lambda out: out.multimodal_embeddings[:, 0], 16)
    return model, {**text(), **image(), **classes()}


@tiny("LxmertForQuestionAnswering")
def _lxmert() -> Any:
    sizes = {key: value for key, value in BERT.items() if key != "num_hidden_layers"}
    config = tf.LxmertConfig(
        **sizes, l_layers=2, x_layers=2, r_layers=2, visual_feat_dim=10, num_qa_labels=CLASSES, task_qa=True
    )
    batch = {**text(), "visual_feats": torch.randn(B, 5, 10), "visual_pos": torch.rand(B, 5, 4), **classes()}
    return tf.LxmertForQuestionAnswering(config), batch


@tiny("CrossModalForSequenceClassification")
def _cross_modal() -> Any:
    from tests.tiny import NUM_LABELS, tiny_batch, tiny_model

    batch = tiny_batch(("image", "text"), B)
    return tiny_model(("image", "text")), {**batch, **classes(NUM_LABELS)}


# ---- one stream ----


@tiny("ViltForQuestionAnswering")
def _vilt() -> Any:
    config = tf.ViltConfig(**BERT, image_size=16, patch_size=8, num_labels=CLASSES)
    batch = {**text(), **image(), "pixel_mask": torch.ones(B, 16, 16, dtype=torch.long)}
    return tf.ViltForQuestionAnswering(config), {**batch, "labels": torch.rand(B, CLASSES)}


@tiny("ViltForImagesAndTextClassification")
def _vilt_nlvr() -> Any:
    config = tf.ViltConfig(**BERT, image_size=16, patch_size=8, num_labels=2, num_images=2, modality_type_vocab_size=3)
    return tf.ViltForImagesAndTextClassification(config), {**text(), **image(16, 2), **classes(2)}


def _visual_bert(number: int) -> tuple[tf.VisualBertConfig, dict[str, Any]]:
    batch = {
        **text(),
        "visual_embeds": torch.randn(B, 5, 10),
        "visual_attention_mask": torch.ones(B, 5),
        "visual_token_type_ids": torch.ones(B, 5, dtype=torch.long),
    }
    return tf.VisualBertConfig(**BERT, visual_embedding_dim=10, num_labels=number), batch


@tiny("VisualBertForVisualReasoning")
def _visual_bert_nlvr() -> Any:
    config, batch = _visual_bert(2)
    return tf.VisualBertForVisualReasoning(config), {**batch, **classes(2)}


@tiny("VisualBertForQuestionAnswering")
def _visual_bert_vqa() -> Any:
    config, batch = _visual_bert(CLASSES)
    return tf.VisualBertForQuestionAnswering(config), {**batch, "labels": torch.rand(B, CLASSES).softmax(-1)}


def _page(labels: int = CLASSES) -> tuple[tf.LayoutLMv3Config, dict[str, torch.Tensor]]:
    sizes = {"coordinate_size": 3, "shape_size": 2, "max_2d_position_embeddings": 64}
    config = tf.LayoutLMv3Config(**BERT, **sizes, input_size=16, patch_size=8, num_labels=labels)
    corner = torch.randint(0, 30, (B, L, 2))
    return config, {**text(), "bbox": torch.cat([corner, corner + 5], -1), **image()}


@tiny("LayoutLMv3ForSequenceClassification")
def _layoutlmv3() -> Any:
    config, batch = _page()
    return tf.LayoutLMv3ForSequenceClassification(config), {**batch, **classes()}


@tiny("LayoutLMv3ForTokenClassification")
def _layoutlmv3_tokens() -> Any:
    config, batch = _page()
    return tf.LayoutLMv3ForTokenClassification(config), {**batch, "labels": torch.randint(CLASSES, (B, L))}


@tiny("LayoutLMv3ForQuestionAnswering")
def _layoutlmv3_answers() -> Any:
    config, batch = _page(2)
    places = {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([2, 3, 4])}
    return tf.LayoutLMv3ForQuestionAnswering(config), {**batch, **places}


@tiny("TvpForVideoGrounding")
def _tvp() -> Any:
    resnet = tf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"], hidden_act="relu"
    )
    config = tf.TvpConfig(
        **BERT, backbone_config=resnet, max_img_size=16, visual_prompt_size=4, num_frames=2, type_vocab_size=2
    )
    rows = {name: value[:1] for name, value in {**text(), **image(16, 2)}.items()}  # upstream works at one row only
    labels = (torch.tensor([10.0]), torch.tensor([0.2]), torch.tensor([0.7]))
    return tf.TvpForVideoGrounding(config), {**rows, "labels": labels}


# ---- features among the tokens of a language model ----


def _bidirectional_vlm(kind: str) -> Any:
    config = getattr(tf, f"{kind}Config")(
        text_config={
            **TEXT,
            "local_attention": 8,
            "global_attn_every_n_layers": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
        vision_config=VISION,
        image_token_id=60,
        pixel_shuffle_factor=2,
        num_labels=CLASSES,
    )
    return config, {**with_places(60, 1), **image(16, 1), **classes()}


@tiny("ModernVBertForSequenceClassification")
def _modernvbert() -> Any:
    config, batch = _bidirectional_vlm("ModernVBert")
    return tf.ModernVBertForSequenceClassification(config), batch


@tiny("UltraVBertForSequenceClassification")
def _ultravbert() -> Any:
    config, batch = _bidirectional_vlm("UltraVBert")
    return tf.UltraVBertForSequenceClassification(config), batch


@tiny("Gemma3ForSequenceClassification")
def _gemma3() -> Any:
    config = tf.Gemma3Config(
        text_config={**GEMMA, "model_type": "gemma3_text"},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_id=60,
        image_token_index=60,
        boi_token_index=61,
        eoi_token_index=62,
        num_labels=CLASSES,
        **SPECIAL,
    )
    batch = {**with_places(60, 4), **image(), **classes()}
    batch["token_type_ids"] = (batch["input_ids"] == 60).long()
    return tf.Gemma3ForSequenceClassification(config), batch


@tiny("T5Gemma2ForSequenceClassification")
def _t5gemma2() -> Any:
    config = tf.T5Gemma2Config(
        encoder={
            "text_config": GEMMA,
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": 60,
            "boi_token_index": 61,
            "eoi_token_index": 62,
        },
        decoder=GEMMA,
        image_token_index=60,
        eoi_token_index=62,
        num_labels=CLASSES,
        **SPECIAL,
    )
    return tf.T5Gemma2ForSequenceClassification(config), {**with_places(60, 4), **image(), **classes()}


@tiny("LlavaForConditionalGeneration")
def _llava() -> Any:
    config = tf.LlavaConfig(
        text_config=LLAMA, vision_config={**VISION, "model_type": "clip_vision_model"}, image_token_id=60
    )
    return tf.LlavaForConditionalGeneration(config), {**answers(with_places(60, 4)), **image()}


def _tiles() -> dict[str, torch.Tensor]:
    """Each image whole and as one tile: 4 places, and 2 rows of 2 places with a line break."""
    return {**answers(with_places(60, 10)), **image(16, 2), "image_sizes": torch.full((B, 2), 16)}


@tiny("LlavaNextForConditionalGeneration")
def _llava_next() -> Any:
    config = tf.LlavaNextConfig(
        text_config=LLAMA,
        vision_config={**VISION, "model_type": "clip_vision_model"},
        image_token_id=60,
        image_token_index=60,
        image_grid_pinpoints=[[16, 16]],
    )
    return tf.LlavaNextForConditionalGeneration(config), _tiles()


@tiny("LlavaOnevisionForConditionalGeneration")
def _llava_onevision() -> Any:
    config = tf.LlavaOnevisionConfig(
        text_config={**LLAMA, "model_type": "qwen2"},
        vision_config={**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_id=60,
        image_token_index=60,
        video_token_id=61,
        video_token_index=61,
        image_grid_pinpoints=[[16, 16]],
    )
    return tf.LlavaOnevisionForConditionalGeneration(config), _tiles()


@tiny("VisualBertForMultipleChoice")
def _visual_bert_choices() -> Any:
    config, batch = _visual_bert(CLASSES)
    choices = {name: value[:, None].expand(B, 2, *value.shape[1:]).clone() for name, value in batch.items()}
    choices["input_ids"] = torch.randint(5, 50, choices["input_ids"].shape)
    return tf.VisualBertForMultipleChoice(config), {**choices, **classes(2)}


@tiny("SmolVLMForConditionalGeneration")
def _smolvlm() -> Any:
    config = tf.SmolVLMConfig(text_config=LLAMA, vision_config=VISION, image_token_id=60, scale_factor=2, **SPECIAL)
    return tf.SmolVLMForConditionalGeneration(config), {**answers(with_places(60, 1)), **image(16, 1)}


@tiny("Idefics2ForConditionalGeneration")
def _idefics2() -> Any:
    perceiver = {
        "hidden_size": 16,
        "resampler_n_latents": 3,
        "resampler_depth": 1,
        "resampler_n_heads": 2,
        "resampler_head_dim": 8,
        "num_key_value_heads": 1,
    }
    config = tf.Idefics2Config(
        text_config=LLAMA, vision_config=VISION, perceiver_config=perceiver, image_token_id=60, **SPECIAL
    )
    return tf.Idefics2ForConditionalGeneration(config), {**answers(with_places(60, 3)), **image(16, 1)}


@tiny("Qwen2AudioForConditionalGeneration")
def _qwen2_audio() -> Any:
    audio = {
        "num_mel_bins": 8,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "d_model": 16,
        "max_source_positions": 8,
    }
    config = tf.Qwen2AudioConfig(
        audio_config=audio, text_config={**LLAMA, "model_type": "qwen2"}, audio_token_index=60
    )
    mask = torch.ones(B, 16, dtype=torch.long)
    batch = answers(with_places(60, 4))
    return (
        tf.Qwen2AudioForConditionalGeneration(config),
        {**batch, "input_features": torch.randn(B, 8, 16), "feature_attention_mask": mask},
    )


@tiny("GitForCausalLM")
def _git() -> Any:
    config = tf.GitConfig(**BERT, vision_config=VISION)
    return tf.GitForCausalLM(config), {**answers(text()), **image()}


@tiny("Blip2ForConditionalGeneration")
def _blip2() -> Any:
    return tf.Blip2ForConditionalGeneration(_blip2_config(tf.Blip2Config)), {**answers(with_places(60, 3)), **image()}


@tiny("Blip2ForImageTextRetrieval+CE")
def _blip2_itm() -> Any:
    config = _blip2_config(tf.Blip2Config, use_qformer_text_input=True)
    model = WithHead(
        tf.Blip2ForImageTextRetrieval(config), lambda out: out.logits_per_image, 2, use_image_text_matching_head=True
    )
    return model, {**text(), **image(), **classes()}


@tiny("InstructBlipForConditionalGeneration")
def _instructblip() -> Any:
    batch = {**answers(with_places(60, 3)), **image()}
    batch |= {f"qformer_{name}": value for name, value in text().items()}
    return tf.InstructBlipForConditionalGeneration(_blip2_config(tf.InstructBlipConfig)), batch


def _blip2_config(kind: Any, **qformer: Any) -> Any:
    opt = {
        **BERT,
        "model_type": "opt",
        "ffn_dim": 32,
        "word_embed_proj_dim": 16,
        "dropout": 0.0,
        "do_layer_norm_before": True,
    }
    return kind(
        vision_config=VISION,
        qformer_config={**BERT, "encoder_hidden_size": 16, "cross_attention_frequency": 2, **qformer},
        text_config=opt,
        num_query_tokens=3,
        image_text_hidden_size=8,
        image_token_index=60,
        image_token_id=60,
    )


# ---- cross-attention inside the language model ----


def _blip_config() -> tf.BlipConfig:
    text_config = {**BERT, "encoder_hidden_size": 16, "projection_dim": 16, "sep_token_id": 2}
    return tf.BlipConfig(text_config=text_config, vision_config=VISION, projection_dim=16, image_text_hidden_size=8)


@tiny("BlipForQuestionAnswering")
def _blip_vqa() -> Any:
    return tf.BlipForQuestionAnswering(_blip_config()), {**text(), **image(), "labels": ids(4)}


@tiny("BlipForImageTextRetrieval+CE")
def _blip_itm() -> Any:
    model = WithHead(tf.BlipForImageTextRetrieval(_blip_config()), lambda out: out.itm_score, 2, use_itm_head=True)
    return model, {**text(), **image(), **classes()}


@tiny("BlipForConditionalGeneration")
def _blip_captions() -> Any:
    return tf.BlipForConditionalGeneration(_blip_config()), {**answers(text(), 3), **image()}


@tiny("MllamaForConditionalGeneration")
def _mllama() -> Any:
    config = tf.MllamaConfig(
        text_config={
            **LLAMA,
            "model_type": "mllama_text_model",
            "num_hidden_layers": 4,
            "cross_attention_layers": [1, 2],
        },
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_global_layers": 1,
            "attention_heads": 2,
            "intermediate_size": 32,
            "vision_output_dim": 32,
            "image_size": 16,
            "patch_size": 8,
            "max_num_tiles": 1,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1]],
        },
        image_token_index=60,
    )
    batch = answers(with_places(60, 1))
    crossing = torch.ones(B, batch["input_ids"].shape[1], 1, 1, dtype=torch.long)
    return (
        tf.MllamaForConditionalGeneration(config),
        {
            **batch,
            **image(16, 1, 1),
            "aspect_ratio_ids": torch.ones(B, 1, dtype=torch.long),
            "aspect_ratio_mask": torch.ones(B, 1, 1, dtype=torch.long),
            "cross_attention_mask": crossing,
        },
    )


@tiny("IdeficsForVisionText2Text")
def _idefics() -> Any:
    vision = {**VISION, "embed_dim": 16, "dropout": 0.0}
    config = tf.IdeficsConfig(
        **{key: value for key, value in TEXT.items() if key != "max_position_embeddings"},
        vision_config=vision,
        freeze_text_layers=False,
        freeze_vision_layers=False,
        alpha_type="vector",
    )
    batch = {**answers(text()), **image(16, 1), "image_attention_mask": torch.ones(B, L, 1, dtype=torch.long)}
    return tf.IdeficsForVisionText2Text(config), batch


# ---- an encoder, and a decoder that writes ----


@tiny("Florence2ForConditionalGeneration")
def _florence2() -> Any:
    vision = {
        "depths": (1, 1),
        "embed_dim": (8, 16),
        "num_heads": (2, 2),
        "num_groups": (2, 2),
        "patch_size": (7, 3),
        "patch_stride": (4, 2),
        "patch_padding": (3, 1),
        "patch_prenorm": (False, True),
        "window_size": 2,
        "drop_path_rate": 0.0,
        "projection_dim": 16,
    }
    config = tf.Florence2Config(text_config={**BART, "model_type": "bart"}, vision_config=vision, image_token_id=60)
    return tf.Florence2ForConditionalGeneration(config), {**with_places(60, 5), **image(), "labels": ids(4)}


@tiny("WhisperForConditionalGeneration")
def _whisper() -> Any:
    sizes = {key: value for key, value in BART.items() if key != "max_position_embeddings"}
    config = tf.WhisperConfig(**sizes, num_mel_bins=8, max_source_positions=8, max_target_positions=16)
    return (
        tf.WhisperForConditionalGeneration(config),
        {"input_features": torch.randn(B, 8, 16), "labels": ids(4)},
    )


@tiny("VisionEncoderDecoderModel")
def _vision_encoder_decoder() -> Any:
    decoder = tf.BertConfig(**BERT, is_decoder=True, add_cross_attention=True)
    model = tf.VisionEncoderDecoderModel(
        encoder=tf.ViTModel(tf.ViTConfig(**VISION, **NO_DROPOUT), add_pooling_layer=False),
        decoder=tf.BertLMHeadModel(decoder),
    )
    model.config.decoder_start_token_id, model.config.pad_token_id = 1, 0
    return model, {**image(), "labels": ids(4)}


@tiny("SpeechEncoderDecoderModel")
def _speech_encoder_decoder() -> Any:
    from tests.tiny import SPEECH

    decoder = tf.BertConfig(**BERT, is_decoder=True, add_cross_attention=True)
    encoder = tf.Wav2Vec2Model(tf.Wav2Vec2Config(**SPEECH))
    model = tf.SpeechEncoderDecoderModel(encoder=encoder, decoder=tf.BertLMHeadModel(decoder))
    model.config.decoder_start_token_id, model.config.pad_token_id = 1, 0
    return model, {"input_values": torch.randn(B, 400), "labels": ids(4)}


@tiny("SpeechT5ForSpeechToText")
def _speecht5() -> Any:
    sizes = {
        "hidden_size": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 32,
        "conv_dim": (16, 16),
        "conv_stride": (4, 4),
        "conv_kernel": (8, 4),
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
        "mask_time_prob": 0.0,
    }
    dropouts = ("hidden_dropout", "attention_dropout", "activation_dropout", "positional_dropout", "feat_proj_dropout")
    config = tf.SpeechT5Config(
        **sizes,
        **SPECIAL,
        **dict.fromkeys(dropouts, 0.0),
        vocab_size=VOCAB,
        encoder_layerdrop=0.0,
        decoder_start_token_id=1,
    )
    return tf.SpeechT5ForSpeechToText(config), {"input_values": torch.randn(B, 400), "labels": ids(4)}


@tiny("UdopForConditionalGeneration")
def _udop() -> Any:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "max_2d_position_embeddings": 64}
    config = tf.UdopConfig(
        **sizes,
        **SPECIAL,
        vocab_size=VOCAB,
        image_size=16,
        patch_size=8,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        relative_bias_args=[{"type": "1d"}, {"type": "horizontal"}, {"type": "vertical"}],
    )
    corner = torch.rand(B, L, 2) * 0.5
    batch = {**text(), "bbox": torch.cat([corner, corner + 0.3], -1), **image(), "labels": ids(4)}
    return tf.UdopForConditionalGeneration(config), batch


# ---- towers that meet in a contrastive loss only ----


@tiny("CLIPModel")
def _clip() -> Any:
    config = tf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    return tf.CLIPModel(config), {**text(), **image(), "return_loss": True}


@tiny("SiglipModel")
def _siglip() -> Any:
    config = tf.SiglipConfig(text_config={**TEXT, "max_position_embeddings": L}, vision_config=VISION)
    return tf.SiglipModel(config), {**text(), **image(), "return_loss": True}


@tiny("ClapModel")
def _clap() -> Any:
    audio = {
        "hidden_size": 16,
        "patch_embeds_hidden_size": 8,
        "depths": (1, 1),
        "num_attention_heads": (2, 2),
        "window_size": 2,
        "num_mel_bins": 8,
        "spec_size": 16,
        "patch_size": 2,
        "patch_stride": (2, 2),
        "num_hidden_layers": 2,
        "hidden_dropout_prob": 0.0,
    }
    config = tf.ClapConfig(text_config=BERT, audio_config=audio, projection_dim=16)
    batch = {**text(), "input_features": torch.randn(B, 1, 32, 8), "return_loss": True}
    return tf.ClapModel(config), batch


# ---- further rows of the table ----


@tiny("Idefics3ForConditionalGeneration")
def _idefics3() -> Any:
    config = tf.Idefics3Config(text_config=LLAMA, vision_config=VISION, image_token_id=60, scale_factor=2, **SPECIAL)
    return tf.Idefics3ForConditionalGeneration(config), {**answers(with_places(60, 1)), **image(16, 1)}


@tiny("Gemma3ForConditionalGeneration")
def _gemma3_generation() -> Any:
    config = tf.Gemma3Config(
        text_config={**GEMMA, "model_type": "gemma3_text"},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=61,
        eoi_token_index=62,
        **SPECIAL,
    )
    batch = {**answers(with_places(60, 4)), **image()}
    return tf.Gemma3ForConditionalGeneration(config), {
        **batch,
        "token_type_ids": (batch["input_ids"] == 60).long(),
    }


@tiny("PaliGemmaForConditionalGeneration")
def _paligemma() -> Any:
    config = tf.PaliGemmaConfig(
        text_config={**LLAMA, "model_type": "gemma"},
        vision_config={**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_index=60,
        projection_dim=16,
        **SPECIAL,
    )
    batch = {**answers(with_places(60, 4)), **image()}
    suffix = (batch["labels"] != -100).long()
    return tf.PaliGemmaForConditionalGeneration(config), {**batch, "token_type_ids": suffix}


@tiny("BlipForImageTextMatching")
def _blip_matching() -> Any:
    from hf_dgl.models import BlipForImageTextMatching

    return BlipForImageTextMatching(_blip_config()), {**text(), **image(), **classes(2)}


@tiny("Blip2ForImageTextMatching")
def _blip2_matching() -> Any:
    from hf_dgl.models import Blip2ForImageTextMatching

    config = _blip2_config(tf.Blip2Config, use_qformer_text_input=True)
    batch = text()
    queries = torch.full((B, 3), 60)  # one placeholder per query, as its processor puts them
    batch["input_ids"] = torch.cat([queries, batch["input_ids"]], 1)
    batch["attention_mask"] = torch.cat([torch.ones_like(queries), batch["attention_mask"]], 1)
    return Blip2ForImageTextMatching(config), {**batch, **image(), **classes(2)}
