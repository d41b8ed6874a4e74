"""Tiny models of classes that `auto` meets and the table has no builder for: hard cases, and rightly refused ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import nn

from tests.architectures_tiny import BERT, CLASSES, LLAMA, TEXT, VISION, B, L, answers, ids, image, text, with_places

FURTHER: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {}


def further(build: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> Any:
    """Registers a builder under the class of its model; seeded, perturbed, in eval mode."""

    def seeded() -> tuple[nn.Module, dict[str, Any]]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, batch = build()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
        return model.float().eval(), batch

    FURTHER[build.__name__] = seeded
    return build


@further
def GroundingDinoForObjectDetection() -> Any:
    """Classes beyond a text's length have the logit -inf."""
    return _grounding_dino("GroundingDino")


@further
def MMGroundingDinoForObjectDetection() -> Any:
    return _grounding_dino("MMGroundingDino")


def _grounding_dino(kind: str) -> Any:
    swin = {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2], "window_size": 2}
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2}
    config = getattr(tf, f"{kind}Config")(
        backbone_config=tf.SwinConfig(**swin, drop_path_rate=0.0, out_features=["stage2", "stage3", "stage4"]),
        text_config={**BERT, "model_type": "bert", "vocab_size": 1100},
        **sizes,
        **{"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 5},
        **{"max_text_len": 8, "dropout": 0.0, "fusion_droppath": 0.0, "disable_custom_kernels": True},
    )
    tokens = torch.tensor([[101, 5, 6, 1012, 7, 1012, 102]]).repeat(B, 1)
    tokens[1, 1], tokens[2, 4] = 8, 9
    labels = [{"class_labels": torch.tensor([i % 2]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.2]])} for i in range(B)]
    batch = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "token_type_ids": torch.zeros_like(tokens),
    }
    return getattr(tf, f"{kind}ForObjectDetection")(config), {**batch, **image(64), "labels": labels}


