"""Embeddings, then one transformer over all modalities.

The encoders are little more than embeddings here: DGL has less to train than in models with towers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hf_dgl.method.absence import (
    Call,
    Hide,
    Tokens,
    all_words,
    first_token_only,
    inner_tokens,
    no_features,
    no_tokens,
    only_the_first,
    other_text,
    other_words,
    words_shown,
)
from hf_dgl.method.modalities import Modality

from .architecture import Architecture, Declare

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
REGIONS = ("visual_embeds", "visual_attention_mask", "visual_token_type_ids", "image_text_alignment")


def _text(encoder: list[str], *beside: str, inputs: tuple[str, ...] = TEXT_INPUTS, keep_end: bool = False) -> Modality:
    """Text before the other tokens; `beside`: further arguments with one entry per token."""
    return Modality(
        inputs=inputs,
        encoder=encoder,
        absent="omit",
        hide=first_token_only("input_ids", *beside, and_last=keep_end),
        vary=other_text(inner_tokens) if keep_end else other_words("input_ids", *(set(beside) & {"bbox"})),
    )


def labelled_text(config: Any, encoder: list[str], tokens: Tokens = words_shown) -> Modality:
    """Text each of whose places may have a label. Absent, its first token alone is read; of a masked language model
    the places that are to be predicted (`[MASK]`) stay, too."""
    return Modality(
        inputs=TEXT_INPUTS,
        encoder=encoder,
        absent="omit",
        hide=only_the_first(tokens, config.pad_token_id or 0),
        vary=other_text(tokens),
    )


def _no_patches(config: Any) -> Hide:
    """ViLT demands an image: it gets the embeddings of no patches."""

    def hide(call: Call) -> Call:
        pixels = call.pop("pixel_values")
        leading = pixels.shape[:-3]  # [B], or [B, N] for N images
        table = pixels.new_zeros(*leading, 0, config.hidden_size)
        return {**call, "image_embeds": table, "pixel_mask": pixels.new_zeros(*leading, 0, 0)}

    return hide


def _vilt(config: Any) -> dict[str, Modality]:
    embeddings = "vilt.embeddings"
    return {
        "image": Modality(
            inputs=["pixel_values", "pixel_mask"],
            encoder=[f"{embeddings}.patch_embeddings"],
            parameters=[r"vilt\.embeddings\.(cls_token|position_embeddings)$"],
            absent="omit",
            hide=_no_patches(config),
        ),
        "text": _text([f"{embeddings}.text_embeddings"], "token_type_ids"),
    }


def _vilt_labels(tokens: Tokens) -> Declare:
    def declare(config: Any) -> dict[str, Modality]:
        return {**_vilt(config), "text": labelled_text(config, ["vilt.embeddings.text_embeddings"], tokens)}

    return declare


def _visual_bert(keep_end: bool = False) -> Declare:
    def declare(config: Any) -> dict[str, Modality]:
        embeddings = "visual_bert.embeddings"
        visual = ("visual_projection", "visual_token_type_embeddings", "visual_position_embeddings")
        words = ("word_embeddings", "position_embeddings", "token_type_embeddings")
        return {
            "image": Modality(inputs=REGIONS, encoder=[f"{embeddings}.{name}" for name in visual], absent="omit"),
            "text": _text([f"{embeddings}.{name}" for name in words], "token_type_ids", keep_end=keep_end),
        }

    return declare


def _visual_bert_masked(config: Any) -> dict[str, Modality]:
    """It has a label for each region, too, which go with them."""
    known = _visual_bert()(config)
    drop = no_tokens(*REGIONS)

    def no_regions(call: Call) -> Call:
        labels = call.get("labels")
        return drop(
            call if labels is None else {**call, "labels": labels[:, : call["input_ids"].shape[1]].contiguous()}
        )

    text = labelled_text(config, list(known["text"].encoder))
    return {"image": replace(known["image"], hide=no_regions), "text": text}


def _layoutlmv3(config: Any) -> dict[str, Modality]:
    """The boxes belong to the words. The image's exit is `norm`, behind everything that it is made of."""
    return {
        "image": Modality(
            inputs=["pixel_values"],
            encoder=["layoutlmv3.patch_embed", "layoutlmv3.norm"],
            parameters=[r"layoutlmv3\.(cls_token|pos_embed)$"],
            absent="omit",
        ),
        "text": _text(
            ["layoutlmv3.embeddings"], "bbox", "token_type_ids", "position_ids", inputs=(*TEXT_INPUTS, "bbox")
        ),
    }


