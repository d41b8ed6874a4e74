"""Everything that `hf-dgl train` does, as functions: data, processor, model, training, scores, files.

recipe -> load_splits -> build_processor -> build_model -> DGLTrainer -> output_dir
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset
from transformers import AutoConfig, PreTrainedConfig, enable_full_determinism, set_seed
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from hf_dgl.adapters import ADAPTER_FILES, add_adapters, check_settings, load_model, quantized
from hf_dgl.checkpoints import explaining_a_full_disk, newest_complete
from hf_dgl.data import CrossModalCollator, LabelSpec, NativeCollator, load_data, prepare_splits
from hf_dgl.data.labels import SINGLE_LABEL
from hf_dgl.data.streaming import head, shuffle_streams
from hf_dgl.encoder_specs import processor_source, resolve_encoder
from hf_dgl.models import CrossModalForSequenceClassification, CrossModalProcessor
from hf_dgl.native import TEXT, NativeProcessor, class_of, is_native, load_native, load_trained
from hf_dgl.recipe import Recipe
from hf_dgl.results import Table, plain_metrics, results_table
from hf_dgl.trainer import DGLTrainer
from hf_dgl.training_args import DGLTrainingArguments
from hf_dgl.training_report import write_report

logger = logging.get_logger(__name__)

_TOKENIZER_ROWS = 10_000  # of a stream, for the vocabulary of a text encoder from scratch

_DATA_ARGUMENTS_OF_LATER_STEPS = (  # which need the labels, or to know which encoder reads the rows
    "class_names max_audio_seconds on_error preprocessing_num_workers shuffle_buffer_size"
).split()
_EVALUATION_ARGUMENTS = (
    "method partition seed use_cpu bf16 fp16 bf16_full_eval fp16_full_eval disable_tqdm log_level "
    "per_device_eval_batch_size dataloader_num_workers eval_accumulation_steps"
).split()


@dataclass
class FinetuneResult:
    """What [`finetune`] gives back.

    Args:
        model, processor, trainer: As they are after training.
        metrics: Stage -> metrics. `before` and `validation`: the validation split, untrained and trained; `test`: the
            test split, scored once; `train`: the Trainer's own figures (`train_loss`, `train_runtime`, ...).
        output_dir: Where everything was saved.
    """

    model: Any
    processor: CrossModalProcessor | NativeProcessor
    trainer: DGLTrainer
    metrics: dict[str, dict[str, float]]
    output_dir: str

    @property
    def is_main_process(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.trainer.is_world_process_zero()

    def table(self) -> Table:
        """The scores as a table: fused and each modality alone, before, after and on the test split."""
        assert self.trainer.disentangled is not None
        modalities = list(self.trainer.disentangled.partition.modalities)
        return results_table(self.metrics, modalities, self.model.config.problem_type or SINGLE_LABEL)


def finetune(recipe: Recipe) -> FinetuneResult:
    """Fine-tunes as the recipe says and saves everything into its `output_dir`.

    Written there, by the main process: the model (`config.json`, `model.safetensors`), the processor, `README.md` (the
    model card) with its pictures, `report.html`, `metrics.json`, `recipe.yaml` (the recipe as it was run, without
    tokens), the Trainer's checkpoints.

    Args:
        recipe: From `load_recipe` or `make_recipe`.

    Raises:
        ValueError: on data, labels or encoders that do not fit (says what to type instead).
        FloatingPointError: when the loss becomes NaN or infinite; nothing is overwritten then.
        OSError: when the disk is full; complete checkpoints stay as they are.

    Example:

        >>> result = finetune(load_recipe("recipes/quickstart/image_text.yaml", ["--max_steps=20"]))
        >>> result.metrics["test"]["accuracy"]
    """
    training = recipe.training
    if isinstance(recipe.model.peft, Mapping):
        check_settings(recipe.model.peft)  # mistakes are told before anything is read
    if recipe.model.merges_adapters and training.push_to_hub and training.hub_strategy != HubStrategy.END:
        training.hub_strategy = HubStrategy.END
        logger.info("`hub_strategy: end`: adapters that are pushed on the way would stay beside the merged model.")
    if recipe.data.streaming and training.max_steps <= 0:
        raise ValueError(
            "streaming: nobody knows how long a stream is, so say how many steps to train, e.g. `--max_steps 1000` "
            f"(got max_steps={training.max_steps}). An epoch has rows / per_device_train_batch_size steps."
        )
    _prepare(training)
    with _token_kept_out_of_files(training):
        parts = assemble(recipe)
        splits = parts.splits
        trainer = _trainer(training, parts.model, parts.processor, splits, parts.collator)
        trainer.recipe = recipe.to_yaml()
        checkpoint = _checkpoint(training)
        training.eval_on_start = checkpoint is None and "validation" in splits
        outcome = trainer.train(resume_from_checkpoint=checkpoint)
        metrics = _score(trainer, splits.get("test"))
        metrics["train"] = outcome.metrics
        with explaining_a_full_disk(str(training.output_dir)):
            _save(trainer, recipe, metrics)
    model = trainer.accelerator.unwrap_model(trainer.model)
    return FinetuneResult(model, parts.processor, trainer, metrics, str(training.output_dir))


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
    splits = splits if labels is None else labels.encode(splits)
    splits = shuffle_streams(splits, recipe.data.shuffle_buffer_size, recipe.data.dataset_seed)
    splits = _countable(splits, recipe)
    return Parts(model, processor, splits, _collator(model, processor, recipe.data.max_audio_seconds))


def evaluate(model_id: str | os.PathLike[str], recipe: Recipe, split: str | None = None) -> dict[str, float]:
    """Scores a fine-tuned model on one split of a recipe's data.

    Args:
        model_id: A folder that [`finetune`] wrote, or a Hub id.
        recipe: Names the data; its model and method do not matter here.
        split: `train`, `validation`, `test`, or another split of the data set. Default: the recipe's test split.

    Returns:
        Metrics without prefix: `accuracy`, `accuracy_<modality>`, `f1`, ..., `loss`.

    Raises:
        ValueError: if the data has no such split, or labels that the model does not know.

    Example:

        >>> evaluate("outputs/image_text", load_recipe("outputs/image_text/recipe.yaml"))["accuracy_text"]
    """
    wanted = recipe.training
    training = DGLTrainingArguments(
        str(model_id) if os.path.isdir(model_id) else wanted.output_dir,
        **{name: getattr(wanted, name) for name in _EVALUATION_ARGUMENTS},
    )
    _prepare(training)
    parts = parts_to_score(model_id, recipe, split)
    trainer = _trainer(training, parts.model, parts.processor, {}, parts.collator)
    (rows,) = parts.splits.values()
    return plain_metrics(trainer.predict(rows).metrics or {}, "test")


def parts_to_score(model_id: str | os.PathLike[str], recipe: Recipe, split: str | None = None) -> Parts:
    """A fine-tuned model, and the one split of a recipe's data to score it on.

    Args, Raises: As [`evaluate`].

    Example:

        >>> parts_to_score("outputs/image_text", load_recipe("outputs/image_text/recipe.yaml")).splits
        {'evaluated': Dataset({...})}
    """
    _check_streaming(recipe)
    model, processor = load_trained(str(model_id), token=recipe.model.token)
    if split not in (None, "train", "validation", "test"):
        recipe.data.test_split, split = split, "test"
    split = split or ("validation" if recipe.data.test_split is None else "test")
    splits = load_splits(recipe, processor.modalities)
    rows = _prepared(type(splits)({split: splits[split]}), processor, recipe, is_training=False)[split]
    if not _writes_text(processor):
        rows = LabelSpec.from_config(model.config).encode(rows, split)
    rows = _countable({"evaluated": rows}, recipe)
    return Parts(model, processor, rows, _collator(model, processor, recipe.data.max_audio_seconds))


def load_splits(recipe: Recipe, modalities: Sequence[str]) -> DatasetDict:
    """The recipe's data as `train`, `validation` and `test`, with a column per modality and `label`.

    Args:
        recipe: Its `data` says what is read.
        modalities: The columns that are wanted.

    Raises:
        ValueError: if there is no such data set, split or column, or it is empty.
    """
    wanted = dataclasses.asdict(recipe.data)
    for name in _DATA_ARGUMENTS_OF_LATER_STEPS:
        del wanted[name]
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


def build_processor(
    recipe: Recipe, encoders: Mapping[str, Any], train_dataset: Dataset
) -> CrossModalProcessor | NativeProcessor:
    """The checkpoints' own processors, and default ones for encoders that are built from scratch.

    Args:
        recipe: For the access to the Hub.
        encoders: Modality -> what [`resolve_encoder`] gave; none: the processor of `model_name_or_path`.
        train_dataset: A tokenizer learns its vocabulary from it.
    """
    if not encoders:
        return _saved_processor(recipe)
    if isinstance(train_dataset, IterableDataset):
        train_dataset = head(train_dataset, _TOKENIZER_ROWS)
    sources = {name: processor_source(encoder, train_dataset[name]) for name, encoder in encoders.items()}
    return CrossModalProcessor.from_encoders(sources, **_hub_kwargs(recipe))


def _labels(recipe: Recipe, train_dataset: Any, processor: Any) -> LabelSpec | None:
    """What the labels mean; None where the model writes them as text."""
    if _writes_text(processor):
        return None
    return LabelSpec.from_dataset(train_dataset, recipe.model.problem_type, class_names=recipe.data.class_names)


def _writes_text(processor: Any) -> bool:
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
    head: dict[str, Any] = {
        "num_labels": labels.num_labels,
        "id2label": labels.id2label,
        "label2id": labels.label2id,
        "problem_type": labels.problem_type,
    }
    if not encoders:  # a new head, where the labels are not as many as those of the saved one
        model = CrossModalForSequenceClassification.from_pretrained(
            recipe.model.model_name_or_path, ignore_mismatched_sizes=True, **head, **_hub_kwargs(recipe)
        )
    else:
        if recipe.model.bits:
            encoders = quantized(encoders, recipe.model.bits)
        names = ("fusion_type", "num_fusion_layers", "fusion_hidden_size", "num_fusion_heads", "fusion_dropout")
        fusion = {name: value for name in names if (value := getattr(recipe.model, name)) is not None}
        model = CrossModalForSequenceClassification.from_encoders(encoders, **head, **fusion, **_hub_kwargs(recipe))
    return model if recipe.model.peft is None else _with_adapters(model, recipe, encoders)


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
    if recipe.model.peft is not None:
        raise ValueError(
            "peft: LoRA is offered for models that are built from `encoders`. For a multimodal checkpoint give "
            "DGLTrainer the model that `peft.get_peft_model` returns."
        )
    source, hub = str(recipe.model.model_name_or_path), _hub_kwargs(recipe)
    kind = class_of(AutoConfig.from_pretrained(source, **hub), recipe.model.model_class)
    return load_native(source, kind, labels, **hub)


def _saved_processor(recipe: Recipe) -> CrossModalProcessor | NativeProcessor:
    source, hub = str(recipe.model.model_name_or_path), _hub_kwargs(recipe)
    if is_native(source, **hub):
        return NativeProcessor.from_pretrained(source, recipe.model.model_class, **hub)
    return CrossModalProcessor.from_pretrained(source, **hub)


def _hub_kwargs(recipe: Recipe) -> dict[str, Any]:
    model = recipe.model
    return {"token": model.token, "revision": model.revision, "trust_remote_code": model.trust_remote_code}


def _prepare(training: DGLTrainingArguments) -> None:
    """Seeds everything before the model's new weights are drawn (the Trainer would do so only later)."""
    enable_full_determinism(training.seed) if training.full_determinism else set_seed(training.seed)
    if training.device.type == "cpu":
        training.dataloader_pin_memory = False  # there is nothing to pin for, and torch warns at every data loader