@further
def Phi4MultimodalForCausalLM() -> Any:
    """The ids of its places stand in its sub-configs."""
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    audio = {**vision, "num_blocks": 2, "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16}
    config = tf.Phi4MultimodalConfig(
        **{key: value for key, value in LLAMA.items() if key != "model_type"},
        vision_config={**vision, "image_size": 28, "patch_size": 7, "crop_size": 28, "image_token_id": 60},
        audio_config={**audio, "input_size": 8, "nemo_conv_channels": 16, "nemo_final_size": 1, "audio_token_id": 61},
    )
    batch = with_places(60, 13)
    sounds = torch.full((B, 2), 61)
    ids_ = torch.cat([batch["input_ids"][:, :14], sounds, batch["input_ids"][:, 14:]], 1)
    batch = {"input_ids": ids_, "attention_mask": (ids_ != 0).long()}
    pictures = {
        "image_pixel_values": torch.randn(B, 2, 3, 28, 28),
        "image_sizes": torch.full((B, 2), 28),
        "image_attention_mask": torch.ones(B, 2, 4, 4),
    }
    sounds_ = {
        "audio_input_features": torch.randn(B, 16, 8),
        "audio_embed_sizes": torch.full((B,), 2),
        "audio_attention_mask": torch.ones(B, 16, dtype=torch.bool),
    }
    return tf.Phi4MultimodalForCausalLM(config), {**answers(batch), **pictures, **sounds_}


@further
def Kosmos2ForConditionalGeneration() -> Any:
    return tf.Kosmos2ForConditionalGeneration(_kosmos("Kosmos2Config")), {**_image_first(4), **image()}


@further
def Kosmos2_5ForConditionalGeneration() -> Any:
    """Patches that carry their row and column, and a table of segments for the whole sequence."""
    patches = torch.randn(B, 4, 2 + 768)
    patches[..., 0], patches[..., 1] = torch.tensor([1, 1, 2, 2]), torch.tensor([1, 2, 1, 2])
    batch = {**_image_first(3), "flattened_patches": patches}
    return tf.Kosmos2_5ForConditionalGeneration(_kosmos("Kosmos2_5Config")), batch


def _kosmos(kind: str) -> Any:
    text_config = {"embed_dim": 16, "layers": 2, "ffn_dim": 32, "attention_heads": 2, "vocab_size": 64}
    sizes = {**VISION, "head_dim": 8, "max_num_patches": 8, "dropout_rate": 0.0}
    dropouts = {"dropout": 0.0, "attention_dropout": 0.0, "max_position_embeddings": 64}
    latent = 4 if kind == "Kosmos2Config" else 3
    return getattr(tf, kind)(text_config={**text_config, **dropouts}, vision_config=sizes, latent_query_num=latent)


def _image_first(count: int) -> dict[str, torch.Tensor]:
    batch = answers(with_places(5, count))
    places = torch.zeros_like(batch["input_ids"])
    places[:, 1 : count + 1] = 1
    return {**batch, "image_embeds_position_mask": places}


@further
def FuyuForCausalLM() -> Any:
    """The image is patches and one linear layer."""
    config = tf.FuyuConfig(
        text_config={**TEXT, "model_type": "persimmon", "hidden_dropout": 0.0}, patch_size=4, image_token_id=60
    )
    batch = answers(with_places(60, 3))
    return tf.FuyuForCausalLM(config), {**batch, "pixel_values": torch.randn(B, 3, 48)}


@further
def LxmertForPreTraining() -> Any:
    """Words are masked, answers predicted and matches judged at once."""
    sizes = {key: value for key, value in BERT.items() if key != "num_hidden_layers"}
    config = tf.LxmertConfig(
        **sizes, l_layers=1, x_layers=1, r_layers=1, visual_feat_dim=10, num_qa_labels=CLASSES, task_obj_predict=False
    )
    regions = {"visual_feats": torch.randn(B, 5, 10), "visual_pos": torch.rand(B, 5, 4)}
    predicted = {"labels": ids(), "matched_label": torch.tensor([0, 1, 1]), "ans": torch.tensor([1, 2, 3])}
    return tf.LxmertForPreTraining(config), {**text(), **regions, **predicted}


@further
def VisualBertForPreTraining() -> Any:
    batch = {**text(), "visual_embeds": torch.randn(B, 5, 10), "visual_attention_mask": torch.ones(B, 5)}
    labels = torch.cat([ids(), torch.full((B, 5), -100)], 1)
    config = tf.VisualBertConfig(**BERT, visual_embedding_dim=10)
    return tf.VisualBertForPreTraining(config), {**batch, "labels": labels}


@further
def ChameleonForConditionalGeneration() -> Any:
    """Words and the codes of its images have one table."""
    vq = {"embed_dim": 16, "num_embeddings": 3, "latent_channels": 16, "resolution": 16, "base_channels": 32}
    names = {f"IMGIMG{code}Z": 61 + number for number, code in enumerate("ABC")}
    config = tf.ChameleonConfig(
        **{key: value for key, value in LLAMA.items() if key != "model_type"},
        vq_config={**vq, "channel_multiplier": [1, 1], "num_res_blocks": 1, "attn_resolutions": []},
        vocabulary_map={"<image>": 60, **names},
    )
    return tf.ChameleonForConditionalGeneration(config), {**answers(with_places(60, 64)), **image()}


@further
def LayoutLMv3ForTokenClassification() -> Any:
    labels = torch.randint(CLASSES, (B, L))
    return tf.LayoutLMv3ForTokenClassification(_layoutlmv3()), {**_page(), "labels": labels}


@further
def LayoutLMv3ForQuestionAnswering() -> Any:
    places = {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([2, 3, 4])}
    return tf.LayoutLMv3ForQuestionAnswering(_layoutlmv3(2)), {**_page(), **places}


def _layoutlmv3(labels: int = CLASSES) -> Any:
    sizes = {"coordinate_size": 3, "shape_size": 2, "max_2d_position_embeddings": 64}
    return tf.LayoutLMv3Config(**BERT, **sizes, input_size=16, patch_size=8, num_labels=labels)


def _page() -> dict[str, torch.Tensor]:
    corner = torch.randint(0, 30, (B, L, 2))
    return {**text(), "bbox": torch.cat([corner, corner + 5], -1), **image()}


@further
def ViltForMaskedLM() -> Any:
    """Draws the order of its patches in evaluation, too."""
    config = tf.ViltConfig(**BERT, image_size=16, patch_size=8)
    batch = {**text(), **image(), "pixel_mask": torch.ones(B, 16, 16, dtype=torch.long)}
    return tf.ViltForMaskedLM(config), {**batch, "labels": ids()}


@further
def ViltForTokenClassification() -> Any:
    config = tf.ViltConfig(**BERT, image_size=16, patch_size=8, num_labels=CLASSES)
    batch = {**text(), **image(), "pixel_mask": torch.ones(B, 16, 16, dtype=torch.long)}
    return tf.ViltForTokenClassification(config), {**batch, "labels": torch.randint(CLASSES, (B, L))}


@further
def T5Gemma2ForTokenClassification() -> Any:
    return _t5gemma2("TokenClassification", torch.randint(CLASSES, (B, L + 4)))


@further
def T5Gemma2ForConditionalGeneration() -> Any:
    return _t5gemma2("ConditionalGeneration", ids(4))


def _t5gemma2(head: str, labels: torch.Tensor) -> Any:
    from tests.architectures_tiny import GEMMA, SPECIAL

    places = {"image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62}
    encoder = {"text_config": GEMMA, "vision_config": VISION, "mm_tokens_per_image": 4, **places}
    config = tf.T5Gemma2Config(
        encoder=encoder, decoder=GEMMA, image_token_index=60, eoi_token_index=62, num_labels=CLASSES, **SPECIAL
    )
    return getattr(tf, f"T5Gemma2For{head}")(config), {**with_places(60, 4), **image(), "labels": labels}
