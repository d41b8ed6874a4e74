"""Everything that `hf-dgl train` does, as functions: data, processor, model, training, scores, files.

recipe -> assemble (`assembly.py`) -> DGLTrainer -> output_dir
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import constants
from transformers import enable_full_determinism, set_seed
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from hf_dgl.data import CrossModalCollator
from hf_dgl.data.columns import LABEL_COLUMN
from hf_dgl.data.constant import no_better_than_constant
from hf_dgl.data.problem_types import SINGLE_LABEL
from hf_dgl.inference.answers import FUSED, write_answers
from hf_dgl.method.methods import AS_PUBLISHED
from hf_dgl.models import CrossModalProcessor
from hf_dgl.models.adapters import ADAPTER_FILES, check_settings, load_model
from hf_dgl.models.native import NativeProcessor
from hf_dgl.reports.drawing import check_drawing
from hf_dgl.reports.result_tables import Table, plain_metrics, results_table
from hf_dgl.reports.training_report import write_report
from hf_dgl.training.answer_metrics import score_answers
from hf_dgl.training.arguments import DGLTrainingArguments
from hf_dgl.training.checkpoints import newest_complete
from hf_dgl.training.disk import explaining_a_full_disk
from hf_dgl.training.terminal import TrainingOutput
from hf_dgl.training.trainer import DGLTrainer

from .assembly import Parts, assemble, parts_to_score, writes_text
from .environment import environment, peak_memory_mib
from .keywords import recipe_of
from .output_folder import alone_in_its_folder, check_loggers, check_output_folder, remove_old_checkpoints
from .recipe import Recipe

logger = logging.get_logger(__name__)

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

    @property
    def hub_address(self) -> str:
        """Where `push_to_hub` put the model; empty if it was not asked for."""
        is_pushed = self.trainer.args.push_to_hub and self.trainer.hub_model_id is not None
        return f"{constants.ENDPOINT}/{self.trainer.hub_model_id}" if is_pushed else ""

    @property
    def modalities(self) -> list[str]:
        """Their names."""
        assert self.trainer.disentangled is not None
        return list(self.trainer.disentangled.partition.modalities)

    def table(self) -> Table:
        """The scores as a table: fused and each modality alone, before, after and on the test split."""
        return results_table(self.metrics, self.modalities, self.model.config.problem_type or SINGLE_LABEL)


def finetune(
    recipe: Recipe | str | os.PathLike[str] | None = None,
    data: Any = None,
    before_training: Callable[[DGLTrainer], None] | None = None,
    output: TrainingOutput | None = None,
    **keys: Any,
) -> FinetuneResult:
    """Fine-tunes as a recipe says and saves everything into its `output_dir`: all of `hf-dgl train`, in Python.

    Written there, by the main process: the model (`config.json`, `model.safetensors`), the processor, `README.md` (the
    model card) with its pictures, `report.html`, `metrics.json`, `recipe.yaml` (the recipe as it was run, without
    tokens), `environment.json` (commit, versions, machine, and the memory that training took), the Trainer's
    checkpoints.

    Args:
        recipe: From `load_recipe` or `make_recipe`; a YAML file, or the name of a recipe that came along
            (`quickstart/image_text`). None: `data` and the keywords say it all, with the defaults of `hf-dgl train`
            without a recipe.
        data: A csv, json or parquet file, a folder, a Hub id; a `datasets.Dataset` or `DatasetDict`. Default: what the
            recipe names.
        before_training: Is handed the Trainer, e.g. to add callbacks.
        output: What is shown meanwhile. Default: what `hf-dgl train` shows.
        **keys: Keys of a recipe, which win over the file: `encoders`, `learning_rate`, `method`, ...; and the columns
            of modalities and label where they bear other names: `image="photo"`, `label="kind"`.

    Raises:
        ValueError: on data, labels or encoders that do not fit, or if the output folder holds a model already, or
            another run is writing into it (says what to type instead).
        FloatingPointError: when the loss becomes NaN or infinite; nothing is overwritten then.
        OSError: the output folder cannot be written, or the disk is full; complete checkpoints stay as they are.

    Example:

        >>> result = finetune("quickstart/image_text", max_steps=20)
        >>> result.metrics["test"]["accuracy"]
        >>> encoders = {"image": "google/vit-base-patch16-224", "text": "FacebookAI/roberta-base"}
        >>> finetune(data="my.csv", image="photo", text="title", label="kind", encoders=encoders).output_dir
        'outputs/my'
    """
    if not isinstance(recipe, Recipe):
        recipe = recipe_of(recipe, data, keys)
    elif data is not None or keys:
        raise ValueError("A `Recipe` says it all: put `data` and keywords into it, or give its file in place of it.")
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
    check_drawing()
    check_loggers(training)
    check_output_folder(training)
    prepare(training)
    made_by = environment()  # as of now: the source may be changed while this trains
    if training.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(training.device)
    output = output or TrainingOutput()
    with _token_kept_out_of_files(training), closing(output):
        parts = assemble(recipe)
        splits = parts.splits
        trainer = build_trainer(training, parts.model, parts.processor, splits, parts.collator)
        trainer.recipe = recipe.to_yaml()
        checkpoint = _checkpoint(training)
        trainer.args.eval_on_start = checkpoint is None and "validation" in splits
        output.watch(trainer, splits.get("test"))
        if before_training is not None:
            before_training(trainer)
        with alone_in_its_folder(training):
            remove_old_checkpoints(training)
            outcome = trainer.train(resume_from_checkpoint=checkpoint)
            made_by["peak_memory_mib"] = peak_memory_mib(training.device)
            with explaining_a_full_disk(str(training.output_dir)):
                with _kept_if_an_error_follows(trainer):
                    metrics = _score(trainer, splits.get("test"))
                    _warn_of_no_use(metrics, splits, parts.processor, parts.model.config.problem_type)
                    metrics["train"] = outcome.metrics
                    _describe(trainer, recipe, metrics, made_by)
                trainer.save_model()  # last: with `push_to_hub` it uploads the folder
    model = trainer.accelerator.unwrap_model(trainer.model)
    return FinetuneResult(model, parts.processor, trainer, metrics, str(training.output_dir))


def evaluate(model_id: str | os.PathLike[str], recipe: Recipe, split: str | None = None) -> dict[str, float]:
    """Scores a fine-tuned model on one split of a recipe's data.

    Args:
        model_id: A folder that [`finetune`] wrote, or a Hub id.
        recipe: Names the data; its model and method do not matter here.
        split: `train`, `validation`, `test`, or another split of the data set. Default: the recipe's test split.

    Returns:
        Metrics without prefix: `accuracy`, `accuracy_<modality>`, `f1`, ..., `loss`. Of a model that writes text:
        `exact_match`, `vqa_accuracy`, `wer` of its answers and those of each modality alone, and losses.

    Raises:
        ValueError: if the data has no such split, or labels that the model does not know.

    Example:

        >>> evaluate("outputs/image_text", load_recipe("outputs/image_text/recipe.yaml"))["accuracy_text"]
    """
    trainer, parts = trainer_to_score(model_id, recipe, split)
    (rows,) = parts.splits.values()
    metrics = plain_metrics(trainer.predict(rows).metrics or {}, "test")
    return metrics | (_score_answers(trainer, rows) if writes_text(parts.processor) else {})


def trainer_to_score(
    model_id: str | os.PathLike[str], recipe: Recipe, split: str | None = None
) -> tuple[DGLTrainer, Parts]:
    """A Trainer that trains nothing, around a fine-tuned model; and the model with the one split to score it on.

    Args, Raises: As [`evaluate`].

    Example:

        >>> trainer, parts = trainer_to_score("outputs/image_text", load_recipe("outputs/image_text/recipe.yaml"))
        >>> trainer.predict_each_modality(parts.splits["evaluated"]).predictions["image"].shape
        (300, 10)
    """
    wanted = recipe.training
    training = DGLTrainingArguments(
        str(model_id) if os.path.isdir(model_id) else wanted.output_dir,
        **{name: getattr(wanted, name) for name in _EVALUATION_ARGUMENTS} | _method_of_evaluation(wanted),
    )
    prepare(training)
    parts = parts_to_score(model_id, recipe, split)
    return build_trainer(training, parts.model, parts.processor, {}, parts.collator), parts


def _score_answers(trainer: DGLTrainer, rows: Any) -> dict[str, float]:
    """What a model that writes text is scored by: its answers, with all modalities and with each alone."""
    rows = list(rows)
    references = [row[LABEL_COLUMN] for row in rows]
    questions = [{name: value for name, value in row.items() if name != LABEL_COLUMN} for row in rows]
    model = trainer.accelerator.unwrap_model(trainer.model)
    answers = write_answers(
        model, trainer.data_collator, questions, trainer.args.per_device_eval_batch_size, trainer.args.partition
    )
    metrics: dict[str, float] = {}
    for name, texts in answers.items():
        suffix = "" if name == FUSED else f"_{name}"
        metrics |= {f"{key}{suffix}": value for key, value in score_answers(texts, references).items()}
    return metrics


def _method_of_evaluation(wanted: DGLTrainingArguments) -> dict[str, str]:
    """Baselines ask for a model and data that they can train; to be scored, any will do."""
    return {"method": "joint"} if wanted.method in AS_PUBLISHED else {}


def prepare(training: DGLTrainingArguments) -> None:
    """Seeds everything before the model's new weights are drawn (the Trainer would do so only later).

    Example:

        >>> prepare(recipe.training)
        >>> parts = assemble(recipe)
    """
    enable_full_determinism(training.seed) if training.full_determinism else set_seed(training.seed)
    if training.device.type == "cpu":
        training.dataloader_pin_memory = False  # there is nothing to pin for, and torch warns at every data loader


def build_trainer(
    training: DGLTrainingArguments,
    model: Any,
    processor: Any,
    splits: Mapping[str, Dataset],
    collator: CrossModalCollator,
) -> DGLTrainer:
    """The Trainer of what [`assemble`] put together.

    Args:
        training: Of the recipe.
        model, processor, collator: See [`hf_dgl.recipe.assembly.Parts`].
        splits: Of which `train` and `validation` are used, if they are there.

    Example:

        >>> build_trainer(recipe.training, parts.model, parts.processor, parts.splits, parts.collator).train()
    """
    if writes_text(processor):  # there are no class scores, and what the model gives besides would fill the memory
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


def _warn_of_no_use(
    metrics: Mapping[str, Any], splits: Mapping[str, Any], processor: Any, problem_type: str | None
) -> None:
    """Says so if the run ended no better than a constant answer."""
    for stage in ("validation", "test"):
        if problem_type is not None and stage in metrics and stage in splits and not writes_text(processor):
            reason = no_better_than_constant(metrics[stage], splits["train"], splits[stage], problem_type)
            if reason is not None:
                logger.warning(f"{stage}: {reason}")


def _describe(trainer: DGLTrainer, recipe: Recipe, metrics: Mapping[str, Any], made_by: Mapping[str, Any]) -> None:
    if trainer.is_world_process_zero():
        folder = Path(str(trainer.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)  # somebody may have removed it meanwhile
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        (folder / "environment.json").write_text(json.dumps(made_by, indent=2) + "\n", encoding="utf-8")
    if recipe.model.merges_adapters:
        _merge(trainer, recipe)
    trainer.save_state()
    if trainer.is_world_process_zero():
        write_report(str(trainer.args.output_dir))
    trainer.create_model_card()


@contextmanager
def _kept_if_an_error_follows(trainer: DGLTrainer) -> Iterator[None]:
    """Saves the trained model before an error ends the run: a broken file of the test split is met after hours."""
    try:
        yield
    except BaseException:  # Ctrl-C, too
        if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):  # there, saving needs all processes
            trainer.save_model(_internal_call=True)
            logger.warning(f"What follows the training failed. The trained model is in {trainer.args.output_dir}.")
        raise


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
