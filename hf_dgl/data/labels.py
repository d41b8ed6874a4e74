"""What the label column means: read once from the training split, then applied to every split."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from transformers.utils import logging

from hf_dgl.method.modalities import did_you_mean

from .columns import LABEL_COLUMN, ROW_COLUMN, expect_dataset, replace_column, row_name
from .label_values import (
    FLOAT32,
    finite_float,
    integer_name,
    is_integer,
    kind_of,
    named,
    no_label,
    plain,
    unlike_the_others,
)
from .problem_types import (
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE_LABEL,
    check_fits,
    checked_names,
    guess_problem_type,
    is_class_label,
    names_of_classes,
    warn_of_unseen,
)

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class LabelSpec:
    """The meaning of labels, in Transformers' terms.

    Args:
        problem_type: `single_label_classification`, `multi_label_classification` or `regression`.
        names: class names in the order of their ids; for regression those of the quantities.
        mean, std: for regression of each quantity in the training split, by which the model standardises it.

    Example:
        >>> LabelSpec("single_label_classification", ("cat", "dog")).encode_value("dog")
        1
    """

    problem_type: str
    names: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.problem_type not in PROBLEM_TYPES:
            raise ValueError(
                f"Unknown problem_type {self.problem_type!r}{did_you_mean(self.problem_type, PROBLEM_TYPES)}"
            )

    @property
    def num_labels(self) -> int:
        """Width of the logits; for regression the number of quantities."""
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """For the model's config."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """For the model's config."""
        return {name: index for index, name in enumerate(self.names)}

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return self.label2id

    @functools.cached_property
    def _are_numbers(self) -> tuple[bool, bool]:
        """Whether all, and whether any of the names are whole numbers."""
        found = [is_integer(name) for name in self.names]
        return all(found), any(found)

    def to_config(self) -> dict[str, Any]:
        """Arguments of a model's configuration, or of `CrossModalForSequenceClassification.from_encoders`.

        Example:
            >>> LabelSpec("regression", ("price",), (51_000.0,), (800.0,)).to_config()["label_mean"]
            [51000.0]
        """
        config: dict[str, Any] = {"num_labels": self.num_labels, "id2label": self.id2label, "label2id": self.label2id}
        config["problem_type"] = self.problem_type
        if self.mean is not None and self.std is not None:
            config |= {"label_mean": list(self.mean), "label_std": list(self.std)}
        return config

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
        | strings, booleans, integers | single-label | the values, sorted (numbers by size) |
        | lists of strings or of `ClassLabel` | multi-label | the values, sorted; `ClassLabel`: its own |
        | lists of 0/1, all of one length (multi-hot) | multi-label | the positions |
        | floats; strings that are all numbers, some with a fraction | regression | |
        | lists of floats, all of one length | regression of several quantities | |

        Blanks around a label do not count; an empty one is missing.

        Args:
            dataset: the training split. Of a stream only the first label is read, so that its classes have to be
                those of a `ClassLabel`, or `class_names`.
            problem_type: overrides the guess, e.g. `regression` for integers.
            column: the label column.
            class_names: in the order of their ids; in place of those of the label column. For several quantities
                their names.

        Raises:
            ValueError: no such column, no rows, a null label or one of another type (names the row), a single
                class, a `problem_type` that does not fit the column, or a stream of which nobody says the classes.

        Example:
            >>> LabelSpec.from_dataset(datasets.Dataset.from_dict({"label": ["dog", "cat"]})).id2label
            {0: 'cat', 1: 'dog'}
        """
        feature, values = _first_labels(dataset, column)
        guessed = guess_problem_type(values, quietly=problem_type is not None or class_names is not None)
        if class_names is not None and guessed == REGRESSION and kind_of(values[0]) != "a list":
            guessed = SINGLE_LABEL
        problem_type = problem_type or guessed
        cls(problem_type, (column,))  # refuses an unknown problem_type
        check_fits(problem_type, guessed, values, column)
        if problem_type == REGRESSION:
            return _quantities(cls, dataset, values, column, class_names)
        if class_names is not None:
            names = checked_names(class_names, feature)
        elif isinstance(dataset, datasets.IterableDataset) and not is_class_label(feature):
            raise ValueError(
                "streaming: the classes have to be known before the rows are read. Name them in the order of their "
                f"ids: `--class_names cat dog` (the first label is {values[0]!r}). Or set `problem_type: regression`."
            )
        else:
            names = names_of_classes(feature, values)
        if not names:
            raise ValueError(f"No row of the training split has a label in its list (column {column!r}).")
        if problem_type == SINGLE_LABEL and len(names) < 2:
            raise ValueError(
                f"All labels of the training split are {names[0]!r}; at least 2 classes are needed. Is {column!r} the "
                "right column, or were sorted rows cut off (max_train_samples)?"
            )
        if not isinstance(dataset, datasets.IterableDataset):
            warn_of_unseen(names, values)
        return cls(problem_type, names)

    def encode_value(self, value: Any) -> int | float | list[float]:
        """One label as the loss takes it.

        Args:
            value: single-label: class id (int) or name (str); multi-label: multi-hot floats, or a list of names;
                regression: a number, or a list of them. numpy's and torch's are like Python's.

        Returns:
            Class id, multi-hot list of `num_labels` floats, float, or list of floats.

        Raises:
            ValueError: null, or unknown to training.
        """
        raw, value = value, plain(value)
        if value is None:
            raise ValueError("no label: the label is null. Remove the row or give it a label.")
        if kind_of(value) is None:
            raise ValueError(no_label(raw))
        if self.problem_type == SINGLE_LABEL:
            return self._class_id(raw if isinstance(raw, str) and raw in self._ids else value)
        if self.problem_type == REGRESSION and self.num_labels == 1:
            return finite_float(value[0] if isinstance(value, list) and len(value) == 1 else value)
        if not isinstance(value, list):
            raise ValueError(f"expected a list of labels, got {value!r}.")
        if self.problem_type == REGRESSION:
            if len(value) != self.num_labels:
                raise ValueError(f"expected {self.num_labels} numbers ({', '.join(self.names)}), got {value!r}.")
            return [finite_float(entry) for entry in value]
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
            (multi-label) or a float (regression; a list of them for several quantities).

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
            feature, example = first_label(data, column)
            encode = functools.partial(self._encode_row, feature=feature, example=example, split=split, column=column)
            return data.map(encode)
        expect_dataset(data, f"split {split!r}")
        encoded, feature = [], data.features[column] if column in data.features else None
        for index, value in enumerate(_checked_values(data, column, split)):
            try:
                encoded.append(self.encode_value(self._raw_integer_to_name(value, feature)))
            except ValueError as error:
                raise ValueError(f"{row_name(data, index, split)}, column {column!r}: {error}{_SKIP}") from error
        if feature == self._feature():
            return data
        return replace_column(data, column, encoded, self._feature())

    def encode_raw(self, value: Any, feature: Any, example: Any = None) -> int | float | list[float]:
        """`encode_value` for a label as it stands in a column.

        Args:
            value: The label.
            feature: Type of the column; None: not declared.
            example: Another label of the column, as [`first_label`] gives it: `value` must be of its kind.

        Raises:
            ValueError: as `encode_value`, or another kind of label.
        """
        value = named(value, feature)
        if reason := unlike_the_others([example, example, value]).get(2):
            raise ValueError(reason)
        return self.encode_value(self._raw_integer_to_name(value, feature))

    def _encode_row(self, row: dict[str, Any], feature: Any, example: Any, split: str, column: str) -> dict[str, Any]:
        try:
            return {**row, column: self.encode_raw(row.get(column), feature, example)}
        except ValueError as error:
            where = f"Row {row[ROW_COLUMN]} (split {split!r})" if ROW_COLUMN in row else f"A row of split {split!r}"
            raise ValueError(f"{where}, column {column!r}: {error}{_SKIP}") from error

    def _raw_integer_to_name(self, value: Any, feature: Any) -> Any:
        """Integers are class ids where classes have real names, but values to look up where the names are integers."""
        if (
            self.problem_type != SINGLE_LABEL
            or isinstance(value, (str, bool))
            or isinstance(feature, datasets.ClassLabel)
        ):
            return value
        is_number_ = isinstance(value, (int, float))
        return integer_name(value) if is_number_ and self._are_numbers[0] else value

    def _feature(self) -> Any:
        if self.problem_type == SINGLE_LABEL:
            return datasets.ClassLabel(names=list(self.names))
        value = datasets.Value("float32")
        return value if self.problem_type == REGRESSION and self.num_labels == 1 else datasets.List(value)

    def _class_id(self, value: Any) -> int:
        """A class id from an id (number) or a name (anything else)."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if value in range(self.num_labels):
                return int(value)
            raise ValueError(
                f"label {value!r} is none of the class ids 0...{self.num_labels - 1} seen in training. (-1 means "
                "'hidden' in many public test splits: such a split cannot be scored, set test_split=null.)"
            )
        index = self._ids.get(str(value))
        if index is None and is_integer(value) and not self._are_numbers[1]:
            return self._class_id(int(value))  # an id from csv, where all is text
        if index is None:
            known = ", ".join(self.names[:10]) + (", ..." if self.num_labels > 10 else "")
            raise ValueError(
                f"label {str(value)!r} does not occur in the training split (classes: {known})"
                f"{did_you_mean(str(value), self.names)}"
            )
        return index


_SKIP = " Or leave such rows out: --on_error skip."


def _checked_values(dataset: datasets.Dataset, column: str, split: str) -> list[Any]:
    """The label column as `label_values.named` has it. Refuses missing labels, and those unlike the others."""
    if column not in dataset.column_names:
        raise ValueError(
            f"Split {split!r} has no label column {column!r}; its columns are {dataset.column_names}. Name it with "
            f"column_mapping, e.g. {column}=<column>."
        )
    feature = dataset.features[column]
    values = [named(value, feature) for value in dataset.select_columns(column)[column][:]]
    nulls = [index for index, value in enumerate(values) if value is None]
    if nulls:
        others = f", nor have {len(nulls) - 1} other rows" if len(nulls) > 1 else ""
        raise ValueError(
            f"{row_name(dataset, nulls[0], split)} has no label (column {column!r} is null){others}. Label such rows, "
            "or leave them out: --on_error skip."
        )
    for index, reason in unlike_the_others(values).items():
        raise ValueError(f"{row_name(dataset, index, split)}, column {column!r}: {reason}{_SKIP}")
    return values


def _first_labels(dataset: Any, column: str) -> tuple[Any, list[Any]]:
    """The type of the label column, and its values; of a stream only the first."""
    if not isinstance(dataset, datasets.IterableDataset):
        expect_dataset(dataset, "train_dataset")
        values = _checked_values(dataset, column, "train")
        return dataset.features[column], values
    feature, value = first_label(dataset, column)
    if value is None or kind_of(value) is None:
        reason = f"it has no label (column {column!r})" if value is None else no_label(value)
        raise ValueError(f"The first row of the training split: {reason}{_SKIP}")
    return feature, [value]


def first_label(stream: datasets.IterableDataset, column: str = LABEL_COLUMN) -> tuple[Any, Any]:
    """The type of a stream's label column (None: not declared), and its first label as `label_values.named` has it."""
    feature = None if stream.features is None else stream.features.get(column)
    first: dict[str, Any] = next(iter(stream), {})
    return feature, named(first.get(column), feature)


