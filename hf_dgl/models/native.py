"""Multimodal checkpoints as they are (BridgeTower, FLAVA, LXMERT, BLIP, ...): class, head, processor and columns.

A recipe names them with `model_name_or_path`, where our own model is built from `encoders`. Every class of
[`ARCHITECTURES`] that has one of these heads can be named:

| head | classes | label column |
|---|---|---|
| `CLASSES` | `...ForSequenceClassification`, VisualBertForVisualReasoning | classes, lists of classes, or numbers |
| `TWO_CLASSES` | BridgeTowerForImageAndTextRetrieval, BlipForImageTextMatching | two classes |
| `ANSWERS` | LxmertForQuestionAnswering | classes |
| `ANSWER_SETS` | ViltForQuestionAnswering, VisualBertForQuestionAnswering | lists of classes |
| `TEXT` | BlipForQuestionAnswering, `...ForConditionalGeneration`, `...ForCausalLM` | text to be written |

With a `TEXT` head losses are measured in training (fused, and of each modality alone): there are no class scores.
`hf-dgl evaluate` lets it write, and scores the answers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig, PreTrainedTokenizerBase

import hf_dgl.models
from hf_dgl.architectures import ARCHITECTURES
from hf_dgl.data import LabelSpec
from hf_dgl.data.problem_types import MULTI_LABEL, SINGLE_LABEL
from hf_dgl.method.modalities import did_you_mean

from .adapters import is_adapter, load_model
from .configuration_cross_modal import CrossModalConfig
from .finding import check_source
from .parts import check_vocabulary, remember_shortest_audio
from .processing_cross_modal import POSITIONS_AFTER_PADDING, CrossModalProcessor
from .whole import load_whole, told_if_damaged

CLASSES, TWO_CLASSES, ANSWERS, ANSWER_SETS, TEXT = "classes", "two_classes", "answers", "answer_sets", "text"

_HEADS = {
    r"BridgeTowerForImageAndTextRetrieval|Blip2?ForImageTextMatching": TWO_CLASSES,
    r"LxmertForQuestionAnswering": ANSWERS,
    r"(Vilt|VisualBert)ForQuestionAnswering": ANSWER_SETS,
    r"VisualBertForVisualReasoning": CLASSES,
    r"(?!LayoutLM).*ForSequenceClassification": CLASSES,
    r"BlipForQuestionAnswering": TEXT,
    r"(?!Idefics|Udop|Whisper|Speech).*For(ConditionalGeneration|CausalLM|VisionText2Text)": TEXT,
}
"""Class name -> head, the first that matches. The others need inputs that no column and no processor gives."""

_FEATURES = {"lxmert": ("visual_feats", "visual_pos"), "visual_bert": ("visual_embeds",)}
"""Model types whose image modality is read from columns of arrays (region features), not from images."""

_PARTS = {"image": "image_processor", "text": "tokenizer", "audio": "feature_extractor", "video": "video_processor"}


class FeatureArray:
    """Stands where a modality's processor would, for a column that holds arrays of features already."""

    def __init__(self, name: str) -> None:
        self.model_input_names = [name]

    def read_value(self, value: Any) -> np.ndarray:
        """A row's value -> float32 array.

        Raises:
            ValueError: if it is no (rectangular) array of finite numbers.
        """
        try:
            array = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"expected an array of numbers, got {type(value).__name__} ({error}). Give nested lists in json or "
                "parquet rows, an array in Python."
            ) from error
        if not np.isfinite(array).all():
            raise ValueError(f"{(~np.isfinite(array)).sum():,} of its {array.size:,} numbers are NaN or infinite.")
        return array


