"""Tiny random models of classes that have a config of many parts, made by shrinking the class's own default config.

from tests.shrunk import SHRUNK
model, batch = SHRUNK["Qwen2_5_VLForConditionalGeneration"]()   # eval mode, no dropout, float32; 3 rows with labels

A builder says only what the sizes below do not: `@shrunk("SomeClass", ...)` on a function that gives changes of the
config (nested dicts) and a batch. Every parameter is perturbed: zero-initialised gates and biases hide errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import nn

Built = tuple[nn.Module, dict[str, Any]]
SHRUNK: dict[str, Callable[[], Built]] = {}
"""Class name -> builder."""

VOCAB = 64
IMAGE, VIDEO, AUDIO = 60, 61, 62
"""The tokens in whose places features are put."""

_SIZES = {
    16: "hidden_size d_model embed_dim projection_dim out_hidden_size output_dim vision_output_dim hidden_dim "
    "text_hidden_size embed_size projector_hidden_size adapter_dim dim n_embd width conf_hidden_size embedding_dim "
    "multi_modal_hidden_size encoder_hidden_size mm_hidden_size fc_dim output_hidden_size projection_hidden_size "
    "input_hidden_size image_size",
    32: "intermediate_size encoder_ffn_dim decoder_ffn_dim ffn_dim mlp_dim moe_intermediate_size "
    "shared_expert_intermediate_size intermediate_size_mlp projector_intermediate_size ffn_hidden_size "
    "projection_intermediate_size shared_intermediate_size dense_intermediate_size alignment_intermediate_size",
    2: "num_hidden_layers depth num_layers encoder_layers decoder_layers layers n_layer num_attention_heads num_heads "
    "encoder_attention_heads decoder_attention_heads attention_heads num_key_value_heads num_experts_per_tok n_layers "
    "heads conf_num_hidden_layers conf_num_attention_heads num_conv_layers",
    4: "num_experts num_local_experts n_routed_experts moe_num_experts",
    8: "head_dim patch_size num_mel_bins qk_nope_head_dim v_head_dim q_lora_rank kv_lora_rank qk_rope_head_dim "
    "sliding_window local_attention",
    64: "vocab_size max_position_embeddings vocab_size_per_layer_input",
}
_SIZE_OF = {name: size for size, names in _SIZES.items() for name in names.split()}
AROUND = {IMAGE: (51, 52), VIDEO: (53, 54), AUDIO: (55, 56)}
_TOKENS = {"pad": 0, "bos": 1, "cls": 1, "eos": 2, "sep": 2, "image": IMAGE, "video": VIDEO, "audio": AUDIO}
_TOKENS |= {
    **dict.fromkeys(("vision_start", "image_start", "image_bos", "boi"), AROUND[IMAGE][0]),
    **dict.fromkeys(("vision_end", "image_end", "eoi"), AROUND[IMAGE][1]),
    **{"video_start": AROUND[VIDEO][0], "video_end": AROUND[VIDEO][1]},
    **dict.fromkeys(("audio_start", "audio_bos", "boa"), AROUND[AUDIO][0]),
    **dict.fromkeys(("audio_end", "audio_eos", "eoa"), AROUND[AUDIO][1]),
}
_OTHER_TOKEN = 3
_LENGTH_OF_ITS_OWN = ("layer_types", "mlp_layer_types", "per_layer_config")  # one entry per layer: made anew


def shrunk(*names: str) -> Callable[[Callable[[], tuple[dict[str, Any], dict[str, Any]]]], Any]:
    """Registers one builder for the classes `names`; seeded."""

    def register(describe: Callable[[], tuple[dict[str, Any], dict[str, Any]]]) -> Any:
        for name in names:
            SHRUNK[name] = lambda name=name: _build(name, describe)  # type: ignore[misc]
        return describe

    return register


def _build(name: str, describe: Callable[[], tuple[dict[str, Any], dict[str, Any]]]) -> Built:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        changes, batch = describe()
        kind = getattr(tf, name)
        model = kind(shrunk_config(kind.config_class, changes))
        model.set_experts_implementation("eager")  # the fast ones know no float64
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.float().eval(), batch


def shrunk_config(kind: Any, changes: dict[str, Any]) -> Any:
    """The default config of a class with all sizes small and the changes made."""
    values = _merged(_small(kind().to_dict()), changes)
    return kind(**{key: value for key, value in values.items() if key not in ("model_type", "transformers_version")})


def small(kind: Any, **changes: Any) -> dict[str, Any]:
    """A part of a config, all sizes small."""
    return _merged(_small(kind().to_dict()), changes)


def _small(config: dict[str, Any]) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for key, value in config.items():
        token = re.fullmatch(r"(.*)_token_(?:id|index)", str(key))
        if key in _LENGTH_OF_ITS_OWN:
            continue
        if isinstance(value, dict) and key not in ("id2label", "label2id"):
            small[key] = _small(value)
        elif token and isinstance(value, (int, list)):
            small[key] = _TOKENS.get(token[1], _OTHER_TOKEN)
        elif "drop" in str(key) and isinstance(value, float):
            small[key] = 0.0
        elif key in _SIZE_OF and isinstance(value, int):
            small[key] = _SIZE_OF[key]
        else:
            small[key] = value
    return small


def _merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(config.get(key), dict)
        config[key] = _merged(config[key], value) if both else value
    return config


# ---- batches ----


def asked(*rows: list[tuple[int, int]], words: int = 3) -> dict[str, torch.Tensor]:
    """A question and its answer in each row: `<bos>`, words, the places of its media, words, two tokens of an answer.

    Args:
        rows: For each row, (token, count) of each medium's places; tokens of its begin and end stand around them.
            Shorter rows are padded on the right.
        words: How many before the media and how many behind.
    """
    lines = [[1, *_words(words), *_media(row), *_words(words)] for row in rows]
    length = max(map(len, lines)) + 2
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, line in enumerate(lines):
        end = len(line) + 2
        ids[i, :end] = torch.tensor([*line, *_words(2)])
        mask[i, :end] = 1
        labels[i, end - 2 : end] = ids[i, end - 2 : end]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _media(row: list[tuple[int, int]]) -> list[int]:
    tokens = []
    for place, count in row:
        begin, end = AROUND[place]
        tokens += [begin, *[place] * count, end]
    return tokens


def _words(count: int) -> list[int]:
    return torch.randint(5, 50, (count,)).tolist()


def kinds(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """`mm_token_type_ids` as a processor gives them: text 0, image 1, video 2, audio 3."""
    types = torch.zeros_like(batch["input_ids"])
    for kind, token in enumerate((IMAGE, VIDEO, AUDIO), start=1):
        types[batch["input_ids"] == token] = kind
    return {**batch, "mm_token_type_ids": types}


def padded_left(batch: dict[str, Any]) -> dict[str, Any]:
    """The same rows with the padding on the left."""
    mask = batch["attention_mask"]
    moves = (mask.shape[1] - mask.sum(1)).tolist()

    def move(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.shape[:2] != mask.shape:
            return value
        return torch.stack([row.roll(by, 0) for row, by in zip(value, moves, strict=True)])

    return {key: move(value) for key, value in batch.items()}
