"""From what a user names (a recipe, a checkpoint, a class) to a model that can be inspected, and a batch for it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import PreTrainedTokenizerBase

import hf_dgl.models
from hf_dgl.architectures import ARCHITECTURES, architecture_of, disentangle, modalities_of
from hf_dgl.data import CrossModalCollator, LabelSpec
from hf_dgl.data.native_collator import NativeCollator
from hf_dgl.method.modalities import did_you_mean
from hf_dgl.models.native import NativeProcessor, class_of, head_of, is_native, load_native, load_trained
from hf_dgl.models.parts import named
from hf_dgl.recipe.shipped import shipped_recipes
from hf_dgl.reports.model_tree import Inspection, inspect_model
from hf_dgl.training.groups import freeze

_WORDS = "a cat and two dogs play with three red balls in front of an old house".split()


def inspect_source(
    source: str,
    check: bool = False,
    model_class: str | None = None,
    partition: str | None = None,
    overrides: Sequence[str] = (),
) -> Inspection:
    """Describes what a user names: the work of `hf-dgl inspect`.

    Args:
        source: A recipe, a folder, a Hub id, or a class of the table (its default config, without weights).
        check: Whether to run the checks: on rows of a recipe's data, or on generated ones.
        model_class: Class to load a checkpoint as. Default: the one that it was saved from.
        partition: For interleaved models. Default: the table's first, or the recipe's.
        overrides: For a recipe, as on the command line of `hf-dgl train`.

    Raises:
        ValueError: if there is no such model, or DGL is undefined for it.

    Example:

        >>> inspect_source("LxmertForQuestionAnswering").groups["fusion"].share
        0.37
    """
    model, batch, settings = load_model_and_batch(source, check, model_class, overrides)
    known = architecture_of(model)
    modalities = modalities_of(model, partition or settings.pop("partition", None))
    with disentangle(model, modalities, **settings.pop("disentangle", {})) as handle:
        freeze(handle.partition, settings.pop("freeze", None) or [])
        found = inspect_model(handle, batch)
    found.absent, found.method, found.note = known.absent, known.method, known.note
    return found


def model_of_class(name: str) -> torch.nn.Module:
    """A class of the table with its default config and without weights (meta tensors): shapes and sizes only.

    Args:
        name: Of the class, e.g. `BridgeTowerForImageAndTextRetrieval`.

    Raises:
        ValueError: if DGL is undefined for the class (says why), or it has no default config.

    Example:

        >>> sum(p.numel() for p in model_of_class("LxmertForQuestionAnswering").parameters())
        209124098
    """
    if ARCHITECTURES[name].refused:
        raise ValueError(f"{name}: {ARCHITECTURES[name].refused}")
    kind = getattr(transformers, name, None) or getattr(hf_dgl.models, name)
    try:
        with torch.device("meta"):
            return kind(kind.config_class())
    except Exception as error:  # whatever a default config lacks
        raise ValueError(f"{name} has no default config to build it from ({error}). Name a checkpoint.") from error


def load_checkpoint(source: str, model_class: str | None = None, **hub: Any) -> tuple[Any, Any]:
    """Model and processor of a Hub id or folder: trained by hf_dgl, or a multimodal checkpoint as it is.

    Args:
        source: Hub id or folder.
        model_class: For a checkpoint as it is: the class to load it as. Default: the one that it was saved from.
        **hub: `token`, `revision`, `trust_remote_code`.

    Raises:
        ValueError: if it is no such model.

    Example:

        >>> model, processor = load_checkpoint("facebook/flava-full", "FlavaForSequenceClassification")
    """
    if not is_native(source, **hub):
        return load_trained(source, **hub)
    processor = NativeProcessor.from_pretrained(source, model_class, **hub)
    kind = class_of(processor.config, model_class)
    with named("model", source):
        return load_native(source, kind, None, **hub), processor


def example_batch(model: Any, processor: Any, rows: int = 4) -> dict[str, Any]:
    """Generated rows (noise pictures, random sentences, noise sounds) as arguments of the model, with labels.

    Args:
        model: Of a known architecture.
        processor: Its processor.
        rows: How many.

    Example:

        >>> sorted(example_batch(model, processor))
        ['attention_mask', 'input_ids', 'labels', 'pixel_values', 'token_type_ids']
    """
    draw = np.random.default_rng(0)
    generated: list[dict[str, Any]] = []
    for row in range(rows):
        generated.append({name: _value(name, model, processor, row, draw) for name in processor.modalities})
    is_native_processor = isinstance(processor, NativeProcessor)
    if is_native_processor and head_of(type(model)) == "text":
        return dict(NativeCollator(processor, None)([{**row, "label": "yes"} for row in generated]))
    labels = LabelSpec.from_config(model.config)
    batch = dict((NativeCollator if is_native_processor else CrossModalCollator)(processor, None)(generated))
    return {**batch, "labels": _labels(labels, rows)}


def _value(name: str, model: Any, processor: Any, row: int, draw: np.random.Generator) -> Any:
    part = processor.processors[name]
    if hasattr(part, "read_value"):  # region features
        widths = {"visual_pos": 4, "visual_feats": getattr(model.config, "visual_feat_dim", 0)}
        return draw.random((8, widths.get(name) or model.config.visual_embedding_dim)).astype(np.float32)
    rate = processor.sampling_rate(name)
    if rate is not None:
        return draw.uniform(-1, 1, size=rate).astype(np.float32)
    if isinstance(part, PreTrainedTokenizerBase):
        return " ".join(draw.choice(_WORDS, size=5 + row))
    return Image.fromarray(draw.integers(0, 255, (64, 64, 3), dtype=np.uint8))


def _labels(labels: LabelSpec, rows: int) -> torch.Tensor:
    if labels.problem_type == "single_label_classification":
        return torch.arange(rows) % labels.num_labels
    if labels.problem_type == "regression":
        return torch.arange(rows, dtype=torch.float32)
    return (torch.arange(rows)[:, None] + torch.arange(labels.num_labels) % 2).float() % 2


def load_model_and_batch(
    source: str, wants_batch: bool, model_class: str | None = None, overrides: Sequence[str] = ()
) -> tuple[Any, dict[str, Any] | None, dict[str, Any]]:
    """What a user names, as a model, a batch for it if wanted, and a recipe's settings of the method.

    Args:
        source: A recipe, a folder, a Hub id, or a class of the table.
        wants_batch: Whether to make a batch (a class alone has no weights to run).
        model_class: Class to load a checkpoint as.
        overrides: For a recipe.

    Raises:
        ValueError: if there is no such model.
    """
    if source.endswith((".yaml", ".yml")) or source in shipped_recipes():
        from hf_dgl.recipe.assembly import assemble
        from hf_dgl.recipe.recipe import load_recipe

        recipe = load_recipe(source, overrides)
        parts = assemble(recipe)
        rows = list(itertools.islice(parts.splits["train"], 4))
        training = recipe.training
        settings = {"disentangle": training.disentangle_kwargs(), "freeze": training.freeze}
        return parts.model, dict(parts.collator(rows)), settings | {"partition": training.partition}
    if overrides:
        raise ValueError(f"Did not understand {' '.join(overrides)!r}: only a recipe takes further keys.")
    if source in ARCHITECTURES:
        if wants_batch:
            raise ValueError(f"--check needs weights: name a checkpoint of {source} (Hub id or folder), or a recipe.")
        return model_of_class(source), None, {}
    if "/" not in source and not os.path.exists(source):
        raise ValueError(
            f"{source!r} is neither a recipe, a folder, a Hub id nor a known class"
            f"{did_you_mean(source, list(ARCHITECTURES))} `hf-dgl inspect --list` lists the classes."
        )
    model, processor = load_checkpoint(source, model_class)
    return model, example_batch(model, processor) if wants_batch else None, {}