class NativeProcessor:
    """A checkpoint's own processor, as the data functions want it: by column.

    Args:
        processor: What `AutoProcessor` gives: a combined processor, or a tokenizer.
        model_class: Of the model.
        config: Of the model.

    Attributes:
        processor: Likewise.
        modalities: The columns that are read. (For models that read region features, more than the modalities.)
        processors: Column -> what reads it.
        head: See the table on top of this file.

    Raises:
        ValueError: if a modality of the model has no part in the processor.

    Example:

        >>> NativeProcessor(AutoProcessor.from_pretrained(folder), BlipForQuestionAnswering, config).modalities
        ['image', 'text']
    """

    allow_urls = False  # whether values that are http(s) addresses may be fetched; not saved
    needs_all = True  # a row that lacks a modality cannot be used

    def __init__(self, processor: Any, model_class: type, config: PreTrainedConfig) -> None:
        self.processor, self.config, self.head = processor, config, head_of(model_class)
        self.model_class = model_class
        self.processors: dict[str, Any] = {}
        for name in _modality_names(model_class, config):
            if name == "image" and config.model_type in _FEATURES:
                self.processors |= {column: FeatureArray(column) for column in _FEATURES[config.model_type]}
                continue
            is_tokenizer = name == "text" and isinstance(processor, PreTrainedTokenizerBase)
            part = processor if is_tokenizer else getattr(processor, _PARTS.get(name, ""), None)
            if part is None:
                raise ValueError(
                    f"{model_class.__name__} reads {name!r}, and its processor ({type(processor).__name__}) does not. "
                    "Give the model and a collator of your own to DGLTrainer."
                )
            check_vocabulary(name, part)
            self.processors[name] = part
        limit, tokenizer = _text_limit(config), self.processors.get("text")
        if tokenizer is not None and limit is not None:
            tokenizer.model_max_length = min(tokenizer.model_max_length, limit)

    @property
    def modalities(self) -> list[str]:
        """Names of the columns, in order."""
        return list(self.processors)

    @property
    def model_input_names(self) -> list[str]:
        """Of the checkpoint's processor."""
        return list(self.processor.model_input_names)

    def sampling_rate(self, modality: str) -> int | None:
        """Rate in Hz that a column's waveforms must have, or None if it is no audio."""
        return getattr(self.processors[modality], "sampling_rate", None)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Saves the checkpoint's processor: `AutoProcessor` loads it."""
        return self.processor.save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(cls, source: str, model_class: str | None = None, **hub: Any) -> NativeProcessor:
        """Reads a checkpoint's processor.

        Args:
            source: Hub id or folder.
            model_class: Name of the model's class. Default: the one that the checkpoint was saved from.
            **hub: `token`, `revision`, `trust_remote_code`.

        Raises:
            ValueError: see [`class_of`]; or if the checkpoint has no processor.
        """
        config = AutoConfig.from_pretrained(source, **hub)
        kind = class_of(config, model_class)
        try:
            processor = AutoProcessor.from_pretrained(source, **hub)
        except (OSError, ValueError) as error:
            raise ValueError(f"model_name_or_path: {source!r} has no processor that can be read ({error}).") from error
        return cls(processor, kind, config_for(kind, config) or config)


def is_native(source: str, **hub: Any) -> bool:
    """Whether a Hub id or folder holds a checkpoint with a fusion of its own, and not a model that hf_dgl built.

    Raises:
        ValueError: if there is no model.

    Example:

        >>> is_native("BridgeTower/bridgetower-base")
        True
    """
    try:
        check_source(source)
        values, _ = PreTrainedConfig.get_config_dict(source, **hub)
    except (OSError, ValueError) as error:
        raise ValueError(_not_a_model(source, error)) from error
    if "model_type" not in values:
        raise ValueError(_not_a_model(source, "no config.json with a `model_type`"))
    return bool(values["model_type"] != CrossModalConfig.model_type)


def class_of(config: PreTrainedConfig, wanted: str | None = None) -> type:
    """The class of a checkpoint's model: as wanted, else the one that it was saved from.

    Args:
        config: The checkpoint's.
        wanted: A class name.

    Raises:
        ValueError: if the class is not known, cannot be trained by DGL or from a recipe, or is of another model type.

    Example:

        >>> class_of(FlavaConfig(), "FlavaForSequenceClassification").__name__
        'FlavaForSequenceClassification'
    """
    saved = [name for name in config.architectures or [] if name in ARCHITECTURES]
    name = wanted or (saved[0] if saved else None)
    family = config.model_type.replace("_", "").replace("-", "")
    relatives = [
        known
        for known, row in ARCHITECTURES.items()
        if known.lower().startswith(family) and not row.refused and _head_name(known) is not None
    ]
    choose = f"Type `model_class: {relatives[0]}`; of this family there are {relatives}." if relatives else ""
    if name is None:
        choose = choose or f"No class of its family is known to hf_dgl; known are {sorted(ARCHITECTURES)}."
        raise ValueError(
            f"model_name_or_path: the checkpoint (model_type {config.model_type!r}) was saved from "
            f"{config.architectures or 'an unknown class'}, which has no head to train. {choose}"
        )
    if name not in ARCHITECTURES:
        raise ValueError(f"model_class: unknown {name!r}{did_you_mean(name, list(ARCHITECTURES))} {choose}".rstrip())
    if ARCHITECTURES[name].refused:
        raise ValueError(f"model_class: {name}: {ARCHITECTURES[name].refused} {choose}".rstrip())
    kind = getattr(transformers, name, None) or getattr(hf_dgl.models, name, None)
    if kind is None:
        raise ValueError(f"model_class: {name} is not in transformers {transformers.__version__}. {choose}".rstrip())
    if config_for(kind, config) is None:
        raise ValueError(
            f"model_class: {name} is for checkpoints of model_type {kind.config_class.model_type!r}, this one is "
            f"{config.model_type!r}. {choose}".rstrip()
        )
    head_of(kind)
    return kind


def config_for(model_class: Any, config: PreTrainedConfig) -> PreTrainedConfig | None:
    """The part of a checkpoint's config that a class is built from: all of it, or one of its parts.

    An Omni checkpoint holds a thinker, a talker and a vocoder; a class may be the thinker alone.

    Example:

        >>> config_for(Qwen2_5OmniThinkerForConditionalGeneration, Qwen2_5OmniConfig()).model_type
        'qwen2_5_omni_thinker'
    """
    wanted = model_class.config_class.model_type
    if config.model_type == wanted:
        return config
    parts = (getattr(config, name, None) for name in config.sub_configs)
    return next((part for part in parts if getattr(part, "model_type", None) == wanted), None)


