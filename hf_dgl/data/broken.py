"""Rows that cannot be used: found before training, named, and left out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .collator import decode_value
from .columns import LABEL_COLUMN, ROW_COLUMN, is_missing
from .label_values import kind_of, named, no_label, plain, unlike_the_others
from .labels import LabelSpec
from .media import describe_media
from .workers import map_rows

logger = logging.get_logger(__name__)

BROKEN_ROWS_FILE = "broken_rows.jsonl"
_NUM_SHOWN = 5


@dataclass(frozen=True)
class BrokenRow:
    """A row that cannot be used.

    Args:
        split: Where it would have been used.
        row: Where it comes from: `train[17]` is the row of index 17 of the source's split `train`.
        modality: Which entry is broken: a modality, `label`, or nothing if all modalities are missing.
        file: Its file, if it is one.
        reason: What is wrong with it.
    """

    split: str
    row: str
    modality: str
    file: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.split}: row {self.row}"
        return f"{where}, {self.modality}: {self.reason}" if self.modality else f"{where}: {self.reason}"


def why_broken(row: Mapping[str, Any], processor: Any, split: str) -> BrokenRow | None:
    """What is wrong with a row, found by decoding it as training would; None if nothing is.

    Example:
        >>> print(why_broken({"image": "gone.png", "label": 0, "row": "train[17]"}, processor, "train"))
        train: row train[17], image: Cannot find the image file 'gone.png'.
    """
    name = str(row.get(ROW_COLUMN, "?"))
    for modality in processor.modalities:
        try:
            decode_value(processor, modality, row.get(modality))
        except ValueError as error:
            value = row[modality]
            is_text = isinstance(processor.processors[modality], PreTrainedTokenizerBase)
            file = "" if is_text else describe_media(value)
            reason = getattr(error, "reason", str(error))
            return BrokenRow(split, name, modality, _file_name(value, file), reason)
    if all(is_missing(row.get(modality)) for modality in processor.modalities):
        return BrokenRow(split, name, "", "", f"it has none of the modalities {list(processor.modalities)}.")
    missing = [modality for modality in processor.modalities if is_missing(row.get(modality))]
    if missing and getattr(processor, "needs_all", False):  # see `hf_dgl.models.native`
        return BrokenRow(
            split, name, missing[0], "", "it is missing, and the model reads all modalities in every row."
        )
    label = plain(row.get(LABEL_COLUMN))
    if label is None:
        return BrokenRow(split, name, LABEL_COLUMN, "", "it has no label.")
    if kind_of(label) is None:
        return BrokenRow(split, name, LABEL_COLUMN, "", no_label(label))
    return None


def find_broken_rows(
    splits: Mapping[str, datasets.Dataset], processor: Any, num_workers: int | None = None
) -> tuple[list[BrokenRow], dict[str, list[int]]]:
    """Decodes every row once, in worker processes.

    Args:
        splits: From `load_data`.
        processor: A `CrossModalProcessor`.
        num_workers: Processes; None: one per core.

    Returns:
        The broken rows, and per split the indices of the others.

    Example:
        >>> broken, usable = find_broken_rows({"test": data["test"].select(range(3))}, processor)
        >>> broken, usable
        ([], {'test': [0, 1, 2]})
    """
    broken, usable = [], {}
    for split, dataset in splits.items():
        found = map_rows(dataset, partial(why_broken, processor=processor, split=split), num_workers)
        for index, reason in unlike_the_others(_labels_of(dataset)).items():
            found[index] = found[index] or BrokenRow(split, _row(dataset, index), LABEL_COLUMN, "", reason)
        broken += [row for row in found if row is not None]
        usable[split] = [index for index, row in enumerate(found) if row is None]
    return broken, usable


def _labels_of(dataset: datasets.Dataset) -> list[Any]:
    if LABEL_COLUMN not in dataset.column_names:
        return []
    feature = dataset.features[LABEL_COLUMN]
    return [named(value, feature) for value in dataset.select_columns(LABEL_COLUMN)[LABEL_COLUMN][:]]


def _row(dataset: datasets.Dataset, index: int) -> str:
    return str(dataset.select_columns(ROW_COLUMN)[index][ROW_COLUMN]) if ROW_COLUMN in dataset.column_names else "?"


def find_unknown_labels(
    splits: Mapping[str, datasets.Dataset], labels: LabelSpec
) -> tuple[list[BrokenRow], dict[str, list[int]]]:
    """Rows whose label means nothing to a model with these labels, and per split the indices of the others.

    Example:
        >>> spec = LabelSpec("single_label_classification", ("cat", "dog"))
        >>> rows = datasets.Dataset.from_dict({"label": ["dog", "cow"], "row": ["test[0]", "test[1]"]})
        >>> find_unknown_labels({"test": rows}, spec)[1]
        {'test': [0]}
    """
    broken: list[BrokenRow] = []
    usable: dict[str, list[int]] = {split: [] for split in splits}
    for split, dataset in splits.items():
        feature = dataset.features[LABEL_COLUMN]
        for index, value in enumerate(dataset.select_columns(LABEL_COLUMN)[LABEL_COLUMN][:]):
            reason = why_unknown(value, feature, labels)
            if reason is None:
                usable[split].append(index)
            else:
                broken.append(BrokenRow(split, _row(dataset, index), LABEL_COLUMN, "", reason))
    return broken, usable


def why_unknown(value: Any, feature: Any, labels: LabelSpec, example: Any = None) -> str | None:
    """Why a label means nothing; None if it does mean something. Arguments as of `LabelSpec.encode_raw`."""
    try:
        labels.encode_raw(value, feature, example)
    except ValueError as error:
        return str(error)
    return None


def leave_out_broken_rows(
    splits: datasets.DatasetDict,
    processor: Any,
    num_workers: int | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    is_main_process: bool = True,
) -> datasets.DatasetDict:
    """`splits` without the rows that cannot be used. These are named in a warning, and all of them in a file.

    Args:
        splits: From `load_data`.
        processor: A `CrossModalProcessor`.
        num_workers: Processes; None: one per core.
        output_dir: `broken_rows.jsonl` goes there; None: no file.
        is_main_process: Only this one looks, and tells the others.

    Raises:
        ValueError: nothing is left of a split.

    Example:
        >>> few = datasets.DatasetDict(test=data["test"].select(range(3)))
        >>> len(leave_out_broken_rows(few, processor)["test"])
        3
    """
    found: list[Any] = [find_broken_rows(splits, processor, num_workers) if is_main_process else None]
    return _left_out(splits, found, output_dir, is_main_process)


def leave_out_unknown_labels(
    splits: datasets.DatasetDict,
    labels: LabelSpec,
    output_dir: str | os.PathLike[str] | None = None,
    is_main_process: bool = True,
) -> datasets.DatasetDict:
    """`splits` without the rows whose label the model does not know. They are named as broken ones are.

    Args, Raises: As [`leave_out_broken_rows`], whose list is continued.
    """
    found: list[Any] = [find_unknown_labels(splits, labels) if is_main_process else None]
    return _left_out(splits, found, output_dir, is_main_process, begins=False)


def _left_out(
    splits: datasets.DatasetDict,
    found: list[Any],
    output_dir: str | os.PathLike[str] | None,
    is_main_process: bool,
    begins: bool = True,
) -> datasets.DatasetDict:
    broken, usable = (broadcast_object_list(found) if torch.distributed.is_initialized() else found)[0]
    if is_main_process:
        report_broken_rows(broken, sum(map(len, splits.values())), output_dir, begins)
    for split, indices in usable.items():
        if not indices:
            first = next(row for row in broken if row.split == split)
            no_test = " To do without it: --test_split null." if split == "test" else ""
            raise ValueError(
                f"Nothing is left of the split {split!r}: all of its rows are broken. The first: {first}{no_test}"
            )
    return datasets.DatasetDict(
        {
            split: part if len(usable[split]) == len(part) else part.select(usable[split])
            for split, part in splits.items()
        }
    )


def report_broken_rows(
    broken: Sequence[BrokenRow],
    num_rows: int,
    output_dir: str | os.PathLike[str] | None = None,
    begins: bool = True,
) -> None:
    """Warns with the count and the first few; writes all of them to `output_dir`, over an old list if `begins`."""
    where = ""
    if output_dir is not None:
        path = Path(output_dir) / BROKEN_ROWS_FILE
        if begins:
            path.unlink(missing_ok=True)
        if broken:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(row)) + "\n" for row in broken)
            where = f" All of them: {path}"
    if broken:
        shown = "\n".join(f"  {row}" for row in broken[:_NUM_SHOWN])
        rest = f"\n  ... and {len(broken) - _NUM_SHOWN:,} more." if len(broken) > _NUM_SHOWN else ""
        logger.warning(f"{len(broken):,} of {num_rows:,} rows are broken and left out.{where}\n{shown}{rest}")


def _file_name(value: Any, described: str) -> str:
    return described.removeprefix("file ").strip("'\"") if described.startswith("file ") else described
