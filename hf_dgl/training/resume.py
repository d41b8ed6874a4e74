"""What a run that resumes asks for, compared with what its checkpoint was saved with.

    settings_of(trainer)               -> in the checkpoint's manifest
    compare(checkpoint, settings)      -> an error (another method, model, ...), or the differences in words

A checkpoint holds weights, optimizer, schedule and random numbers, but the data, the method and the model's shape are
put together anew when it is resumed. Where they differ, the run is no longer the one that was interrupted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import xxhash
import yaml
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .manifest import read_manifest

logger = logging.get_logger(__name__)

_CANNOT_CHANGE = re.compile(
    r"(method|modality|partition|peft|model|labels|vocabulary|optim|optim_args|optim_target_modules|freeze|"
    r"encoder_learning_rate|learning_rate_mapping)(\..*)?"
)
"""Settings without whose old value the checkpoint's weights and optimizer (its groups of parameters) mean nothing."""

_WITHOUT_EFFECT = re.compile(
    r"(output_dir|do_|overwrite|eval|prediction|batch_eval|log|save|hub|push|report|run_name|project|trackio|disable|"
    r"dataloader_(pin|persistent|prefetch)|resume|restore|skip_memory|include|deepspeed|fsdp|ddp|local_rank|debug|"
    r"label_names|remove_unused|preprocessing_num_workers|use_cpu|accelerator_config).*"
)
"""Arguments that change where a run writes, what it measures or how fast it is, and not what it learns."""

_OF_THE_MODEL = (
    "encoders model_name_or_path model_class revision trust_remote_code token problem_type fusion_type "
    "num_fusion_layers fusion_hidden_size num_fusion_heads fusion_dropout fusion_read_out peft_merge"
).split()
"""Keys of a recipe of which the model's configuration tells more, or that do not matter before the end."""

_BEFORE_THERE_WAS_A_CHOICE = {"model.fusion_read_out": "means"}
"""What a model of ours was, whose manifest does not say it yet."""

_PASSING = (
    "transformers_version architectures auto_map dtype torch_dtype id2label label2id num_labels problem_type"
).split()
"""Entries of a configuration that say nothing of its model's shape (labels are compared by themselves)."""


def settings_of(trainer: Any) -> dict[str, Any]:
    """The settings by which a run can be told from another, as JSON holds them.

    Args:
        trainer: A `SavingTrainer` before training.

    Returns:
        A flat mapping: arguments by their names, `model.<entry of its configuration>`, `model.parameters` (a checksum
        of names and shapes), `labels`, `vocabulary`, `rows` (of the training split), `processes`, and the recipe's
        keys on data and adapters.

    Example:

        >>> settings_of(trainer)["learning_rate"]
        0.001
    """
    recipe = yaml.safe_load(trainer.recipe or "") or {}
    of_recipe = {name: value for name, value in recipe.items() if name not in _OF_THE_MODEL}
    arguments = {**of_recipe, **trainer.args.to_dict()}
    rows = trainer.train_dataset
    found = {
        **{name: value for name, value in arguments.items() if not _WITHOUT_EFFECT.fullmatch(name)},
        **_of_model(trainer.accelerator.unwrap_model(trainer.model)),
        "vocabulary": _vocabularies(trainer.processing_class),
        "rows": len(rows) if hasattr(rows, "__len__") else None,
        "processes": trainer.args.world_size,
    }
    return json.loads(json.dumps(found, default=str))


def _of_model(model: nn.Module) -> dict[str, Any]:
    shapes = [f"{name} {tuple(parameter.shape)}" for name, parameter in sorted(model.named_parameters())]
    found: dict[str, Any] = {"model.parameters": xxhash.xxh3_64_hexdigest("\n".join(shapes).encode())}
    config = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        entries = config.to_dict()  # type: ignore[union-attr]
        found["model"] = type(getattr(model, "get_base_model", lambda: model)()).__name__
        found["labels"] = [entries.get("problem_type"), entries.get("id2label")]
        found |= {f"model.{name}": value for name, value in _leaves(entries)}
    return found


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if str(name).startswith("_") or name in _PASSING:
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _vocabularies(processor: Any) -> dict[str, str]:
    """A checksum of each tokenizer's words: with other ids for its words, an encoder reads another text."""
    parts = getattr(processor, "processors", None) or {"text": getattr(processor, "tokenizer", processor)}
    return {
        name: xxhash.xxh3_64_hexdigest(json.dumps(sorted(part.get_vocab().items())).encode())
        for name, part in parts.items()
        if isinstance(part, PreTrainedTokenizerBase)
    }


