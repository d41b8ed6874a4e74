"""One encoder per modality, then a fusion."""

from __future__ import annotations

from typing import Any

from hf_dgl.method.absence import first_token_only, other_words
from hf_dgl.method.modalities import Modality

from .architecture import Architecture
from .single_stream import MASKED, TEXT_INPUTS, labelled_text, labels_in_the_text


def _cross_modal(config: Any) -> dict[str, Modality]:
    """Our own model: one encoder module and one (grouped) input per modality."""
    return {
        name: Modality(inputs=[name], encoder=[f"cross_modal.encoders.{name}"], absent="omit")
        for name in config.encoders
    }


def _flava(config: Any) -> dict[str, Modality]:
    return {
        "image": Modality(inputs=["pixel_values"], encoder=["flava.image_model"], absent="omit"),
        "text": Modality(inputs=TEXT_INPUTS, encoder=["flava.text_model"], absent="omit"),
    }


def _bridgetower(config: Any) -> dict[str, Modality]:
    """The towers themselves are never called, only their layers."""
    visual = "vision_model.visual"
    return {
        "image": Modality(
            inputs=["pixel_values"],
            encoder=[
                *(f"{visual}.{part}" for part in ("embeddings", "ln_pre", "ln_post")),
                f"{visual}.transformer.resblocks.*",
            ],
            silent=["cross_modal_text_layers.*.crossattention.output.dense", "cross_modal_image_pooler"],
        ),
        "text": Modality(
            inputs=TEXT_INPUTS,
            encoder=["text_model.embeddings", "text_model.encoder.layer.*"],
            silent=["cross_modal_image_layers.*.crossattention.output.dense", "cross_modal_text_pooler"],
        ),
    }


def _lxmert(config: Any) -> dict[str, Modality]:
    regions = ("visual_feats", "visual_pos", "visual_attention_mask")
    return {
        "image": Modality(
            inputs=regions,
            encoder=["lxmert.encoder.visn_fc", "lxmert.encoder.r_layers.*"],
            silent=["lxmert.encoder.x_layers.*.visual_attention.output.dense"],  # one module for both directions
        ),
        "text": Modality(
            inputs=TEXT_INPUTS,
            encoder=["lxmert.embeddings", "lxmert.encoder.layer.*"],
            absent="omit",
            hide=first_token_only("input_ids", "token_type_ids"),
            vary=other_words("input_ids"),
        ),
    }


def _lxmert_masked(config: Any) -> dict[str, Modality]:
    known = _lxmert(config)
    return {**known, "text": labelled_text(config, list(known["text"].encoder))}


def _grounding_dino(config: Any) -> dict[str, Modality]:
    return {
        "image": Modality(inputs=["pixel_values"], encoder=["model.backbone", "model.input_proj_vision.*"]),
        "text": Modality(inputs=TEXT_INPUTS, encoder=["model.text_backbone", "model.text_projection"]),
    }


_GROUNDING_DINO = Architecture(
    {"encoders": _grounding_dino},
    absent="The modality's features are zero where they enter the fusion, which still attends to their places.",
    method="multimodal_truncation",
    note="Boxes are found in the picture and named by the words. Without the text the picture still has to find them; "
    "without the picture the words can tell only what boxes are like on average. For LoRA say first where the words "
    "enter, which PEFT asks for: `model.get_input_embeddings = model.model.text_backbone.get_input_embeddings`.",
)

_BRIDGETOWER = Architecture(
    {"encoders": _bridgetower},
    absent="The modality's tokens are zero, the other one does not attend to them, and their read-out is zero.",
)

ROWS: dict[str, Architecture] = {
    "CrossModalForSequenceClassification": Architecture(
        {"encoders": _cross_modal},
        absent="The modality is left out; the fusion reads the others.",
        modalities=("any",),
    ),
    "FlavaForSequenceClassification": Architecture(
        {"encoders": _flava}, absent="The modality is left out; the multimodal encoder reads the other's tokens."
    ),
    "BridgeTowerForImageAndTextRetrieval": _BRIDGETOWER,
    "BridgeTowerForMaskedLM": Architecture(
        {"encoders": _bridgetower},
        absent="No image: its tokens are zero, and the text does not attend to them. No text: its tokens are zero, "
        "and the words are predicted in their places from the image.",
        method="multimodal_truncation",
        note="Words are predicted in the text's places, which are zero when the text is absent, so the fusion has to "
        "learn from the image alone, too.",
    ),
    "GroundingDinoForObjectDetection": _GROUNDING_DINO,
    "MMGroundingDinoForObjectDetection": _GROUNDING_DINO,
    "LxmertForQuestionAnswering": Architecture(
        {"encoders": _lxmert},
        absent="No image: the regions are zero, and the text does not attend to them. No text: the empty text, i.e. "
        "its first token alone.",
        method="multimodal_truncation",
        note="The answer is read from a text token only, so the fusion has to learn from the image alone, too.",
    ),
    "LxmertForPreTraining": labels_in_the_text(
        _lxmert_masked,
        f"No image: the regions are zero, and the text does not attend to them. {MASKED}",
        partition="encoders",
    ),
}