def _quantities(
    cls: type[LabelSpec], dataset: Any, values: Sequence[Any], column: str, names: Sequence[str] | None
) -> LabelSpec:
    """What a regression predicts, with mean and standard deviation (of a stream they are not known yet)."""
    rows = [value if isinstance(value, list) else [value] for value in values]
    if len(lengths := {len(row) for row in rows}) > 1:
        raise ValueError(f"Labels that are lists of numbers need the same length in every row, got {sorted(lengths)}.")
    count = lengths.pop()
    if names is None or len(names) != count:
        names = (column,) if count == 1 else tuple(f"{column}_{index}" for index in range(count))
    if isinstance(dataset, datasets.IterableDataset):
        return cls(REGRESSION, tuple(names))
    table = np.empty((len(rows), count))
    for index, row in enumerate(rows):
        try:
            table[index] = [finite_float(entry) for entry in row]
        except ValueError as error:
            raise ValueError(f"{row_name(dataset, index, 'train')}, column {column!r}: {error}{_SKIP}") from error
    mean, std = table.mean(axis=0), table.std(axis=0)
    std = np.where(std > 0, std, 1.0)  # a constant: nothing to scale
    if (std < 10 * FLOAT32.tiny).any():
        logger.warning(
            f"The labels vary by {std.min():.3g}, which is too little to compute with: multiply them first."
        )
    elif (std < 1e-5 * np.abs(mean)).any():
        logger.warning(
            f"The labels vary by {std.min():.3g} around {mean[std.argmin()]:.6g}, and models compute with about 7 "
            "digits: subtract a constant from them first."
        )
    return cls(REGRESSION, tuple(names), tuple(mean.tolist()), tuple(std.tolist()))
