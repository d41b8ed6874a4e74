"""Several data sets as one: training rows by weight, labels by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import datasets
from transformers.utils import logging

from .columns import LABEL_COLUMN, MEDIA, ROW_COLUMN, replace_column
from .label_values import is_number, plain

logger = logging.get_logger(__name__)


def mix_splits(parts: Mapping[str, Mapping[str, Any]], weights: Mapping[str, float], seed: int) -> dict[str, Any]:
    """One training split in which every data set has its share, and validation and test splits of all their rows.

    Each training row is drawn from a data set by its weight, until all rows of all of them occurred: those of a data
    set that is small for its weight occur several times. Every data set was split before: no row is in two splits.

    Args:
        parts: Name -> splits, from `load_data`, all streamed or none.
        weights: Name -> share; any positive numbers.
        seed: Of the drawing.

    Returns:
        The splits; `row` also names the data set: `a.csv: train[17]`. Classes are unified by name.

    Raises:
        ValueError: a weight that is none, or columns or labels that do not go together.

    Example:
        >>> few = datasets.Dataset.from_dict({"text": ["x", "y"], "label": ["cat", "dog"], "row": ["0", "1"]})
        >>> mix_splits({"a": {"train": few}, "b": {"train": few}}, {"a": 0.5, "b": 0.5}, seed=0)["train"]["row"][:]
        ['b: 0', 'a: 0', 'a: 1', 'a: 0', 'b: 1']
    """
    for name, weight in weights.items():
        if not isinstance(weight, (int, float)) or not weight > 0:
            raise ValueError(f"dataset_name: expected a weight above 0 for {name!r}, got {weight!r}.")
    mixed = {}
    for split in ("train", "validation", "test"):
        named = {name: part[split] for name, part in parts.items() if split in part}
        if not named:
            continue
        together = _alike(named)
        if split == "train":
            shares = [weights[name] / sum(weights.values()) for name in named]
            rows = datasets.interleave_datasets(
                together, probabilities=shares, seed=seed, stopping_strategy="all_exhausted"
            )
        else:
            rows = datasets.concatenate_datasets(together)
        if isinstance(rows, datasets.IterableDataset):  # upstream guessed types from the first rows: not binding
            rows = rows.map(_as_it_is, features=together[0].features)
        elif split == "train":
            _report(named, rows)
        mixed[split] = rows
    return mixed


def _alike(named: Mapping[str, Any]) -> list[Any]:
    """The data sets with the same types in their columns, the same classes, and rows that say where they come from."""
    classes = _classes({name: _label_feature(part) for name, part in named.items()})
    streamed = any(isinstance(part, datasets.IterableDataset) for part in named.values())
    unify = _unify_stream if streamed else _unify_table
    together = [unify(part, name, classes) for name, part in named.items()]
    if streamed:
        return together
    for column in together[0].column_names:
        kinds: dict[str, Any] = {name: part.features[column] for name, part in zip(named, together, strict=True)}
        if column == LABEL_COLUMN:
            kinds = {name: _label_kind(part) for name, part in zip(named, together, strict=True)}
        if len({str(kind) for kind in kinds.values()}) > 1:
            shown = ", ".join(f"{kind} in {name!r}" for name, kind in kinds.items())
            raise ValueError(
                f"The data sets cannot be mixed: their columns for {column!r} hold different things: {shown}. Make "
                "them alike, e.g. class names in all of them."
            )
    return together


def _label_kind(part: datasets.Dataset) -> Any:
    """The type of the labels; of texts (in csv everything is) whether they are numbers."""
    feature = part.features[LABEL_COLUMN]
    if feature != datasets.Value("string"):
        return feature
    values = [value for value in map(plain, part[LABEL_COLUMN][:]) if value is not None]
    return "texts that are numbers" if values and all(map(is_number, values)) else "texts"


def _label_feature(part: Any) -> Any:
    return None if part.features is None else part.features[LABEL_COLUMN]


def _classes(features: Mapping[str, Any]) -> list[str] | None:
    """All class names in order of first appearance; None where a data set does not declare its classes."""
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    if not all(isinstance(feature, datasets.ClassLabel) for feature in inner.values()):
        return None
    return list(dict.fromkeys(label for feature in inner.values() for label in feature.names))


def _unify_table(part: datasets.Dataset, name: str, classes: Sequence[str] | None) -> datasets.Dataset:
    for column, feature in part.features.items():
        if column == LABEL_COLUMN:
            part = _unify_labels(part, feature, classes)
        elif isinstance(feature, (datasets.Image, datasets.Audio)):
            part = part.cast_column(column, MEDIA)
        elif column == ROW_COLUMN:
            rows = [f"{name}: {row}" for row in part[column]]
            part = replace_column(part, column, rows, datasets.Value("string"))
    files = [column for column, feature in part.features.items() if column.startswith(("image", "audio"))]
    for column in files:  # paths of one data set beside embedded files of another
        if part.features[column] == datasets.Value("string"):
            values = [None if path is None else {"bytes": None, "path": path} for path in part[column]]
            part = replace_column(part, column, values, MEDIA)
    return part.select_columns(sorted(part.column_names))


def _unify_labels(part: datasets.Dataset, feature: Any, classes: Sequence[str] | None) -> datasets.Dataset:
    is_list, inner = isinstance(feature, datasets.List), getattr(feature, "feature", feature)
    values: list[Any] = part[LABEL_COLUMN][:]
    if isinstance(inner, datasets.ClassLabel):
        values = [_names_of(value, inner) for value in values]
    elif inner not in (datasets.Value("string"), datasets.Value("large_string")):
        return part
    named = datasets.Value("string")
    if classes is not None:
        named = datasets.ClassLabel(names=list(classes))
        values = [_ids_of(value, named) for value in values]
    return replace_column(part, LABEL_COLUMN, values, datasets.List(named) if is_list else named)


def _names_of(value: Any, feature: datasets.ClassLabel) -> Any:
    if isinstance(value, list):
        return [_names_of(entry, feature) for entry in value]
    return None if value is None or value < 0 else feature.int2str(value)


def _ids_of(value: Any, feature: datasets.ClassLabel) -> Any:
    if isinstance(value, list):
        return [_ids_of(entry, feature) for entry in value]
    return None if value is None else feature.str2int(value)


def _unify_stream(
    part: datasets.IterableDataset, name: str, classes: Sequence[str] | None
) -> datasets.IterableDataset:
    label = _label_feature(part)
    features = named = None
    if classes is not None:
        named = datasets.ClassLabel(names=list(classes))
        features = datasets.Features(
            {**part.features, LABEL_COLUMN: datasets.List(named) if hasattr(label, "feature") else named}
        )
    return part.map(
        partial(_unify_row, name=name, label=getattr(label, "feature", label), named=named), features=features
    )


def _unify_row(row: dict[str, Any], name: str, label: Any, named: datasets.ClassLabel | None) -> dict[str, Any]:
    if isinstance(label, datasets.ClassLabel):
        value = _names_of(row[LABEL_COLUMN], label)
        row = {**row, LABEL_COLUMN: value if named is None else _ids_of(value, named)}
    return {**row, ROW_COLUMN: f"{name}: {row[ROW_COLUMN]}"} if ROW_COLUMN in row else row


def _as_it_is(row: dict[str, Any]) -> dict[str, Any]:
    return row


def _report(named: Mapping[str, datasets.Dataset], mixed: datasets.Dataset) -> None:
    rows = mixed[ROW_COLUMN][:]
    shares = [
        f"{sum(row.startswith(f'{name}: ') for row in rows):,} rows from {name!r}, which has {len(part):,}"
        for name, part in named.items()
    ]
    logger.warning(f"The training split mixes {'; '.join(shares)}.")
