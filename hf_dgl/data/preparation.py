"""Splits as they were read -> splits to train on, once it is known which encoder reads them."""

from __future__ import annotations

import os
from typing import Any

import datasets
from transformers.utils import logging

from .broken import leave_out_broken_rows, leave_out_unknown_labels
from .columns import CROP_COLUMN, is_missing
from .labels import LabelSpec
from .limits import audio_limit, report_long_texts
from .streaming import leave_out_broken_rows_of_streams, leave_out_unknown_labels_of_streams

logger = logging.get_logger(__name__)


def prepare_splits(
    splits: Any,
    processor: Any,
    on_error: str = "raise",
    max_audio_seconds: float | None = None,
    num_workers: int | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    is_training: bool = True,
    is_main_process: bool = True,
) -> Any:
    """Leaves out broken rows if that is wanted, says how many texts are too long, and marks rows for random crops.

    Args:
        splits: From `load_data`, streamed or not.
        processor: A `CrossModalProcessor`.
        on_error: `skip`: every row is decoded once, in worker processes, and broken ones are left out (in a stream
            when they are met). `raise`: nothing is decoded here; the collator names the first that it meets.
        max_audio_seconds: What the collator is given, too.
        num_workers: Processes that decode; None: one per core.
        output_dir: For the list of broken rows; None: no list.
        is_training: Whether the rows of the training split are trained on, so that crops are random.
        is_main_process: Whether this one looks, warns and writes.

    Returns:
        The splits; training rows hold `random_crop` where audio may have to be cropped.

    Raises:
        ValueError: nothing is left of a split.

    Example:
        >>> few = datasets.DatasetDict(train=data["train"].select(range(3)))
        >>> prepare_splits(few, processor, on_error="skip", max_audio_seconds=5.0)["train"][0]["random_crop"]
        True
    """
    is_stream = any(isinstance(split, datasets.IterableDataset) for split in splits.values())
    if on_error == "skip" and is_stream:
        splits = leave_out_broken_rows_of_streams(splits, processor, output_dir)
    elif on_error == "skip":
        splits = leave_out_broken_rows(splits, processor, num_workers, output_dir, is_main_process)
    if is_main_process:
        report_long_texts(splits, processor)
        _say_what_is_empty(splits, processor)
    limits = [audio_limit(processor.processors[name]) for name in processor.modalities]
    has_audio = any(processor.sampling_rate(name) is not None for name in processor.modalities)
    if not is_training or "train" not in splits or not has_audio or (max_audio_seconds is None and not any(limits)):
        return splits
    train = splits["train"]
    marked = train.map(_mark) if is_stream else train.add_column(CROP_COLUMN, [True] * len(train))
    return type(splits)({**splits, "train": marked})


def _say_what_is_empty(splits: Any, processor: Any) -> None:
    """Names modalities that no row of a split has; of streams nothing is known."""
    for split, rows in splits.items():
        known = rows.column_names if isinstance(rows, datasets.Dataset) else ()
        for name in (name for name in processor.modalities if name in known):
            if all(map(is_missing, (row[name] for row in rows.select_columns(name)))):
                logger.warning(f"No row of the split {split!r} has a value for {name!r}. Is it the right column?")


def encode_labels(
    splits: Any,
    labels: LabelSpec,
    on_error: str = "raise",
    output_dir: str | os.PathLike[str] | None = None,
    is_main_process: bool = True,
) -> Any:
    """`splits` with labels as the loss takes them.

    Args:
        splits: From [`prepare_splits`].
        labels: Of the model.
        on_error: `skip`: rows whose label the model does not know are left out, and named like broken ones.
        output_dir, is_main_process: As in [`prepare_splits`].

    Raises:
        ValueError: a label that the model does not know (`raise`), or nothing is left of a split.

    Example:
        >>> few = datasets.DatasetDict(train=data["train"].select(range(3)))
        >>> encode_labels(few, LabelSpec.from_dataset(data["train"]))["train"].num_rows
        3
    """
    if on_error == "skip" and any(isinstance(split, datasets.IterableDataset) for split in splits.values()):
        splits = leave_out_unknown_labels_of_streams(splits, labels, output_dir)
    elif on_error == "skip":
        splits = leave_out_unknown_labels(splits, labels, output_dir, is_main_process)
    return labels.encode(splits)


def _mark(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, CROP_COLUMN: True}