def _collator(model: Any, processor: Any, max_audio_seconds: float | None = None) -> CrossModalCollator:
    labels = None if _writes_text(processor) else LabelSpec.from_config(model.config)
    kind = NativeCollator if isinstance(processor, NativeProcessor) else CrossModalCollator
    return kind(processor, labels, max_audio_seconds)


def _trainer(
    training: DGLTrainingArguments,
    model: Any,
    processor: Any,
    splits: Mapping[str, Dataset],
    collator: CrossModalCollator,
) -> DGLTrainer:
    if _writes_text(processor):  # there are no class scores, and what the model gives besides would fill the memory
        training.prediction_loss_only = True
    return DGLTrainer(
        model=model,
        args=training,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        data_collator=collator,
        processing_class=processor,
    )


def _score(trainer: DGLTrainer, test_dataset: Dataset | None) -> dict[str, dict[str, float]]:
    """Validation before (the evaluation at step 0, also when this run was resumed) and after training; test once."""
    metrics = {}
    before = next((entry for entry in trainer.state.log_history if entry["step"] == 0 and "eval_loss" in entry), None)
    if before is not None:
        metrics["before"] = plain_metrics(before, "eval")
    if trainer.eval_dataset is not None:
        metrics["validation"] = plain_metrics(trainer.evaluate(), "eval")
    if test_dataset is not None:
        # `predict`, not `evaluate`: early stopping and the like must not see the test split.
        metrics["test"] = plain_metrics(trainer.predict(test_dataset).metrics or {}, "test")
    return metrics


