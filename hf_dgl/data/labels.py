"""What the label column means: read once from the training split, then applied to every split."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from hf_dgl.method.modalities import did_you_mean

from .columns import LABEL_COLUMN, ROW_COLUMN, replace_column, row_name

SINGLE_LABEL, MULTI_LABEL, REGRESSION = PROBLEM_TYPES = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
"""Transformers' own words for `config.problem_type`."""


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


@dataclass(frozen=True)
class LabelSpec:
    """The meaning of labels, in Transformers' terms.

    Args:
        problem_type: `single_label_classification`, `multi_label_classification` or `regression`.
        names: class names in the order of their ids; for regression one name, of the quantity.

    Example:
        >>> LabelSpec("single_label_classification", ("cat", "dog")).encode_value("dog")
        1
    """

    problem_type: str
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.problem_type not in PROBLEM_TYPES:
            raise ValueError(
                f"Unknown problem_type {self.problem_type!r}{did_you_mean(self.problem_type, PROBLEM_TYPES)}"
            )

    @property
    def num_labels(self) -> int:
        """Width of the logits; 1 for regression."""
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """For the model's config."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """For the model's config."""
        return {name: index for index, name in enumerate(self.names)}

    @classmethod
    def from_config(cls, config: Any) -> LabelSpec:
        """The labels that a model was trained with, from its config (`id2label`, `problem_type`)."""
        names = tuple(config.id2label[index] for index in sorted(config.id2label))
        default = REGRESSION if len(names) == 1 else SINGLE_LABEL  # as Transformers guesses
        return cls(config.problem_type or default, names)

    @classmethod
    def from_dataset(
        cls,
        dataset: datasets.Dataset | datasets.IterableDataset,
        problem_type: str | None = None,
        column: str = LABEL_COLUMN,
        class_names: Sequence[str] | None = None,
    ) -> LabelSpec:
        """Reads the meaning of the labels off the training split.

        | label column | problem type | class names |
        |---|---|---|
        | `ClassLabel` | single-label | its own |
        | strings, booleans, integers | single-label | the values, sorted |
        | lists of strings or of `ClassLabel` | multi-label | the values, sorted; `ClassLabel`: its own |
        | lists of 0/1, all of one length (multi-hot) | multi-label | the positions |
        | floats | regression | |

        Args:
            dataset: the training split. Of a stream only the first label is read, so that its classes have to be
                those of a `ClassLabel`, or `class_names`.
            problem_type: overrides the guess, e.g. `regression` for integers.
            column: the label column.
            class_names: in the order of their ids; in place of those of the label column.

        Raises:
            ValueError: no such column, no rows, a null label (names the row), a single class, a `problem_type` that
                does not fit the column, or a stream of which nobody says the classes.

        Example:
            >>> LabelSpec.from_dataset(datasets.Dataset.from_dict({"label": ["dog", "cat"]})).id2label
            {0: 'cat', 1: 'dog'}
        """
        feature, values = _first_labels(dataset, column)
        guessed = _guess_problem_type(values)
        if class_names is not None and guessed == REGRESSION and problem_type is None:
            guessed = SINGLE_LABEL  # integers with gaps are read as floats from csv
        problem_type = problem_type or guessed
        spec = cls(problem_type, (column,))  # refuses an unknown problem_type
        if (guessed == MULTI_LABEL) != (problem_type == MULTI_LABEL) or (
            problem_type == REGRESSION and isinstance(values[0], str)
        ):
            raise ValueError(
                f"problem_type={problem_type!r} does not fit the label column {column!r}, which holds values like "
                f"{values[0]!r}: that is {guessed!r}."
            )
        if problem_type == REGRESSION:
            return spec
        if class_names is not None:
            names = _checked_names(class_names, feature)
        elif isinstance(dataset, datasets.IterableDataset) and not _is_class_label(feature):
            raise ValueError(
                "streaming: the classes have to be known before the rows are read. Name them in the order of their "
                f"ids: `--class_names cat dog` (the first label is {values[0]!r}). Or set `problem_type: regression`."
            )
        else:
            names = _class_names(feature, values)
        if problem_type == SINGLE_LABEL and len(names) < 2:
            raise ValueError(
                f"All labels of the training split are {names[0]!r}; at least 2 classes are needed. Is {column!r} the "
                "right column, or were sorted rows cut off (max_train_samples)?"
            )
        return cls(problem_type, names)

    def encode_value(self, value: Any) -> int | float | list[float]:
        """One label as the loss takes it.

        Args:
            value: single-label: class id (int) or name (str); multi-label: multi-hot floats, or a list of names;
                regression: a number.

        Returns:
            Class id, multi-hot list of `num_labels` floats, or float.

        Raises:
            ValueError: null, or unknown to training.
        """
        if value is None:
            raise ValueError("the label is null. Remove the row or give it a label.")
        if self.problem_type == SINGLE_LABEL:
            return self._class_id(value)
        if self.problem_type == REGRESSION:
            return _finite_float(value)
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"expected a list of labels, got {value!r}.")
        if len(value) == self.num_labels and all(not isinstance(entry, str) and entry in (0, 1) for entry in value):
            return [float(entry) for entry in value]
        multi_hot = [0.0] * self.num_labels
        for entry in value:
            multi_hot[self._class_id(entry)] = 1.0
        return multi_hot

    def encode(self, data: Any, split: str = "train", column: str = LABEL_COLUMN) -> Any:
        """`data` with labels as the loss takes them; checks every row, so that a run does not stop halfway.

        Args:
            data: a split, or all of them. Encoding twice changes nothing. Streams are encoded, and checked, while
                they are read.
            split: the name of the split, for messages; of no effect for a `DatasetDict`.
            column: the label column.

        Returns:
            The same rows; the label column is a `ClassLabel` (single-label), a list of `num_labels` floats
            (multi-label) or a float (regression).

        Raises:
            ValueError: a label that is null or that training never saw; names label, row and split.

        Example:
            >>> data = datasets.Dataset.from_dict({"label": ["dog", "cat"]})
            >>> LabelSpec.from_dataset(data).encode(data)["label"][:]
            [1, 0]
        """
        if isinstance(data, (datasets.DatasetDict, datasets.IterableDatasetDict)):
            return type(data)({name: self.encode(part, name, column) for name, part in data.items()})
        if isinstance(data, datasets.IterableDataset):
            feature = None if data.features is None else data.features[column]
            return data.map(functools.partial(self._encode_row, feature=feature, split=split, column=column))
        expect_dataset(data, f"split {split!r}")
        encoded, feature = [], data.features[column]
        for index, value in enumerate(_named_values(data, column, split)):
            try:
                encoded.append(self.encode_value(self._raw_integer_to_name(value, feature)))
            except ValueError as error:
                raise ValueError(f"{row_name(data, index, split)}, column {column!r}: {error}") from error
        if feature == self._feature():
            return data
        return replace_column(data, column, encoded, self._feature())

    def encode_raw(self, value: Any, feature: Any) -> int | float | list[float]:
        """`encode_value` for a label as it stands in a column of type `feature` (None: not declared)."""
        return self.encode_value(self._raw_integer_to_name(_ids_to_names(value, feature), feature))

    def _encode_row(self, row: dict[str, Any], feature: Any, split: str, column: str) -> dict[str, Any]:
        try:
            return {**row, column: self.encode_raw(row.get(column), feature)}
        except ValueError as error:
            where = f"Row {row[ROW_COLUMN]} (split {split!r})" if ROW_COLUMN in row else f"A row of split {split!r}"
            raise ValueError(f"{where}, column {column!r}: {error}") from error

    def _raw_integer_to_name(self, value: Any, feature: Any) -> Any:
        """Integers are class ids where classes have real names, but values to look up where the names are integers."""
        if (
            self.problem_type != SINGLE_LABEL
            or isinstance(value, (str, bool))
            or isinstance(feature, datasets.ClassLabel)
        ):
            return value
        return _integer_name(value) if all(name.lstrip("-").isdigit() for name in self.names) else value

    def _feature(self) -> Any:
        if self.problem_type == SINGLE_LABEL:
            return datasets.ClassLabel(names=list(self.names))
        value = datasets.Value("float32")
        return value if self.problem_type == REGRESSION else datasets.List(value)

    def _class_id(self, value: Any) -> int:
        """A class id from an id (number) or a name (anything else)."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if value in range(self.num_labels):
                return int(value)
            raise ValueError(
                f"label {value!r} is none of the class ids 0...{self.num_labels - 1} seen in training. (-1 means "
                "'hidden' in many public test splits: such a split cannot be scored, set test_split=null.)"
            )
        index = self.label2id.get(str(value))
        if index is None:
            known = ", ".join(self.names[:10]) + (", ..." if self.num_labels > 10 else "")
            raise ValueError(
                f"label {str(value)!r} does not occur in the training split (classes: {known})"
                f"{did_you_mean(str(value), self.names)}"
            )
        return index


def _named_values(dataset: datasets.Dataset, column: str, split: str) -> list[Any]:
    """The label column with `ClassLabel` ids turned into names; integers and the rest as they are. Refuses nulls."""
    if column not in dataset.column_names:
        raise ValueError(
            f"Split {split!r} has no label column {column!r}; its columns are {dataset.column_names}. Name it with "
            f"column_mapping, e.g. {column}=<column>."
        )
    labels = dataset.select_columns(column)
    values = labels[column][:]
    nulls = [index for index, value in enumerate(values) if value is None or value != value]
    if nulls:
        others = f", nor have {len(nulls) - 1} other rows" if len(nulls) > 1 else ""
        raise ValueError(
            f"{row_name(dataset, nulls[0], split)} has no label (column {column!r} is null){others}. Label such rows, "
            "or leave them out: --on_error skip."
        )
    feature = dataset.features[column]
    return [_ids_to_names(value, feature) for value in values]


def _first_labels(dataset: Any, column: str) -> tuple[Any, list[Any]]:
    """The type of the label column, and its values; of a stream only the first."""
    if not isinstance(dataset, datasets.IterableDataset):
        expect_dataset(dataset, "train_dataset")
        return dataset.features[column] if column in dataset.features else None, _named_values(
            dataset, column, "train"
        )
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError("train_dataset: the stream has no rows.")
    if first.get(column) is None:
        raise ValueError(
            f"The first row of the training split has no label (column {column!r}); its columns are {list(first)}."
        )
    feature = None if dataset.features is None else dataset.features[column]
    return feature, [_ids_to_names(first[column], feature)]


def _is_class_label(feature: Any) -> bool:
    return isinstance(getattr(feature, "feature", feature), datasets.ClassLabel)


def _ids_to_names(value: Any, feature: Any) -> Any:
    """Class ids of a `ClassLabel` (or of a list of them) as names; -1 ("hidden") and all else as it is."""
    if isinstance(feature, datasets.ClassLabel):
        return feature.int2str(value) if isinstance(value, int) and value >= 0 else value
    inner = getattr(feature, "feature", None)  # of a List
    if isinstance(inner, datasets.ClassLabel) and isinstance(value, (list, tuple)):
        return [_ids_to_names(entry, inner) for entry in value]
    return value


def _checked_names(class_names: Sequence[str], feature: Any) -> tuple[str, ...]:
    names = tuple(map(str, class_names))
    if len(set(names)) < len(names):
        raise ValueError(f"class_names: expected every name once, got {list(names)}.")
    declared = getattr(feature, "feature", feature)
    if isinstance(declared, datasets.ClassLabel) and (unknown := set(declared.names) - set(names)):
        raise ValueError(f"class_names: the label column's classes {sorted(unknown)} are missing in {list(names)}.")
    return names


def _guess_problem_type(values: Sequence[Any]) -> str:
    if isinstance(values[0], list):
        return MULTI_LABEL
    return REGRESSION if isinstance(values[0], float) else SINGLE_LABEL


def _class_names(feature: Any, values: Sequence[Any]) -> tuple[str, ...]:
    """Class names in the order of their ids."""
    inner = getattr(feature, "feature", feature)
    if isinstance(inner, datasets.ClassLabel):
        return tuple(inner.names)
    if isinstance(values[0], list):
        flat = {entry for value in values for entry in value}
        if all(isinstance(entry, str) for entry in flat):
            return tuple(sorted(flat))
        lengths = {len(value) for value in values}
        if len(lengths) > 1 or not flat <= {0, 1}:
            raise ValueError(
                "Labels that are lists of numbers must be multi-hot: zeros and ones, as many in every row as there "
                f"are classes. Got values {sorted(flat)[:5]}, lengths {sorted(lengths)[:5]}. Or use class names."
            )
        return tuple(str(index) for index in range(lengths.pop()))
    distinct = set(values)
    if all(isinstance(value, (str, bool)) for value in distinct):
        return tuple(sorted(map(str, distinct)))
    return tuple(_integer_name(value) for value in sorted(distinct))


def _integer_name(value: Any) -> str:
    """`3` and `3.0` are the same class: a column of integers with gaps is read as floats from csv."""
    if value != int(value):
        raise ValueError(f"label {value!r} is not a whole number, so it names no class. Is this a regression?")
    return str(int(value))


def _finite_float(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"expected a number (regression), got {value!r}.") from None
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number (regression), got {number}.")
    return number
