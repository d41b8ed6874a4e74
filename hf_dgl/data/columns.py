"""Columns of a data set under our names: one per modality, `label`, and where a row comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import datasets

LABEL_COLUMN = "label"
ROW_COLUMN = "row"
"""Column in which `load_data` keeps where a row comes from, e.g. `train[17]`, so that errors can name it."""

CROP_COLUMN = "random_crop"
"""Entry of a row that is true where long audio is to be cropped at random (training), not in the middle."""

MEDIA = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
"""Type of a column of encoded files."""


def expect_dataset(value: Any, name: str) -> datasets.Dataset:
    """`value` if it is a non-empty `Dataset`, else an error that guesses what was meant.

    Args:
        value: what the user passed.
        name: what the argument is called.

    Raises:
        ValueError: a `DatasetDict`, something else, or no rows.

    Example:
        >>> expect_dataset(datasets.DatasetDict(), "train_dataset")
        Traceback (most recent call last):
        ValueError: train_dataset: expected a Dataset, got a DatasetDict with the splits [].
    """
    if isinstance(value, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        splits = list(value)
        hint = f" Did you mean {name}=data[{splits[0]!r}]?" if splits else ""
        raise ValueError(f"{name}: expected a Dataset, got a {type(value).__name__} with the splits {splits}.{hint}")
    if not isinstance(value, datasets.Dataset):
        raise ValueError(
            f"{name}: expected a datasets.Dataset, got {type(value).__name__}. Make one with Dataset.from_list(rows) "
            "or Dataset.from_dict(columns)."
        )
    if len(value) == 0:
        raise ValueError(f"{name}: the data set has no rows (columns: {value.column_names}).")
    return value


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


def is_missing(value: Any) -> bool:
    """Whether a row lacks this value: None, NaN, an empty text or path, a file without path and content.

    Example:
        >>> [is_missing(value) for value in (None, float("nan"), "", " ", 0)]
        [True, True, True, False, False]
    """
    if isinstance(value, Mapping) and set(value) <= {"path", "bytes"}:
        return value.get("bytes") is None and not value.get("path")
    return value is None or isinstance(value, str) and not value or isinstance(value, Real) and value != value


def is_address(value: Any) -> bool:
    """Whether a value is an http(s) address rather than a path."""
    return isinstance(value, str) and value.lower().startswith(("http://", "https://"))


def path_in(value: Any) -> str | None:
    """The path that a media value names: itself, that of `{"path": ..., "bytes": None}`, that in a list of one.

    Example:
        >>> path_in("a.png"), path_in([{"path": "b.png"}]), path_in({"path": "c.png", "bytes": b"..."})
        ('a.png', 'b.png', None)
    """
    if isinstance(value, Mapping):
        value = None if value.get("bytes") is not None else value.get("path")
    if isinstance(value, list) and len(value) == 1:
        return path_in(value[0])
    return value if isinstance(value, str) and value else None


def whole_path(value: Any, folder: Path) -> Any:
    """A media value whose path is seen from `folder` (`~` is the home); addresses and what names none as they are."""
    path = path_in(value)
    if path is None or is_address(path):
        return value
    if isinstance(value, list):
        return [whole_path(value[0], folder)]
    whole = str(folder / (Path(path).expanduser() if path.startswith("~/") else path))
    return {**value, "path": whole} if isinstance(value, Mapping) else whole


def holds_paths(column: str, values: Sequence[Any], folder: Path) -> bool:
    """Whether paths in a column are relative to the folder of its table.

    Those in `image` and `audio` are, and none in `text`. A column of another name holds paths if one of its first
    values leads to a file (and looks like a path: a folder may hold a file `README`, and a text be that word), or if
    it is called `image_left` and all of them have a suffix.
    """
    if column in ("image", "audio", "text"):
        return column != "text"
    first = [path for value in values if (path := path_in(value)) and len(path) < 256][:100]
    if any(_looks_like_path(path) and (folder / path).is_file() for path in first):
        return True
    return column.startswith(("image", "audio")) and all(re.search(r"\S\.\w{2,5}$", path) for path in first)


def _looks_like_path(text: str) -> bool:
    return "/" in text or bool(Path(text).suffix)