def _save(trainer: DGLTrainer, recipe: Recipe, metrics: Mapping[str, Any]) -> None:
    if trainer.is_world_process_zero():
        folder = Path(str(trainer.args.output_dir))
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    if recipe.model.merges_adapters:
        _merge(trainer, recipe)
    trainer.save_state()
    if trainer.is_world_process_zero():
        write_report(str(trainer.args.output_dir))
    trainer.create_model_card()
    trainer.save_model()  # last: with `push_to_hub` it uploads the folder


def _merge(trainer: DGLTrainer, recipe: Recipe) -> None:
    """Saves the adapters apart, and goes on with a model into which they are merged.

    It is put together from what was saved: so the adapters are known to load.
    """
    folder = Path(str(trainer.args.output_dir))
    trainer.save_model(str(folder / "adapter"), _internal_call=True)
    trainer.accelerator.wait_for_everyone()
    hub = {"token": recipe.model.token, "trust_remote_code": recipe.model.trust_remote_code}
    trainer.continue_with(load_model(folder / "adapter", **hub).merge_and_unload())
    if trainer.args.should_save:
        for name in ADAPTER_FILES:  # of an earlier run that did not merge
            (folder / name).unlink(missing_ok=True)


def _checkpoint(training: DGLTrainingArguments) -> str | bool | None:
    """`resume_from_checkpoint` as the Trainer wants it: a folder, True for the last complete one, None for none."""
    value = training.resume_from_checkpoint
    wanted: Any = {"true": True, "false": None, "no": None}.get(str(value).lower(), value)
    if wanted is True and newest_complete(str(training.output_dir)) is None:
        # A run may be killed before its first checkpoint, and be started again by the same command.
        logger.warning(
            f"There is no complete checkpoint in {training.output_dir}: training starts from the beginning."
        )
        return None
    return wanted


@contextmanager
def _token_kept_out_of_files(training: DGLTrainingArguments) -> Iterator[None]:
    """The Trainer saves its arguments, `hub_token` included, in training_args.bin: let the environment hold it."""
    if training.hub_token is None:
        yield
        return
    before = os.environ.get("HF_TOKEN")
    os.environ["HF_TOKEN"], training.hub_token = training.hub_token, None
    try:
        yield
    finally:
        os.environ.pop("HF_TOKEN")
        if before is not None:
            os.environ["HF_TOKEN"] = before
