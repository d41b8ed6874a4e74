"""Features put among the tokens of a language model, which is the fusion: what all such models have in common.

The text is the embedding table; the image (or sound) its tower and the projection into the language model. An absent
image's positions are closed in the attention mask; of an absent text the first token is left, and it is `<bos>`. The
rows themselves are in `vision_language.py`, `audio_language.py`, `seq2seq.py` and `queries.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_dgl.method.absence import (
    Call,
    Tokens,
    closed,
    empty_text,
    framed,
    other_text,
    placeholders,
    prompt_tokens,
    text_tokens,
)
from hf_dgl.method.modalities import Modality

from .architecture import Architecture, Declare

INPUTS = {
    "image": (
        *("pixel_values", "pixel_attention_mask", "image_hidden_states"),
        *("image_grid_thw", "image_sizes", "batch_num_images", "spatial_shapes"),
        *("image_merge_sizes", "video_merge_sizes", "target_sizes", "target_sizes_videos"),
        *("pixel_values_videos", "video_grid_thw", "image_sizes_videos", "second_per_grid_ts"),
        *(
            "image_position_ids",
            "video_position_ids",
            "num_frames_per_video",
            "pixel_values_images",
            "high_res_pixel_values",
        ),
        *("image_pixel_values", "image_attention_mask", "flattened_patches", "width", "height"),
        *("pixel_values_local", "num_local_patches", "patches_grid", "image_grid_hw", "tile_fine_mask"),
        *("image_token_pooling", "image_grids", "image_num_crops", "video_token_pooling", "video_grids"),
    ),
    "audio": (
        *("input_features", "feature_attention_mask", "input_features_mask", "audio_feature_lengths"),
        *("padding_mask", "chunk_sample_lengths", "input_values", "input_values_mask"),
        *("audio_input_ids", "audio_input_ids_mask"),
        *("audio_input_features", "audio_embed_sizes", "audio_attention_mask"),
    ),
}
"""The arguments that carry a modality, by any class's name for them. Videos go with the images: one encoder."""

_FEATURES = {
    "image": ("image_token_id", "image_token_index", "video_token_id", "video_token_index"),
    "audio": ("audio_token_id", "audio_token_index"),
}
_AROUND = {
    "image": (
        *("vision_start_token_id", "vision_end_token_id", "image_start_token_id", "image_end_token_id"),
        *("video_start_token_id", "video_end_token_id", "image_bos_token_id"),
        *("boi_token_id", "boi_token_index", "eoi_token_id", "eoi_token_index"),
        *("low_res_image_start_token_id", "frame_start_token_id", "frame_end_token_id"),
    ),
    "audio": (
        *("audio_start_token_id", "audio_end_token_id", "audio_bos_token_id", "audio_eos_token_id"),
        *("boa_token_id", "boa_token_index", "eoa_token_id", "eoa_token_index"),
    ),
}
"""Names in a config: of the tokens in whose places features are put, and of those that stand around them."""

TABLE = "model.language_model.embed_tokens"


def places_of(config: Any, modality: str, around: bool = True) -> tuple[int, ...]:
    """The tokens in `input_ids` that are an image's (or a video's), or a sound's: first those in whose places features
    are put, then (`around`) those that begin and end it.

    Of an absent image, both are closed. Of an absent text, both stay: models count pictures, and the positions within
    them, from the tokens around them.

    Raises:
        ValueError: the config names none.
    """
    num_places = len(_FEATURES[modality])
    names = [*_FEATURES[modality], *(_AROUND[modality] if around else ())]
    tower = getattr(config, {"image": "vision_config", "audio": "audio_config"}[modality], None)
    of_parts = [[getattr(part, name, None) for name in names] for part in (config, tower)]  # Phi-4's: in the tower's
    tokens = next((found for found in of_parts if any(token is not None for token in found[:num_places])), None)
    if tokens is None:
        name = _FEATURES[modality][0]
        raise ValueError(
            f"The config of model_type {config.model_type!r} has no `{name}`, so the {modality}'s places in "
            f"`input_ids` are not known. Set it, e.g. `config.{name} = processor.{name}`."
        )
    return tuple(dict.fromkeys(int(token) for token in tokens if token is not None))


def image_token_id(config: Any) -> int:
    """The placeholder of an image's tokens in `input_ids`."""
    return places_of(config, "image")[0]


def first_token_id(config: Any) -> int:
    """The token that is left of an absent text: `<bos>`, or what comes nearest to it."""
    for part in (config, config.get_text_config()):
        for name in ("bos_token_id", "cls_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id"):
            token = getattr(part, name, None)
            if token is not None:
                return int(token[0] if isinstance(token, list) else token)
    return 0


