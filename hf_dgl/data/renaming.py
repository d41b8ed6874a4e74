"""Which column of a data set is which of ours: by name, by path into nested fields, or several as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import datasets

from hf_dgl.method.modalities import did_you_mean

from .columns import LABEL_COLUMN, ROW_COLUMN, is_missing
from .tables import table_of

_PEEK = 1000  # rows of a stream that show its columns


def columns_of(dataset: Any) -> list[str]:
    """Columns of a `Dataset` or of a stream, which may have to be asked for its first rows."""
    if dataset.column_names is not None:
        return list(dataset.column_names)
    return list(dict.fromkeys(name for row in islice(dataset, _PEEK) for name in row))


def rename_columns(
    dataset: Any, column_mapping: Mapping[str, Any], modalities: Sequence[str] | None, what: str
) -> Any:
    """Columns named by modality and `label`; all others are dropped if `modalities` says which are wanted.

    Args:
        dataset: any split, a `Dataset` or a stream.
        column_mapping: our name -> column; names that are columns already need no entry. `media.image` is the field
            `image` of the column `media` (of each object, where it holds a list of them); a list of columns makes a
            list of numbers (`label`: several targets).
        modalities: which are wanted; None: the keys of `column_mapping`.
        what: the data set's name, for messages.

    Raises:
        ValueError: a column that is not there (with the nearest match), that is used twice, or a name that is neither
            a modality nor `label`.
    """
    names = list(dict.fromkeys([*(column_mapping if modalities is None else modalities), LABEL_COLUMN]))
    for name in column_mapping:
        if name not in names:
            raise ValueError(
                f"column_mapping: {name!r} is neither a modality of the model nor {LABEL_COLUMN!r}"
                f"{did_you_mean(name, names)} Names: {names}."
            )
    mapping = {name: column_mapping.get(name, name) for name in names}
    dataset, mapping = with_derived_columns(dataset, mapping)
    columns = columns_of(dataset)
    for name, column in mapping.items():
        if column not in columns:
            known = [path for column in columns for path in field_paths(dataset, column)]
            raise ValueError(
                f"{what!r} has no column {column!r} for {name!r}{did_you_mean(column, known)} Its columns: "
                f"{known}. Say which one it is with column_mapping={{{name!r}: '<column>'}}{_hint(columns)}."
            )
        users = [key for key, value in mapping.items() if value == column]
        if len(users) > 1:
            raise ValueError(f"column_mapping: the column {column!r} is used for {users}; each needs its own.")
    keep = [*mapping.values(), *(name for name in columns if name == ROW_COLUMN and name not in mapping.values())]
    if modalities is None:  # a column that bears one of our names, but is not the one meant, has to go
        keep += [column for column in columns if column not in keep and column not in mapping]
    dataset = dataset.select_columns(keep)
    return dataset.rename_columns({column: name for name, column in mapping.items() if name != column})


def with_derived_columns(dataset: Any, mapping: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """Columns for what a mapping names that are none yet: fields of a column (`media.image`) and lists of columns.

    Args:
        dataset: A `Dataset` or a stream.
        mapping: Our name -> column, path or list of them. What cannot be found is left as it is.

    Returns:
        The data set with these columns, and the mapping to names of columns.

    Example:
        >>> rows = datasets.Dataset.from_dict({"media": [{"image": "a.png"}]})
        >>> with_derived_columns(rows, {"image": "media.image"})[0]["media.image"][:]
        ['a.png']
    """
    columns = columns_of(dataset)
    wanted = {}
    for column in mapping.values():
        parts = column if isinstance(column, (list, tuple)) else [column]
        if list(parts) != [column] or column not in columns:
            paths = [[part] if part in columns else str(part).split(".") for part in parts]
            lacking = [path for path in paths if not _is_there(dataset, columns, path)]
            if not lacking:
                wanted[_name_of(column)] = paths
            elif isinstance(column, (list, tuple)):
                raise ValueError(
                    f"column_mapping: there is no column {'.'.join(lacking[0])!r} (of {list(column)})"
                    f"{did_you_mean('.'.join(lacking[0]), columns)} Columns: {columns}."
                )
    named = {name: _name_of(column) for name, column in mapping.items()}
    if not wanted:
        return dataset, named
    if isinstance(dataset, datasets.IterableDataset):
        features = dataset.features and datasets.Features({**dataset.features, **_derived_features(dataset, wanted)})
        return dataset.map(partial(_with_derived, wanted=wanted), features=features), named
    roots = dataset.select_columns(sorted({path[0] for paths in wanted.values() for path in paths}))
    derived = table_of([{name: _derive(row, paths) for name, paths in wanted.items()} for row in roots])
    return datasets.concatenate_datasets([dataset, derived], axis=1), named


def field_paths(dataset: Any, column: str) -> list[str]:
    """A column, or the fields of one that holds objects: `["media.image", "media.text"]`."""
    return _paths_in(None if dataset.features is None else dataset.features.get(column), column)


def _paths_in(feature: Any, path: str) -> list[str]:
    if not isinstance(feature, dict):
        return [path]
    return [found for name, inner in feature.items() for found in _paths_in(inner, f"{path}.{name}")]


def _name_of(column: Any) -> str:
    return " + ".join(map(str, column)) if isinstance(column, (list, tuple)) else str(column)


def _is_there(dataset: Any, columns: Sequence[str], path: Sequence[str]) -> bool:
    if path[0] not in columns:
        return False
    if len(path) == 1:
        return True
    feature = None if dataset.features is None else dataset.features[path[0]]
    if isinstance(feature, dict):
        return ".".join(path) in field_paths(dataset, path[0])
    rows = dataset.select_columns([path[0]])  # without decoding the media beside it
    return any(_field(row, path) is not None for row in islice(rows, _PEEK))


def _field(row: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = row
    for name in path:
        if isinstance(value, list):  # SQuAD's `answers.text`, where each answer is an object
            value = [found for part in value if (found := _field(part, [name])) is not None] or None
        else:
            value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _derive(row: Mapping[str, Any], paths: Sequence[Sequence[str]]) -> Any:
    """One field's value, or those of several columns as numbers where they are."""
    values = [_field(row, path) for path in paths]
    return values[0] if len(paths) == 1 else [_number_or_same(value) for value in values]


def _number_or_same(value: Any) -> Any:
    try:
        return None if is_missing(value) else float(value)
    except (TypeError, ValueError):
        return value


def _with_derived(row: dict[str, Any], wanted: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, Any]:
    return {**row, **{name: _derive(row, paths) for name, paths in wanted.items()}}


def _derived_features(dataset: Any, wanted: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, Any]:
    number = datasets.List(datasets.Value("float64"))
    return {name: number if len(paths) > 1 else _feature_at(dataset, paths[0]) for name, paths in wanted.items()}


def _feature_at(dataset: Any, path: Sequence[str]) -> Any:
    feature = dataset.features
    for name in path:
        feature = feature[name]
    return feature


def _hint(columns: Sequence[str]) -> str:
    """What to say of a header that was not split."""
    (only, *others) = columns or [""]
    mark = next((mark for mark in "|:" if mark in only), None)
    return "" if others or mark is None else f" (one column: is {mark!r} the separator? It has to be a comma)"
