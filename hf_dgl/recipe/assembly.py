"""From a recipe to what is trained: data, processor, model and collator, put together.

recipe -> load_splits -> build_processor -> build_model -> Parts
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset
from transformers import AutoConfig, PreTrainedConfig

from hf_dgl.architectures import modalities_of
from hf_dgl.data import CrossModalCollator, LabelSpec, NativeCollator, encode_labels, load_data, prepare_splits
from hf_dgl.data.columns import LABEL_COLUMN
from hf_dgl.data.limits import remember_background, remember_crops
from hf_dgl.data.problem_types import REGRESSION
from hf_dgl.data.streaming import head, shuffle_streams
from hf_dgl.models import CrossModalForSequenceClassification, CrossModalProcessor
from hf_dgl.models.adapters import add_adapters, add_native_adapters, quantized
from hf_dgl.models.encoder_specs import processor_source, resolve_encoder
from hf_dgl.models.native import TEXT, NativeProcessor, class_of, is_native, load_native, load_trained
from hf_dgl.models.parts import named
from hf_dgl.models.whole import load_whole

from .arguments import IN_MEMORY
from .recipe import Recipe

_TOKENIZER_ROWS = 10_000  # of a stream, for the vocabulary of a text encoder from scratch

_LABEL_ROWS = 1000  # of a stream, for mean and deviation of a regression's labels

_DATA_ARGUMENTS_OF_LATER_STEPS = (  # which need the labels, or to know which encoder reads the rows
    "allow_urls image_background class_names max_audio_seconds on_error preprocessing_num_workers shuffle_buffer_size"
).split()


@dataclass
class Parts:
    """What a recipe names, put together: see [`assemble`].

    Args:
        model, processor: New, or as the recipe's checkpoint has them.
        splits: `train`, `validation`, `test`, with encoded labels.
        collator: From rows of `splits` to the model's arguments.
    """

    model: Any
    processor: Any
    splits: Mapping[str, Any]
    collator: CrossModalCollator


def assemble(recipe: Recipe) -> Parts:
    """Data, processor and model of a recipe, ready to be trained.

    Args:
        recipe: From `load_recipe` or `make_recipe`.

    Raises:
        ValueError: on data, labels or encoders that do not fit (says what to type instead).

    Example:

        >>> parts = assemble(load_recipe("recipes/quickstart/image_text.yaml"))
        >>> parts.model(**parts.collator([parts.splits["train"][0]])).loss
    """
    _check_streaming(recipe)
    wanted: Any = recipe.model.encoders or {}
    encoders = {name: resolve_encoder(name, value) for name, value in wanted.items()}
    splits = load_splits(recipe, list(encoders) or _saved_processor(recipe).modalities)
    processor = build_processor(recipe, encoders, splits["train"])
    splits = _prepared(splits, processor, recipe, is_training=True)
    labels = _labels(recipe, splits["train"], processor)
    model = build_model(recipe, encoders, labels)
    splits = splits if labels is None else _encoded(splits, labels, recipe, is_training=True)
    splits = shuffle_streams(splits, recipe.data.shuffle_buffer_size, recipe.data.dataset_seed)
    splits = _countable(splits, recipe)
    return Parts(model, processor, splits, _collator(model, processor, recipe.data.max_audio_seconds))


def parts_to_score(model_id: str | os.PathLike[str], recipe: Recipe, split: str | None = None) -> Parts:
    """A fine-tuned model, and the one split of a recipe's data to score it on.

    Args, Raises: As [`evaluate`].

    Example:

        >>> parts_to_score("outputs/image_text", load_recipe("outputs/image_text/recipe.yaml")).splits
        {'evaluated': Dataset({...})}
    """
    _check_streaming(recipe)
    model, processor = load_trained(str(model_id), token=recipe.model.token)
    processor.allow_urls = recipe.data.allow_urls
    is_named = split not in (None, "train", "validation", "test")
    if is_named:
        recipe.data.test_split, split = split, "test"
    split = split or ("validation" if recipe.data.test_split is None else "test")
    try:
        splits = load_splits(recipe, processor.modalities)
    except ValueError as error:
        if is_named:
            raise ValueError(f"{str(error).partition(' Say which one')[0]} Choose one: `--split NAME`.") from error
        raise
    rows = _prepared(type(splits)({split: splits[split]}), processor, recipe, is_training=False)[split]
    if not writes_text(processor):
        labels = LabelSpec.from_config(model.config)
        rows = _encoded(type(splits)({split: rows}), labels, recipe, is_training=False)[split]
    rows = _countable({"evaluated": rows}, recipe)
    return Parts(model, processor, rows, _collator(model, processor, recipe.data.max_audio_seconds))


def load_splits(recipe: Recipe, modalities: Sequence[str] | None) -> DatasetDict:
    """The recipe's data as `train`, `validation` and `test`, with a column per modality and `label`.

    Args:
        recipe: Its `data` says what is read.
        modalities: The columns that are wanted; None: all.

    Raises:
        ValueError: if there is no such data set, split or column, or it is empty.
    """
    wanted: dict[str, Any] = dataclasses.asdict(recipe.data)
    for name in _DATA_ARGUMENTS_OF_LATER_STEPS:
        del wanted[name]
    if recipe.dataset is not None:
        wanted["dataset_name"] = recipe.dataset
    elif recipe.data.dataset_name == IN_MEMORY:
        raise ValueError(
            "The model was trained on a data set that was in memory, which no file holds. Name the data: "
            "`--data my.csv`, or a recipe."
        )
    seed, revision = wanted.pop("dataset_seed"), wanted.pop("dataset_revision")
    with recipe.training.main_process_first(desc="reading the data"):
        return load_data(**wanted, modalities=modalities, seed=seed, revision=revision, token=recipe.model.token)


def _check_streaming(recipe: Recipe) -> None:
    """What several processes need to share a stream."""
    if not recipe.data.streaming or recipe.training.world_size == 1:
        return
    if recipe.data.max_eval_samples is None:
        raise ValueError(
            "streaming: several processes score a split exactly only if they know its length. Say how many rows to "
            "evaluate on, e.g. `--max_eval_samples 2000` (they are kept in memory)."
        )
    accelerator_config: Any = recipe.training.accelerator_config
    accelerator_config.dispatch_batches = False  # each process takes its rows itself: texts differ in length


def _countable(splits: Any, recipe: Recipe) -> Any:
    """With several processes: streams to evaluate on as data sets with a length."""
    if not recipe.data.streaming or recipe.training.world_size == 1:
        return splits
    count = recipe.data.max_eval_samples or 0
    return {name: part if name == "train" else head(part, count) for name, part in splits.items()}


def _prepared(splits: Any, processor: Any, recipe: Recipe, is_training: bool) -> Any:
    return prepare_splits(
        splits,
        processor,
        on_error=recipe.data.on_error,
        max_audio_seconds=recipe.data.max_audio_seconds,
        num_workers=recipe.data.preprocessing_num_workers,
        output_dir=recipe.training.output_dir if is_training else None,
        is_training=is_training,
        is_main_process=recipe.training.process_index == 0,
    )


def _encoded(splits: Any, labels: LabelSpec, recipe: Recipe, is_training: bool) -> Any:
    return encode_labels(
        splits,
        labels,
        on_error=recipe.data.on_error,
        output_dir=recipe.training.output_dir if is_training else None,
        is_main_process=recipe.training.process_index == 0,
    )


def build_processor(
    recipe: Recipe, encoders: Mapping[str, Any], train_dataset: Dataset
) -> CrossModalProcessor | NativeProcessor:
    """The checkpoints' own processors, and default ones for encoders that are built from scratch.

    Args:
        recipe: For the access to the Hub.
        encoders: Modality -> what [`resolve_encoder`] gave; none: the processor of `model_name_or_path`.
        train_dataset: A tokenizer learns its vocabulary from it.
    """
    processor: CrossModalProcessor | NativeProcessor
    if encoders:
        if isinstance(train_dataset, IterableDataset):
            train_dataset = head(train_dataset, _TOKENIZER_ROWS)
        sources = {name: processor_source(encoder, train_dataset[name]) for name, encoder in encoders.items()}
        processor = CrossModalProcessor.from_encoders(sources, **_hub_kwargs(recipe))
    else:
        processor = _saved_processor(recipe)
    remember_crops(processor, recipe.data.max_audio_seconds)
    remember_background(processor, recipe.data.image_background)
    processor.allow_urls = recipe.data.allow_urls  # for this run: not saved
    return processor


def _labels(recipe: Recipe, train_dataset: Any, processor: Any) -> LabelSpec | None:
    """What the labels mean; None where the model writes them as text."""
    if writes_text(processor):
        return None
    names = recipe.data.class_names
    mapping: Any = recipe.data.column_mapping or {}
    column = mapping.get(LABEL_COLUMN)
    if names is None and isinstance(column, (list, tuple)):
        names = list(column)
    labels = LabelSpec.from_dataset(train_dataset, recipe.model.problem_type, class_names=names)
    if labels.problem_type == REGRESSION and isinstance(train_dataset, IterableDataset):  # its scale: the first rows'
        known = head(train_dataset, _LABEL_ROWS)
        labels = LabelSpec.from_dataset(known, labels.problem_type, class_names=labels.names)
    return labels


def writes_text(processor: Any) -> bool:
    return isinstance(processor, NativeProcessor) and processor.head == TEXT


def build_model(recipe: Recipe, encoders: Mapping[str, Any], labels: LabelSpec | None) -> Any:
    """The recipe's encoders and fusion, with a head for these labels; inside a `PeftModel` if the recipe wants LoRA.

    Args:
        recipe: Its `model` holds the fusion's settings.
        encoders: Modality -> what [`resolve_encoder`] gave; none: the model of `model_name_or_path`.
        labels: From the training split; None for a checkpoint that writes text.
    """
    if not encoders and is_native(str(recipe.model.model_name_or_path), **_hub_kwargs(recipe)):
        return _native_model(recipe, labels)
    assert labels is not None
    head = labels.to_config()
    if not encoders:  # a new head, where the labels are not as many as those of the saved one
        source = str(recipe.model.model_name_or_path)
        saved = AutoConfig.from_pretrained(source, **_hub_kwargs(recipe))
        if (saved.problem_type, saved.num_labels) == (labels.problem_type, labels.num_labels):
            head = {key: value for key, value in head.items() if key not in ("label_mean", "label_std")}
        settings: dict[str, Any] = {**head, **_hub_kwargs(recipe)}
        with named("model_name_or_path", source):
            model = load_whole(CrossModalForSequenceClassification, source, True, new=("classifier.",), **settings)
    else:
        if recipe.model.bits:
            encoders = quantized(encoders, recipe.model.bits)
        names = (
            "fusion_type num_fusion_layers fusion_hidden_size num_fusion_heads fusion_dropout fusion_read_out".split()
        )
        fusion = {name: value for name in names if (value := getattr(recipe.model, name)) is not None}
        with _explained(recipe):
            model = CrossModalForSequenceClassification.from_encoders(
                encoders, **head, **fusion, **_hub_kwargs(recipe)
            )
    return model if recipe.model.peft is None else _with_adapters(model, recipe, encoders)


@contextmanager
def _explained(recipe: Recipe) -> Iterator[None]:
    """What encoders from scratch raise whose settings do not go together: they check few of them themselves."""
    try:
        yield
    except (TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, RuntimeError) as error:
        wanted: Any = recipe.model.encoders
        from_scratch = [name for name, encoder in wanted.items() if isinstance(encoder, Mapping)]
        if not from_scratch:
            raise
        raise ValueError(
            f"encoders: no model can be built from the settings of {' and '.join(from_scratch)} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}). Do their widths, heads and sizes go "
            "together?"
        ) from error


def _with_adapters(model: CrossModalForSequenceClassification, recipe: Recipe, encoders: Mapping[str, Any]) -> Any:
    wanted: Any = recipe.model
    base = {name: getattr(wanted, name) for name in ("encoders", "model_name_or_path", "revision", "bits")}
    return add_adapters(
        model,
        wanted.peft,
        new=[name for name, encoder in encoders.items() if isinstance(encoder, PreTrainedConfig)],
        frozen=recipe.training.freeze or [],
        base={name: value for name, value in base.items() if value is not None},
    )


def _native_model(recipe: Recipe, labels: LabelSpec | None) -> Any:
    source, hub = str(recipe.model.model_name_or_path), _hub_kwargs(recipe)
    kind = class_of(AutoConfig.from_pretrained(source, **hub), recipe.model.model_class)
    with named("model_name_or_path", source):
        model = load_native(source, kind, labels, **hub)
    if recipe.model.peft is None:
        return model
    wanted: Any = recipe.model.peft
    base = {"model_name_or_path": source, "model_class": kind.__name__, "revision": recipe.model.revision}
    return add_native_adapters(model, wanted, modalities_of(model, recipe.training.partition), base)


def _saved_processor(recipe: Recipe) -> CrossModalProcessor | NativeProcessor:
    source, hub = str(recipe.model.model_name_or_path), _hub_kwargs(recipe)
    if is_native(source, **hub):
        return NativeProcessor.from_pretrained(source, recipe.model.model_class, **hub)
    return CrossModalProcessor.from_pretrained(source, **hub)


def _hub_kwargs(recipe: Recipe) -> dict[str, Any]:
    model = recipe.model
    return {"token": model.token, "revision": model.revision, "trust_remote_code": model.trust_remote_code}


def _collator(model: Any, processor: Any, max_audio_seconds: float | None = None) -> CrossModalCollator:
    labels = None if writes_text(processor) else LabelSpec.from_config(model.config)
    kind = NativeCollator if isinstance(processor, NativeProcessor) else CrossModalCollator
    return kind(processor, labels, max_audio_seconds)