def compare(checkpoint: str | os.PathLike[str], asked: Mapping[str, Any]) -> list[str]:
    """The differences between the run that saved a checkpoint and the one that resumes from it; they are logged.

    Args:
        checkpoint: Whose manifest says what it was saved with; without one (another Trainer's) there is nothing to
            compare.
        asked: From [`settings_of`].

    Returns:
        `learning_rate: 0.001 (saved), 0.01 (asked for)`, ...

    Raises:
        ValueError: another method, model, label set, vocabulary or optimizer; names each difference.

    Example:

        >>> compare("outputs/image_text/checkpoint-500", settings_of(trainer))
        ['seed: 0 (saved), 1 (asked for)']
    """
    manifest = read_manifest(checkpoint)
    if manifest is None:
        return []
    saved = manifest["settings"]
    if "model.fusion_type" in saved:
        saved = {**_BEFORE_THERE_WAS_A_CHOICE, **saved}
    found = {
        name: f"{_NAMES.get(name, name)}: {_shown(saved.get(name))} (saved), {_shown(asked.get(name))} (asked for)"
        for name in sorted({**saved, **asked}, key=lambda name: not _CANNOT_CHANGE.fullmatch(name))
        if saved.get(name) != asked.get(name)
    }
    if any(name != "model.parameters" and _CANNOT_CHANGE.fullmatch(name) for name in found):
        found.pop("model.parameters", None)  # the others say it in words
    words = list(found.values())
    told = "; ".join(words[:_MOST_TOLD]) + (f"; and {len(words) - _MOST_TOLD} more" if words[_MOST_TOLD:] else "")
    if any(map(_CANNOT_CHANGE.fullmatch, found)):
        raise ValueError(
            f"Cannot resume from {os.fspath(checkpoint)}, which another run saved. {told}. Ask for what was saved; or "
            "start from the beginning, in another `output_dir` and without `resume_from_checkpoint`; or train its "
            f"model anew: `model_name_or_path: {os.fspath(checkpoint)}`."
        )
    if found:
        logger.warning(
            f"Resuming from {os.fspath(checkpoint)} with other settings than it was saved with. {told}. What is asked "
            "for holds from here on: the run will not end as the uninterrupted one would."
        )
    return words


_MOST_TOLD = 12  # differences; another model has a hundred
_NAMES = {
    "rows": "rows of the training data",
    "processes": "number of processes",
    "labels": "labels",
    "vocabulary": "words of the tokenizer",
    "model": "class of the model",
    "model.parameters": "names and shapes of the parameters (their checksum)",
}


def _shown(value: Any) -> str:
    text = "not given" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


@contextmanager
def with_asked_settings(optimizer: Any, scheduler: Any, changes: Sequence[str]) -> Iterator[None]:
    """Inside, a checkpoint's optimizer and schedule are loaded; after it, the settings that were asked for hold.

    What torch loads holds the learning rate, weight decay and betas of the run that saved it, too: those of this run
    would be ignored, while its card states them. Without changes nothing is touched.

    Args:
        optimizer, scheduler: As they were created for this run.
        changes: From [`compare`].

    Raises:
        ValueError: the checkpoint's optimizer is of another kind, or the schedule cannot be moved.
    """
    asked = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    yield
    for group, wanted in zip(optimizer.param_groups, asked, strict=True):
        other = sorted({*group, "params", "initial_lr"} ^ {*wanted, "params", "initial_lr"})
        if other:
            raise ValueError(
                f"The checkpoint holds the state of another optimizer, which differs in {', '.join(other)}: ask for "
                "the one that it was saved with (`optim`)."
            )
        if not changes:
            continue
        if "initial_lr" not in wanted and any(change.startswith("learning_rate:") for change in changes):
            raise ValueError(
                f"learning_rate: a {type(scheduler).__name__} follows the scores and cannot begin anew with another "
                "learning rate when it is resumed; ask for the saved one."
            )
        factor = wanted["initial_lr"] / group["initial_lr"] if group.get("initial_lr") else 1.0
        group.update({name: value for name, value in wanted.items() if name != "lr"}, lr=group["lr"] * factor)
    if changes and hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]  # what is logged
