"""Columns of a data set under our names: one per modality, `label`, and where a row comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from hf_dgl.method.modalities import did_you_mean

LABEL_COLUMN = "label"
ROW_COLUMN = "row"
"""Column in which `load_data` keeps where a row comes from, e.g. `train[17]`, so that errors can name it."""

CROP_COLUMN = "random_crop"
"""Entry of a row that is true where long audio is to be cropped at random (training), not in the middle."""


def row_name(dataset: datasets.Dataset, index: int, split: str) -> str:
    """What to call a row in a message: where it came from, if the data set says so, else its place in the split."""
    if ROW_COLUMN in dataset.column_names:
        return f"Row {dataset.select_columns(ROW_COLUMN)[index][ROW_COLUMN]} (split {split!r})"
    return f"Row {index} of split {split!r}"


def replace_column(
    dataset: datasets.Dataset, name: str, values: Sequence[Any], feature: Any, new_name: str | None = None
) -> datasets.Dataset:
    """`dataset` with other values in a column, now the last one; in memory, so no cache file is written."""
    added = dataset.add_column(f"new {name}", list(values), feature=feature)  # first: a table needs a column
    return added.remove_columns(name).rename_column(f"new {name}", new_name or name)


def rename_columns(
    dataset: Any, column_mapping: Mapping[str, str], modalities: Sequence[str] | None, what: str
) -> Any:
    """Columns named by modality and `label`; all others are dropped if `modalities` says which are wanted.

    Args:
        dataset: any split, a `Dataset` or a stream that knows its columns.
        column_mapping: our name -> column; names that are columns already need no entry.
        modalities: which are wanted; None: the keys of `column_mapping`.
        what: the data set's name, for messages.

    Raises:
        ValueError: a column that is not there (with the nearest match), that is used twice, or a name that is neither
            a modality nor `label`.
    """
    columns = dataset.column_names
    names = list(dict.fromkeys([*(column_mapping if modalities is None else modalities), LABEL_COLUMN]))
    for name in column_mapping:
        if name not in names:
            raise ValueError(
                f"column_mapping: {name!r} is neither a modality of the model nor {LABEL_COLUMN!r}"
                f"{did_you_mean(name, names)} Names: {names}."
            )
    mapping = {name: column_mapping.get(name, name) for name in names}
    for name, column in mapping.items():
        if column not in columns:
            raise ValueError(
                f"{what!r} has no column {column!r} for {name!r}{did_you_mean(column, columns)} Its columns: "
                f"{columns}. Say which one it is with column_mapping={{{name!r}: '<column>'}}."
            )
        users = [key for key, value in mapping.items() if value == column]
        if len(users) > 1:
            raise ValueError(f"column_mapping: the column {column!r} is used for {users}; each needs its own.")
    keep = [*mapping.values(), *(column for column in columns if column == ROW_COLUMN)]
    if modalities is None:  # a column that bears one of our names, but is not the one meant, has to go
        keep += [column for column in columns if column not in keep and column not in mapping]
    dataset = dataset.select_columns(keep)
    return dataset.rename_columns({column: name for name, column in mapping.items() if name != column})


def holds_paths(column: str, values: Sequence[str | None], folder: Path) -> bool:
    """Image and audio columns do; a column of another name does if one of its first values is a file."""
    if column.startswith(("image", "audio")):
        return True
    first = [value for value in values[:100] if value and len(value) < 256]
    return any((folder / value).is_file() for value in first)
