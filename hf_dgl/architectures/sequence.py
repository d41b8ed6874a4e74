"""Features put among the tokens of a language model, which is the fusion.

The text is the embedding table, the image (or sound) its tower and the projection into the language model. An absent
image's positions are closed in the attention mask; of an absent text the first token is left, and it is `<bos>`.
"""

from __future__ import annotations

from typing import Any

import torch

from hf_dgl.method.absence import (
    Call,
    Hide,
    Tokens,
    closed,
    empty_text,
    image_tokens,
    in_turn,
    no_tokens,
    other_text,
    other_words,
    placeholders,
    prompt_tokens,
    text_tokens,
)
from hf_dgl.method.modalities import Modality

from .architecture import Architecture, Declare

VIDEO_INPUTS = ("pixel_values_videos", "image_sizes_videos")
IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "image_hidden_states")
AUDIO_INPUTS = ("input_features", "feature_attention_mask")


def first_token_id(config: Any) -> int:
    """The token that is left of an absent text: `<bos>`, or what comes nearest to it."""
    for part in (config, config.get_text_config()):
        for name in ("bos_token_id", "cls_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id"):
            token = getattr(part, name, None)
            if token is not None:
                return int(token[0] if isinstance(token, list) else token)
    return 0


def image_token_id(config: Any) -> int:
    """The placeholder of an image's (or a sound's) tokens in `input_ids`."""
    for name in ("image_token_id", "image_token_index", "audio_token_id", "audio_token_index"):
        token = getattr(config, name, None)
        if token is not None:
            return int(token)
    raise ValueError(
        f"The config of model_type {config.model_type!r} has no `image_token_id`, so the image's places in "
        "`input_ids` are not known. Set it, e.g. `config.image_token_id = processor.image_token_id`."
    )


def _places(config: Any) -> tuple[int, ...]:
    """The placeholders of all that is not text: an image's, and a video's where the model reads videos, too."""
    video = getattr(config, "video_token_id", None)
    return (image_token_id(config),) if video is None else (image_token_id(config), int(video))


def text_modality(config: Any, encoder: list[str], tokens: Tokens) -> Modality:
    """The text of a shared sequence: absent, it is the empty text."""
    return Modality(
        inputs=["input_ids"],
        encoder=encoder,
        absent="omit",
        hide=empty_text(tokens, first_token_id(config)),
        vary=other_text(tokens),
    )


def _among_text(
    modality: str,
    encoder: list[str],
    table: str,
    inputs: tuple[str, ...] = IMAGE_INPUTS,
    prompted: bool = False,
    parameters: tuple[str, ...] = (),
) -> Declare:
    """Features among the tokens of a text.

    Args:
        modality: Its name; the other one is `text`.
        encoder: Its tower and projection.
        table: The token embeddings.
        inputs: The arguments that carry it.
        prompted: Whether a part of the sequence is an answer, to be predicted token by token.
        parameters: Of the modality's, those beside its encoder.
    """

    def declare(config: Any) -> dict[str, Modality]:
        places = _places(config)
        tokens = prompt_tokens(*places) if prompted else text_tokens(*places)
        hide = closed(placeholders(*places), omit=inputs)
        return {
            modality: Modality(inputs=inputs, encoder=encoder, parameters=parameters, absent="omit", hide=hide),
            "text": text_modality(config, [table], tokens),
        }

    return declare


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
    declare = _among_text(
        "image", ["model.vision_tower", "model.multi_modal_projector"], "model.language_model.shared"
    )
    return dict(declare(config))


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
        "text": text_modality(config, [_table(config)], prompt_tokens(place)),
    }


def _instructblip(config: Any) -> dict[str, Modality]:
    """The Q-Former sees the text, so it is fusion, and its own table of words is the text's."""
    tokens = prompt_tokens(image_token_id(config))
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


def _table(config: Any) -> str:
    """The token embeddings of BLIP-2's language model: OPT (a decoder) or T5."""
    if getattr(config, "use_decoder_only_language_model", True):
        return "language_model.model.decoder.embed_tokens"
    return "language_model.shared"


_GONE = "No image: its positions are closed to attention, and the image is left out."
_EMPTY = "No text: the empty text, i.e. its first token alone, which is <bos>."
_NO_PROMPT = "No text: the empty prompt, i.e. <bos>; the answer's tokens stay, since they are what is predicted."
ANSWER_NOTE = (
    "Put -100 into `labels` for the prompt: what is not -100 is the answer, which stays when the text is absent. "
    "Without a prompt (captions) the image's own loss is therefore the multimodal one."
)