def _layoutlmv3_labels(config: Any) -> dict[str, Modality]:
    """It answers in the words' places, so none is cut off; boxes stay, since they say which place is asked about."""
    known = _layoutlmv3(config)
    hide = only_the_first(all_words, config.pad_token_id or 0)
    return {**known, "text": replace(known["text"], hide=hide, vary=other_text(all_words))}


def _tvp(config: Any) -> dict[str, Modality]:
    return {
        "video": Modality(
            inputs=["pixel_values"],
            encoder=["model.visual_prompter", "model.vision_model", "model.visual_embeddings"],
            absent=no_features,
        ),
        "text": _text(["model.embeddings"], inputs=("input_ids", "attention_mask")),
    }


_EMPTY = "No text: the empty text, i.e. its first token alone, which is read out."
MASKED = "No text: its first token and the masked places; the words are predicted from the image."


def labels_in_the_text(declare: Declare, absent: str, partition: str = "embeddings") -> Architecture:
    """The row of a class whose labels are predicted in the text's places."""
    note = "Labels are predicted in the text's places, so the fusion has to learn from the image alone, too."
    return Architecture({partition: declare}, absent, method="multimodal_truncation", note=note)


_LAYOUTLMV3_LABELS = labels_in_the_text(
    _layoutlmv3_labels,
    f"No image: it is left out. {_EMPTY} Behind it stand padding and the boxes of the words, which are asked about.",
)

_VILT = Architecture(
    {"embeddings": _vilt},
    absent=f"No image: no patches. {_EMPTY}",
    note="The model draws the order of the patches at random, in each pass anew.",
)

ROWS: dict[str, Architecture] = {
    "ViltForQuestionAnswering": _VILT,
    "ViltForImagesAndTextClassification": _VILT,
    "ViltForMaskedLM": labels_in_the_text(_vilt_labels(words_shown), f"No image: no patches. {MASKED}"),
    "ViltForTokenClassification": labels_in_the_text(_vilt_labels(all_words), f"No image: no patches. {_EMPTY}"),
    "VisualBertForPreTraining": labels_in_the_text(_visual_bert_masked, f"No image: no regions. {MASKED}"),
    "VisualBertForVisualReasoning": Architecture(
        {"embeddings": _visual_bert()}, absent=f"No image: no regions. {_EMPTY}"
    ),
    "VisualBertForQuestionAnswering": Architecture(
        {"embeddings": _visual_bert(keep_end=True)},
        absent="No image: no regions. No text: [CLS] and [SEP]; the answer is read from the token before [SEP].",
    ),
    "LayoutLMv3ForSequenceClassification": Architecture(
        {"embeddings": _layoutlmv3}, absent=f"No image: it is left out. {_EMPTY} Boxes go with the words."
    ),
    "LayoutLMv3ForTokenClassification": _LAYOUTLMV3_LABELS,
    "LayoutLMv3ForQuestionAnswering": _LAYOUTLMV3_LABELS,
    "TvpForVideoGrounding": Architecture(
        {"embeddings": _tvp},
        absent=f"No video: no visual tokens. {_EMPTY}",
        modalities=("video", "text"),
        note="The model works with one video per batch only (`per_device_train_batch_size=1`): with more, its "
        "position embeddings raise.",
    ),
}
