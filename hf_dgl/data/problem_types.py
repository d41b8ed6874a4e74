"""Which kind of problem labels pose, told from their values, and the names of their classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
from transformers.utils import logging

from .label_values import integer_name, is_integer, is_number, number_for_people

logger = logging.get_logger(__name__)

SINGLE_LABEL, MULTI_LABEL, REGRESSION = PROBLEM_TYPES = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
"""Transformers' own words for `config.problem_type`."""


def guess_problem_type(values: Sequence[Any], quietly: bool = False) -> str:
    """What labels are, as the table at [`LabelSpec.from_dataset`] says.

    Args:
        values: From `label_values.plain`, none of them missing, all of one kind.
        quietly: Do not warn that texts are taken for numbers.
    """
    if isinstance(values[0], list):
        flat = [entry for value in values for entry in value]
        is_measured = any(isinstance(entry, float) and entry not in (0, 1) for entry in flat)
        if not quietly:
            _warn_of_texts({entry for entry in flat if isinstance(entry, str)})
        return REGRESSION if is_measured and all(map(is_number, flat)) else MULTI_LABEL
    if isinstance(values[0], float) or any(isinstance(value, float) for value in values):
        if not quietly and all(value == int(value) for value in map(float, values)):
            _say_regression(values)
        return REGRESSION
    if all(map(is_number, values)) and not all(isinstance(value, int) or is_integer(value) for value in values):
        if any(isinstance(value, str) and not _looks_like_a_code(value) for value in values):
            if not quietly:
                _say_regression(values)
            return REGRESSION
    if not quietly:
        _warn_of_numbers(values)
        _warn_of_texts({value for value in values if isinstance(value, str)})
    return SINGLE_LABEL


def _say_regression(values: Sequence[Any]) -> None:
    logger.warning(
        f"All labels are numbers, some with a fraction (e.g. {values[0]!r}): this is taken for a regression. If they "
        "name classes: `problem_type: single_label_classification`."
    )


def _warn_of_numbers(values: Sequence[Any]) -> None:
    """Says that numbers are taken for classes where it may not be meant."""
    texts = [value for value in values if not is_number(value)]
    numbers = {str(value) for value in values if is_number(value)}
    if len(texts) >= len(values) / 2:
        return
    if len(numbers) > max(10, len(values) / 2) or texts and any("." in number for number in numbers):
        but = f"All but {len(texts)} (e.g. {texts[0]!r}) of the" if texts else "The"
        logger.warning(
            f"{but} labels are numbers, {len(numbers):,} different ones in {len(values):,} rows: they are taken for "
            f"classes. For a regression: `problem_type: regression`{', without such rows' if texts else ''}."
        )


def _warn_of_texts(names: set[str]) -> None:
    """Says that texts are taken for one class each which are numbers, or several labels, to people."""
    numbers = [name for name in names if number_for_people(name)]
    if numbers and 2 * sum(name in numbers or is_number(name) for name in names) > len(names):
        logger.warning(
            f"Labels like {min(numbers)!r} are taken for names of classes, of which there are {len(names):,}. If they "
            "are numbers, write them as 1.5 or 51000: no decimal comma, no thousands apart, no unit."
        )
    if joined := _joined(sorted(names)):
        logger.warning(
            f"Labels like {joined!r} are taken for one class each. If a row has several labels, they have to be a "
            'list, which jsonl and parquet can hold: ["cat", "dog"].'
        )


def _joined(names: Sequence[str]) -> str | None:
    """A name that is several, to judge by the others: `cat|dog` beside `cat` and `dog`; or a list as a text."""
    lists = [name for name in names if name[0] + name[-1] in ("[]", "()", "{}")]
    if 2 * len(lists) > len(names):
        return max(lists, key=len)
    for mark in ",;|":
        parts = {name: {part.strip() for part in name.split(mark)} for name in names}
        joined = [name for name in names if len(parts[name]) > 1]
        counts = Counter(part for found in parts.values() for part in found)
        of_joined = {part for name in joined for part in parts[name]}
        if joined and 2 * sum(counts[part] > 1 for part in of_joined) > len(of_joined):
            return min(joined)
    return None


def _looks_like_a_code(text: str) -> bool:
    """`007` and `+1` are numbers to a calculator only: they name things."""
    return "." not in text and "e" not in text.lower()


def check_fits(problem_type: str, guessed: str, values: Sequence[Any], column: str) -> None:
    is_list = isinstance(values[0], list)
    fits = {
        SINGLE_LABEL: not is_list,
        MULTI_LABEL: is_list,
        REGRESSION: all(is_number(v) or isinstance(v, bool) for v in (values[0] if is_list else values[:1])),
    }
    if not fits[problem_type]:
        hint = " Numbers are written as 1.5 or 51000." if problem_type == REGRESSION else ""
        raise ValueError(
            f"problem_type={problem_type!r} does not fit the label column {column!r}, which holds values like "
            f"{values[0]!r}: that is {guessed!r}.{hint}"
        )


def checked_names(class_names: Sequence[str], feature: Any) -> tuple[str, ...]:
    names = tuple(map(str, class_names))
    if len(set(names)) < len(names):
        raise ValueError(f"class_names: expected every name once, got {list(names)}.")
    declared = getattr(feature, "feature", feature)
    if isinstance(declared, datasets.ClassLabel) and (unknown := set(declared.names) - set(names)):
        raise ValueError(f"class_names: the label column's classes {sorted(unknown)} are missing in {list(names)}.")
    return names


def is_class_label(feature: Any) -> bool:
    return isinstance(getattr(feature, "feature", feature), datasets.ClassLabel)


def names_of_classes(feature: Any, values: Sequence[Any]) -> tuple[str, ...]:
    """Class names in the order of their ids."""
    inner = getattr(feature, "feature", feature)
    if isinstance(inner, datasets.ClassLabel):
        return tuple(inner.names)
    if isinstance(values[0], list):
        flat = {entry for value in values for entry in value}
        lengths = {len(value) for value in values}
        if all(isinstance(entry, str) for entry in flat) and not (flat <= {"0", "1"} and lengths - {0, 1}):
            return _in_order(flat)
        if len(lengths) > 1 or not flat <= {0, 1}:
            raise ValueError(
                "Labels that are lists of numbers must be multi-hot: zeros and ones, as many in every row as there "
                f"are classes. Got values {sorted(flat, key=str)[:5]}, lengths {sorted(lengths)[:5]}. Or use class "
                "names; or `problem_type: regression`."
            )
        return tuple(str(index) for index in range(lengths.pop()))
    return _in_order({str(v) if isinstance(v, (str, bool)) else integer_name(v) for v in values})


def warn_of_unseen(names: Sequence[str], values: Sequence[Any]) -> None:
    """Says which of the declared classes no training row has: those of a folder that only the test split has, say."""
    seen = {entry for value in values for entry in (value if isinstance(value, list) else [value])}
    unseen = [name for name in names if name not in seen]
    if unseen and all(isinstance(entry, str) for entry in seen):
        more = f" and {len(unseen) - 5} more" if len(unseen) > 5 else ""
        logger.warning(
            f"No row of the training split is of the class{'es' if unseen[1:] else ''} "
            f"{', '.join(map(repr, unseen[:5]))}{more}: the model will not learn {'them' if unseen[1:] else 'it'}."
        )


def _in_order(names: set[str]) -> tuple[str, ...]:
    """Numbers by size, others as words."""
    return tuple(sorted(names, key=int) if all(map(is_integer, names)) else sorted(names))