LEARNS_TO_WRITE = (
    "The fusion learns from the unimodal losses too (`multimodal_truncation`): with full DGL the loss of one modality "
    "alone stayed above chance level in our small trials of SmolVLM, BLIP-2, InstructBLIP, LLaVA-NeXT, Mllama and "
    "IDEFICS."
)


def _classifier(declare: Declare, **more: Any) -> Architecture:
    return Architecture({"embeddings": declare}, absent=f"{_GONE} {_EMPTY}", **more)


def _generative(declare: Declare, absent: str = f"{_GONE} {_NO_PROMPT}", **more: Any) -> Architecture:
    note = f"{LEARNS_TO_WRITE} {ANSWER_NOTE}"
    return Architecture({"embeddings": declare}, absent=absent, note=note, method="multimodal_truncation", **more)


# With full DGL, the loss of the image alone stayed above chance level: `tests/architectures/test_learns.py`.
_READ_FROM_TEXT = {
    "method": "multimodal_truncation",
    "note": "The answer is read from a text token only, so the fusion has to learn from the image alone, too.",
}
_TOWER = ["model.vision_tower", "model.multi_modal_projector"]
_CONNECTED = ["model.vision_model", "model.connector"]
_GEMMA = _among_text("image", _TOWER, "model.language_model.embed_tokens")
_LLAVA = _among_text("image", _TOWER, "model.language_model.embed_tokens", prompted=True)
_TILES = ("pixel_values", "image_sizes", "batch_num_images")
_NEWLINE = (r"model\.image_newline$",)  # a learned line break between tiles, put in behind the projection
_LLAVA_NEXT = _among_text(
    "image", _TOWER, "model.language_model.embed_tokens", inputs=_TILES, prompted=True, parameters=_NEWLINE
)
_ONEVISION = _among_text(
    "image",
    _TOWER,
    "model.language_model.embed_tokens",
    inputs=(*_TILES, *VIDEO_INPUTS),
    prompted=True,
    parameters=_NEWLINE,
)
_IDEFICS = _among_text("image", _CONNECTED, "model.text_model.embed_tokens", prompted=True)

ROWS: dict[str, Architecture] = {
    "ModernVBertForSequenceClassification": _classifier(
        _among_text("image", _CONNECTED, "model.text_model.embeddings.tok_embeddings"),
        note="All-zero `pixel_values` are dropped as padding by the model.",
    ),
    "UltraVBertForSequenceClassification": _classifier(
        _among_text("image", _CONNECTED, "model.text_model.embed_tokens"),
        note="All-zero `pixel_values` are dropped as padding by the model.",
    ),
    "Gemma3ForSequenceClassification": _classifier(_GEMMA, **_READ_FROM_TEXT),
    "T5Gemma2ForSequenceClassification": _classifier(_t5gemma2, **_READ_FROM_TEXT),
    "LlavaForConditionalGeneration": _generative(_LLAVA),
    "LlavaNextForConditionalGeneration": _generative(_LLAVA_NEXT),
    "LlavaOnevisionForConditionalGeneration": _generative(
        _ONEVISION,
        absent=f"No image: its positions are closed to attention, and it is left out; a video counts as image. "
        f"{_NO_PROMPT}",
    ),
    "Gemma3ForConditionalGeneration": _generative(_LLAVA),
    "PaliGemmaForConditionalGeneration": _generative(_LLAVA),
    "SmolVLMForConditionalGeneration": _generative(_IDEFICS),
    "Idefics2ForConditionalGeneration": _generative(_IDEFICS),
    "Idefics3ForConditionalGeneration": _generative(_IDEFICS),
    "Qwen2AudioForConditionalGeneration": _generative(
        _among_text(
            "audio",
            ["model.audio_tower", "model.multi_modal_projector"],
            "model.language_model.embed_tokens",
            inputs=AUDIO_INPUTS,
            prompted=True,
        ),
        absent=f"No audio: its positions are closed to attention, and the audio is left out. {_NO_PROMPT}",
    ),
    "Florence2ForConditionalGeneration": Architecture({"embeddings": _florence2}, absent=f"{_GONE} {_EMPTY}"),
    "GitForCausalLM": Architecture(
        {"embeddings": _git},
        absent=f"No image: its tokens are zero, and still attended. {_NO_PROMPT}",
        method="multimodal_truncation",
        note="The model cannot leave the image's tokens out, so the fusion learns from the unimodal losses too. "
        + ANSWER_NOTE,
    ),
    "Blip2ForConditionalGeneration": _generative(
        _blip2, absent=f"No image: the query tokens' positions are closed to attention. {_NO_PROMPT}"
    ),
    "InstructBlipForConditionalGeneration": _generative(
        _instructblip,
        absent=f"No image: the Q-Former does not attend to it, its query tokens read the text alone. {_NO_PROMPT}",
    ),
}
