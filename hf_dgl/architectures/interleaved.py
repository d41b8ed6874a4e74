"""Cross-attention inside the text's layers.

`embeddings` (default): the layers in which the modalities meet are fusion as a whole, the text is its embeddings.
`by_name`: within those layers only the cross-attention is fusion, and the rest belongs to the text, whose encoder then
runs again in its own pass (its layers read the image between them, so nothing of them can be reused).
"""

from __future__ import annotations

from typing import Any

from hf_dgl.method.absence import (
    Call,
    after_first,
    first_token_only,
    no_tokens,
    other_text,
    other_words,
    prompt_tokens,
    text_tokens,
)
from hf_dgl.method.modalities import Modality

from .architecture import Architecture
from .sequence import ANSWER_NOTE, LEARNS_TO_WRITE, image_token_id, text_modality

TEXT_INPUTS = ("input_ids", "attention_mask")


def _image(silent: str, encoder: str = "vision_model") -> Modality:
    """An image that the text reads by cross-attention: absent, it adds nothing there."""
    return Modality(inputs=["pixel_values"], encoder=[encoder], silent=[silent])


def _blip_text(encoder: str, **more: Any) -> Modality:
    return Modality(
        inputs=TEXT_INPUTS,
        encoder=[encoder],
        absent="omit",
        hide=first_token_only("input_ids"),
        vary=other_words("input_ids"),
        **more,
    )


def _blip(by_name: bool) -> Any:
    def declare(config: Any) -> dict[str, Modality]:
        image = _image("text_encoder.encoder.layer.*.crossattention.output.dense")
        if by_name:
            return {"image": image, "text": _blip_text("text_encoder", exclude=[r"\.crossattention\."])}
        return {"image": image, "text": _blip_text("text_encoder.embeddings")}

    return declare


def _blip_caption(by_name: bool) -> Any:
    def declare(config: Any) -> dict[str, Modality]:
        decoder = "text_decoder.bert"
        text = text_modality(config, [decoder if by_name else f"{decoder}.embeddings"], prompt_tokens())
        if by_name:
            text = Modality(**{**vars(text), "exclude": [r"\.crossattention\."]})
        return {"image": _image(f"{decoder}.encoder.layer.*.crossattention.output.dense"), "text": text}

    return declare


def _blip2_matching(by_name: bool) -> Any:
    """The Q-Former reads words and queries; only its feed-forward part for words is the text's."""

    def declare(config: Any) -> dict[str, Modality]:
        layers = "qformer.encoder.layer.*"
        encoder = ["embeddings.word_embeddings", "embeddings.position_embeddings"]
        if by_name:
            encoder += [f"{layers}.intermediate", f"{layers}.output"]
        # In newer checkpoints `input_ids` begin with one placeholder per query.
        placeholders, tokens = 0, text_tokens()
        if config.image_token_index is not None:
            placeholders, tokens = config.num_query_tokens, text_tokens(config.image_token_index)
        return {
            "image": _image(f"{layers}.crossattention.output.dense"),
            "text": Modality(
                inputs=TEXT_INPUTS,
                encoder=encoder,
                absent="omit",
                hide=no_tokens("input_ids", "attention_mask", keep=placeholders + 1),
                vary=other_text(after_first(tokens)),
            ),
        }

    return declare


def _mllama(by_name: bool) -> Any:
    def declare(config: Any) -> dict[str, Modality]:
        lm = "model.language_model"
        encoder = [f"{lm}.embed_tokens"]
        if by_name:
            own = (i for i in range(config.text_config.num_hidden_layers) if i not in _cross_layers(config))
            encoder += [f"{lm}.layers.{i}" for i in own]
        return {
            "image": Modality(
                inputs=["pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask"],
                encoder=["model.vision_model", "model.multi_modal_projector"],
                absent="omit",
            ),
            "text": text_modality(config, encoder, prompt_tokens(image_token_id(config))),
        }

    return declare


def _cross_layers(config: Any) -> list[int]:
    return list(config.text_config.cross_attention_layers)


def _idefics(by_name: bool) -> Any:
    def declare(config: Any) -> dict[str, Modality]:
        image = ["model.vision_model"] + (["model.perceiver_resampler"] if config.use_resampler else [])
        return {
            "image": Modality(inputs=["pixel_values"], encoder=image, hide=_no_image_attended),
            "text": text_modality(
                config, ["model.embed_tokens", *(["model.layers.*"] if by_name else [])], prompt_tokens()
            ),
        }

    return declare


def _no_image_attended(call: Call) -> Call:
    mask = call.get("image_attention_mask")
    return call if mask is None else {**call, "image_attention_mask": mask * 0}


def _interleaved(declare: Any, absent: str, note: str = "", method: str = "dgl") -> Architecture:
    partitions = {"embeddings": declare(False), "by_name": declare(True)}
    return Architecture(partitions, absent=absent, note=note, method=method)


_CLOSED = "No image: the cross-attention to it adds nothing."
_EMPTY = "No text: the empty text, i.e. its first token alone."
_NO_PROMPT = "No text: the empty prompt, i.e. its first token alone, which is <bos>; the answer's tokens stay."

_LEARNS = (
    "The fusion learns from the unimodal losses too (`multimodal_truncation`): with full DGL the image alone stayed "
    "at chance in some of our small trials of image-text matching, whose layers never saw one modality alone."
)


def _blip_row(declare: Any, absent: str, note: str = "") -> Architecture:
    return _interleaved(declare, absent, f"{_LEARNS} {note}".strip(), method="multimodal_truncation")


ROWS: dict[str, Architecture] = {
    "BlipForQuestionAnswering": _blip_row(_blip, f"{_CLOSED} {_EMPTY} The answer's tokens stay."),
    "BlipForImageTextMatching": _blip_row(_blip, f"{_CLOSED} {_EMPTY}"),
    "BlipForConditionalGeneration": _blip_row(_blip_caption, f"{_CLOSED} {_NO_PROMPT}", ANSWER_NOTE),
    "Blip2ForImageTextMatching": _blip_row(_blip2_matching, f"{_CLOSED} {_EMPTY}"),
    "MllamaForConditionalGeneration": _interleaved(
        _mllama,
        f"No image: the cross-attention layers are skipped. {_NO_PROMPT}",
        f"{LEARNS_TO_WRITE} {ANSWER_NOTE}",
        method="multimodal_truncation",
    ),
    "IdeficsForVisionText2Text": _interleaved(
        _idefics,
        f"No image: no token attends to it. {_NO_PROMPT}",
        "The model freezes text and image layers by default: set `freeze_text_layers` and `freeze_vision_layers` in "
        f"its config to False to train them. {LEARNS_TO_WRITE} {ANSWER_NOTE}",
        method="multimodal_truncation",
    ),
}