def head_of(model_class: type) -> str:
    """The head of a class (see the table on top of this file).

    Raises:
        ValueError: if a recipe cannot train it.
    """
    head = _head_name(model_class.__name__)
    if head is None:
        raise ValueError(
            f"model_class: {model_class.__name__} cannot be trained from a recipe: its loss needs inputs that no "
            "column of a table gives. Give the model and a collator of your own to DGLTrainer."
        )
    return head


def load_native(source: str, model_class: type, labels: LabelSpec | None, **hub: Any) -> Any:
    """The model of a checkpoint, in float32, with a head for these labels.

    Args:
        source: Hub id or folder.
        model_class: From [`class_of`].
        labels: From the training split; None: the head as it was saved.
        **hub: `token`, `revision`, `trust_remote_code`.

    Raises:
        ValueError: if the head cannot predict such labels.

    Example:

        >>> load_native("facebook/flava-full", FlavaForSequenceClassification, LabelSpec.from_dataset(data["train"]))
    """
    settings = {} if labels is None else _head_settings(model_class, labels)
    return model_class.from_pretrained(  # type: ignore[attr-defined]
        source, dtype=torch.float32, ignore_mismatched_sizes=True, **settings, **hub
    )


def load_trained(source: str, **hub: Any) -> tuple[Any, CrossModalProcessor | NativeProcessor]:
    """Model and processor that a training run saved, whether of ours or of a checkpoint as it is.

    Args:
        source: Hub id or folder.
        **hub: `token`, `revision`, `trust_remote_code`.

    Raises:
        ValueError: if files are damaged, or lack weights of the model.

    Example:

        >>> model, processor = load_trained("outputs/flava_hateful_memes")
    """
    check_source(source)
    with told_if_damaged(source):
        return _load_trained(source, **hub)


def _load_trained(source: str, **hub: Any) -> tuple[Any, CrossModalProcessor | NativeProcessor]:
    model = load_model(source, **hub) if is_adapter(source, **hub) else None
    own = model.config.model_type == CrossModalConfig.model_type if model is not None else not is_native(source, **hub)
    if own:
        model = load_model(source, **hub) if model is None else model
        processor = CrossModalProcessor.from_pretrained(source, **hub)
        for name, config in model.config.encoders.items():  # for models that were saved before this was remembered
            remember_shortest_audio(processor.processors[name], config)
        return model, processor
    native = NativeProcessor.from_pretrained(source, **hub)
    if model is None:
        model = load_whole(native.model_class, source, is_ours=False, dtype=torch.float32, **hub)
    return model, native


def _head_settings(model_class: type, labels: LabelSpec) -> dict[str, Any]:
    """The fields of the config that make the head fit the labels."""
    head, name = head_of(model_class), model_class.__name__
    settings = {
        "num_labels": labels.num_labels,
        "id2label": labels.id2label,
        "label2id": labels.label2id,
        "problem_type": labels.problem_type,
    }
    if head == TWO_CLASSES and (labels.problem_type != SINGLE_LABEL or labels.num_labels != 2):
        found = f"{labels.num_labels} ({', '.join(labels.names[:5])}{', ...' if labels.num_labels > 5 else ''})"
        raise ValueError(
            f"{name} has a head for exactly two classes; the label column is {labels.problem_type} with {found}. For "
            "other labels use a model with `...ForSequenceClassification`, or build one from `encoders`."
        )
    if head == ANSWERS:
        settings["num_qa_labels"] = labels.num_labels
    wanted = {ANSWERS: SINGLE_LABEL, ANSWER_SETS: MULTI_LABEL}.get(head, labels.problem_type)
    if wanted != labels.problem_type:
        column = "one class per row" if wanted == SINGLE_LABEL else "a list of classes per row, e.g. ['yes']"
        raise ValueError(f"{name} learns {wanted}: the label column must hold {column}; it is {labels.problem_type}.")
    return settings


def _head_name(class_name: str) -> str | None:
    return next((head for pattern, head in _HEADS.items() if re.fullmatch(pattern, class_name)), None)


def _modality_names(model_class: type, config: PreTrainedConfig) -> Sequence[str]:
    partitions: Mapping[str, Any] = ARCHITECTURES[model_class.__name__].partitions
    return list(next(iter(partitions.values()))(config))


def _text_limit(config: Any) -> int | None:
    """Longest text in tokens that the model has positions for."""
    text = getattr(config, "text_config", config)
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    after_padding = text.model_type in POSITIONS_AFTER_PADDING or text.model_type.startswith("bridgetower")
    return positions - (text.pad_token_id + 1 if after_padding else 0)


def _not_a_model(source: str, error: object) -> str:
    return (
        "model_name_or_path: expected a model that hf_dgl saved, or a multimodal checkpoint such as "
        f"facebook/flava-full (Hub id or folder), and cannot read {source!r} as one ({error}). For separate encoders "
        "use `encoders`."
    )
