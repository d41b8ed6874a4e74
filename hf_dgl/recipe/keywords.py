"""A recipe from the keywords of a Python call, as `hf-dgl train` makes one from the words of a command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import datasets

from hf_dgl.data.columns import LABEL_COLUMN

from .arguments import IN_MEMORY, MODALITY_WORDS, WITHOUT_FILE
from .recipe import KEYS, Recipe, make_recipe, name_of_data, read_recipe

_DATASETS = (datasets.Dataset, datasets.DatasetDict, datasets.IterableDataset, datasets.IterableDatasetDict)


def recipe_of(recipe: str | os.PathLike[str] | None, data: Any, keys: Mapping[str, Any]) -> Recipe:
    """Puts file, data and keywords together.

    Args:
        recipe: A YAML file, or the name of a shipped recipe; None: the keywords say it all, with the defaults of
            `hf-dgl train` without a recipe.
        data: As `dataset_name`; or a `Dataset` or `DatasetDict`.
        keys: Keys of a recipe; and `image="photo"`, `label="kind"`, which name columns (`label` also a list of them).

    Raises:
        ValueError: an unknown key, or a value of the wrong type.

    Example:

        >>> recipe_of(None, "my.csv", {"image": "photo", "label": "kind", "encoders": {"image": "org/vit"}})
    """
    values = dict(WITHOUT_FILE) if recipe is None else read_recipe(recipe)
    name = Path(recipe).stem if recipe is not None else "model"
    encoders = keys.get("encoders", values.get("encoders"))
    modalities = {*(encoders if isinstance(encoders, Mapping) else ()), *MODALITY_WORDS}
    columns = {}
    for key, value in keys.items():
        if key in {*modalities, LABEL_COLUMN} and key not in KEYS:
            is_list = key == LABEL_COLUMN and isinstance(value, (list, tuple)) and value
            if not all(isinstance(name, str) for name in (value if is_list else [value])):
                raise ValueError(f"{key}: expected the name of a column, got {value!r:.80}.")
            columns[key] = value
        elif isinstance(value, Mapping) and isinstance(values.get(key), Mapping):
            values[key] = {k: entry for k, entry in {**values[key], **value}.items() if entry is not None}
        else:
            values[key] = value
    if columns:
        values["column_mapping"] = {**(values.get("column_mapping") or {}), **columns}
    if data is not None:
        if "dataset_name" in keys:
            raise ValueError("`data` is short for `dataset_name`: give one of them.")
        _check_data(data)
        values["dataset_name"] = IN_MEMORY if isinstance(data, _DATASETS) else data
        if recipe is None and isinstance(data, (str, os.PathLike)):
            values["dataset_name"] = os.fspath(data)
            name = name_of_data(os.fspath(data))
    made = make_recipe(values, name)
    if isinstance(data, _DATASETS):
        made.dataset = data
    return made


def _check_data(data: Any) -> None:
    is_mixture = isinstance(data, Mapping) and all(isinstance(weight, Real) for weight in data.values())
    if not isinstance(data, (*_DATASETS, str, os.PathLike)) and not is_mixture:
        raise ValueError(
            f"data: expected a file, a folder, a Hub id, a Dataset or a DatasetDict, got {type(data).__name__}. Make "
            "one with datasets.Dataset.from_pandas(table), Dataset.from_list(rows) or DatasetDict(train=...)."
        )
