"""An encoder that reads features among text, and a decoder that answers: T5Gemma 2, Florence-2."""

from __future__ import annotations

from typing import Any

import torch

from hf_dgl.method.absence import Call, Hide, closed, empty_text, image_tokens, other_text, text_tokens
from hf_dgl.method.modalities import Modality

from .architecture import Architecture
from .sequence import EMPTY, READ_FROM_TEXT, among_text, first_token_id, gone, image_token_id


def _t5gemma2(config: Any) -> dict[str, Modality]:
    """The decoder reads the encoder's text once more, so its embeddings are the text's too."""
    place = image_token_id(config)
    tokens = text_tokens(place)
    encoder = "model.encoder"
    return {
        "image": Modality(
            inputs=["pixel_values"],
            encoder=[f"{encoder}.vision_tower", f"{encoder}.multi_modal_projector"],
            absent="omit",
            hide=_decoder_reads_what_is_left(closed(image_tokens(place), omit=("pixel_values",))),
        ),
        "text": Modality(
            inputs=["input_ids"],
            encoder=[f"{encoder}.text_model.embed_tokens", "model.decoder.embed_tokens"],
            absent="omit",
            hide=_decoder_reads_what_is_left(empty_text(tokens, first_token_id(config))),
            vary=other_text(tokens),
        ),
    }


def _t5gemma2_writes(config: Any) -> dict[str, Modality]:
    """Its decoder reads the answer alone, and its embeddings are tied to the encoder's."""
    encoder = "model.encoder"
    image = [f"{encoder}.vision_tower", f"{encoder}.multi_modal_projector"]
    tables = [f"{encoder}.text_model.embed_tokens"]
    return dict(among_text({"image": image}, tables, prompted=False)(config))


def _decoder_reads_what_is_left(hide: Hide) -> Hide:
    """Closes the same tokens in the decoder, whose input is the encoder's, one place to the right."""

    def hide_in_both(call: Call) -> Call:
        call = hide(call)
        mask = call["attention_mask"]
        call["decoder_attention_mask"] = torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], dim=1)
        return call

    return hide_in_both


def _florence2(config: Any) -> dict[str, Modality]:
    """Encoder and decoder share one embedding table; the answer is in the decoder alone."""
    declare = among_text(
        {"image": ["model.vision_tower", "model.multi_modal_projector"]}, "model.language_model.shared", prompted=False
    )
    return dict(declare(config))


ROWS: dict[str, Architecture] = {
    "T5Gemma2ForSequenceClassification": Architecture(
        {"embeddings": _t5gemma2}, f"{gone('image')} {EMPTY}", ("image", "text"), **READ_FROM_TEXT
    ),
    "T5Gemma2ForTokenClassification": Architecture({"embeddings": _t5gemma2}, f"{gone('image')} {EMPTY}"),
    "T5Gemma2ForConditionalGeneration": Architecture({"embeddings": _t5gemma2_writes}, f"{gone('image')} {EMPTY}"),
    "Florence2ForConditionalGeneration": Architecture({"embeddings": _florence2}, absent=f"{gone('image')} {EMPTY}"),
}
