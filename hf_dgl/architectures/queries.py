"""Features in front of a text, most of them through query tokens of a Q-Former: BLIP-2, InstructBLIP, GIT, Kosmos."""

from __future__ import annotations

from typing import Any

import torch

from hf_dgl.method.absence import (
    Call,
    Tokens,
    closed,
    empty_text,
    framed,
    image_tokens,
    in_turn,
    no_tokens,
    other_text,
    other_words,
    prompt_tokens,
    text_tokens,
)
from hf_dgl.method.modalities import Modality

from .architecture import Architecture
from .sequence import ANSWER_NOTE, NO_PROMPT, among_text, first_token_id, gone, image_token_id, text_modality, written


def _git(config: Any) -> dict[str, Modality]:
    """The image stands before the text without placeholders, and the loss counts on its tokens being there."""
    return {
        "image": Modality(inputs=["pixel_values"], encoder=["git.image_encoder", "git.visual_projection"]),
        "text": text_modality(config, ["git.embeddings"], prompt_tokens()),
    }


def _blip2(config: Any) -> dict[str, Modality]:
    """The Q-Former sees no text: all of it is the image's."""
    place = image_token_id(config)
    return {
        "image": Modality(
            inputs=["pixel_values"],
            encoder=["vision_model", "qformer", "language_projection"],
            parameters=[r"(^|\.)query_tokens$"],
            hide=closed(image_tokens(place)),
        ),
        "text": text_modality(config, [_table(config)], _prompt(config)),
    }


def _instructblip(config: Any) -> dict[str, Modality]:
    """The Q-Former sees the text, so it is fusion, and its own table of words is the text's."""
    tokens = _prompt(config)
    return {
        "image": Modality(
            inputs=["pixel_values"],
            encoder=["vision_model"],
            silent=["qformer.encoder.layer.*.crossattention.output.dense"],
        ),
        "text": Modality(
            inputs=["input_ids", "qformer_input_ids"],
            encoder=[
                _table(config),
                "qformer.embeddings.word_embeddings",
                "qformer.embeddings.position_embeddings",
            ],
            absent="omit",
            hide=in_turn(
                no_tokens("qformer_input_ids", "qformer_attention_mask"), empty_text(tokens, first_token_id(config))
            ),
            vary=in_turn(other_text(tokens), other_words("qformer_input_ids")),
        ),
    }


_PROJECTED = {"image": ("vision_model", "image_to_text_projection")}
_WORDS = "text_model.model.embed_tokens"


def _pictured(call: Call) -> torch.Tensor:
    """Kosmos: an argument tells where the image's query tokens are put, between `<image>` and `</image>`."""
    places: torch.Tensor = call["image_embeds_position_mask"] == 1
    return places


_KOSMOS2 = among_text(_PROJECTED, _WORDS, places=framed(_pictured), demanded=("image",))
_KOSMOS2_5 = among_text(_PROJECTED, _WORDS, places=framed(_pictured))


def _table(config: Any) -> str:
    """The token embeddings of the language model: T5, or a decoder such as OPT and Vicuna."""
    if not config.use_decoder_only_language_model:
        return "language_model.shared"
    return f"language_model.model.{'decoder.' if config.text_config.model_type == 'opt' else ''}embed_tokens"


def _prompt(config: Any) -> Tokens:
    """The text that is read: T5 writes the answer elsewhere, so `labels` say nothing of its places."""
    tokens = prompt_tokens if config.use_decoder_only_language_model else text_tokens
    return tokens(image_token_id(config))


ROWS: dict[str, Architecture] = {
    "GitForCausalLM": Architecture(
        {"embeddings": _git},
        absent=f"No image: its tokens are zero, and still attended. {NO_PROMPT}",
        method="multimodal_truncation",
        note="The model cannot leave the image's tokens out, so the fusion learns from the unimodal losses too. "
        + ANSWER_NOTE,
    ),
    "Blip2ForConditionalGeneration": written(_blip2, "No image: the query tokens' positions are closed to attention."),
    "Blip2Model": written(_blip2, "No image: the query tokens' positions are closed to attention."),
    "InstructBlipForConditionalGeneration": written(
        _instructblip, "No image: the Q-Former does not attend to it, its query tokens read the text alone."
    ),
    "InstructBlipVideoForConditionalGeneration": written(
        _instructblip, "No video: the Q-Former does not attend to it, its query tokens read the text alone."
    ),
    "Kosmos2ForConditionalGeneration": written(_KOSMOS2, "No image: its query tokens are closed to attention."),
    "Kosmos2_5ForConditionalGeneration": written(_KOSMOS2_5, gone("image")),
}