def text_modality(config: Any, encoder: Sequence[str], tokens: Tokens) -> Modality:
    """The text of a shared sequence: absent, it is the empty text."""
    return Modality(
        inputs=["input_ids"],
        encoder=encoder,
        absent="omit",
        hide=empty_text(tokens, first_token_id(config)),
        vary=other_text(tokens),
    )


def among_text(
    encoders: Mapping[str, Sequence[str]],
    table: str | Sequence[str] = TABLE,
    prompted: bool = True,
    parameters: Sequence[str] = (),
    framing: bool = False,
    places: Tokens | None = None,
    demanded: Sequence[str] = (),
) -> Declare:
    """Features among the tokens of a text.

    Args:
        encoders: Modality (`image`, `audio`) -> its tower and projection.
        table: The token embeddings; a model may have several.
        prompted: Whether a part of the sequence is an answer, to be predicted token by token.
        parameters: Of the first modality's, those beside its encoder.
        framing: Whether a medium always stands between two tokens of its own, which the config does not name.
        places: Where the features are put, if an argument of the call says it and not the config.
        demanded: Modalities whose inputs the model does not go without: absent, their features are zeros, and closed.
    """

    def declare(config: Any) -> dict[str, Modality]:
        media = {name: places or _tokens_of(config, name, framing) for name in encoders}
        first = next(iter(encoders))
        found = {
            name: Modality(
                inputs=INPUTS[name],
                encoder=encoder,
                parameters=parameters if name == first else (),
                absent="zero" if name in demanded else "omit",
                hide=closed(media[name], omit=() if name in demanded else INPUTS[name]),
            )
            for name, encoder in encoders.items()
        }
        words = prompt_tokens() if prompted else text_tokens()

        def text(call: Call) -> torch.Tensor:
            tokens = words(call)
            for others in media.values():
                tokens = tokens & ~others(call)
            return tokens

        return {**found, "text": text_modality(config, [table] if isinstance(table, str) else table, text)}

    return declare


def _tokens_of(config: Any, modality: str, framing: bool) -> Tokens:
    named = placeholders(*places_of(config, modality))
    if not framing:
        return named
    around = framed(placeholders(*places_of(config, modality, around=False)))
    return lambda call: named(call) | around(call)


EMPTY = "No text: the empty text, i.e. its first token alone, which is <bos>."
NO_PROMPT = "No text: the empty prompt, i.e. <bos>; the answer's tokens stay, since they are what is predicted."
ANSWER_NOTE = (
    "Put -100 into `labels` for the prompt: what is not -100 is the answer, which stays when the text is absent. "
    "Without a prompt (captions) the image's own loss is therefore the multimodal one."
)
LEARNS_TO_WRITE = (
    "The fusion learns from the unimodal losses too (`multimodal_truncation`): with full DGL the loss of one modality "
    "alone stayed above chance level in our small trials of SmolVLM, BLIP-2, InstructBLIP, LLaVA-NeXT, Mllama and "
    "IDEFICS."
)


# With full DGL, the loss of the image alone stayed above chance level: `tests/architectures/test_learns.py`.
READ_FROM_TEXT = {
    "method": "multimodal_truncation",
    "note": "The answer is read from a text token only, so the fusion has to learn from the image alone, too.",
}

_GONE = {
    "image": "No image: its positions are closed to attention, and the image is left out; a video counts as image.",
    "audio": "No audio: its positions are closed to attention, and the audio is left out.",
}


def gone(*modalities: str) -> str:
    """What the absence of features among text is, in words."""
    return " ".join(_GONE[name] for name in modalities)


def classifies(
    table: str | Sequence[str] = TABLE,
    note: str = "",
    method: str = "dgl",
    **encoders: Sequence[str],
) -> Architecture:
    """The row of a class that tells a label of the whole, or of each token (arguments of [`among_text`])."""
    declare = among_text(encoders, table, prompted=False)
    absent = f"{gone(*encoders)} {EMPTY}"
    return Architecture({"embeddings": declare}, absent, (*encoders, "text"), method, note)


def writes(
    table: str | Sequence[str] = TABLE,
    parameters: Sequence[str] = (),
    note: str = "",
    framing: bool = False,
    **encoders: Sequence[str],
) -> Architecture:
    """The row of a class that writes an answer, token by token (arguments of [`among_text`])."""
    declare = among_text(encoders, table, parameters=parameters, framing=framing)
    return written(declare, gone(*encoders), note, (*encoders, "text"))


def written(
    declare: Declare, absent: str, note: str = "", modalities: tuple[str, ...] = ("image", "text")
) -> Architecture:
    """As [`writes`], for a declaration of its own; `absent`: in words, of all but the text."""
    note = f"{LEARNS_TO_WRITE} {ANSWER_NOTE} {note}".strip()
    absent = f"{absent} {NO_PROMPT}"
    return Architecture({"embeddings": declare}, absent, modalities, "multimodal_truncation", note)
