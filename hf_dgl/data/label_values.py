"""Labels as they stand in a column: cleaned, named, and told apart by what they are. What they *mean*: `labels.py`."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import datasets
import numpy as np
import torch

from .columns import is_missing

_INTEGER = re.compile(r"-?(0|[1-9]\d*)")  # no leading zeros: "007" is a name
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")  # float() takes "nan" and "1_000", too
FLOAT32 = np.finfo(np.float32)
_NUMBER_FOR_PEOPLE = re.compile(r"\d{1,3}([ ,.'’\u00a0\u202f]\d{3})*([.,]\d+)?|\d+[.,]?\d*")
_AROUND_NUMBERS = " +-$€£¥%\u00a0\u202f"
_LARGEST = float(FLOAT32.max)
TEXT, NUMBER, TRUTH, LIST = "a text", "a number", "true or false", "a list"


def plain(value: Any) -> Any:
    """A label in Python's own types, without blanks around it; None if it is missing.

    Example:
        >>> plain(np.int64(1)), plain(" cat "), plain(""), plain(torch.tensor([0.0, 1.0]))
        (1, 'cat', None, [0.0, 1.0])
    """
    if isinstance(value, str):  # the usual ones first: there may be millions
        return value.strip() or None
    if type(value) is int:
        return value
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        value = value.tolist()
    if isinstance(value, Decimal):  # from data bases, in parquet
        value = int(value) if value.as_tuple().exponent == 0 else float(value)
    if isinstance(value, (list, tuple)):
        entries = [plain(entry) for entry in value]
        return None if None in entries else entries
    return None if is_missing(value) else value


def is_integer(text: Any) -> bool:
    """Whether a text is a whole number as Python would write it."""
    return isinstance(text, str) and _INTEGER.fullmatch(text) is not None


def is_number(value: Any) -> bool:
    """Whether a label is a number, or a text that is one."""
    if isinstance(value, str):
        return _NUMBER.fullmatch(value) is not None
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def finite_float(value: Any) -> float:
    """A label as a number.

    Raises:
        ValueError: it is none, NaN or infinite, or beyond float32, in which models compute.
    """
    if not is_number(value) and not isinstance(value, bool):
        raise ValueError(f"expected a number (regression), got {value!r}.")
    number = float(value)
    if not abs(number) <= _LARGEST:
        raise ValueError(_too_large(number))
    return number


def _too_large(number: float) -> str:
    if not math.isfinite(number):
        return f"expected a finite number, got {number}."
    return f"expected a number below {_LARGEST:.2g}, got {number}. Divide the labels."


def number_for_people(text: str) -> bool:
    """Whether a text is a number with a decimal comma, thousands apart, a currency or a percent sign.

    Example:
        >>> [number_for_people(text) for text in ("1,5", "51 000", "$1,200.50", "7%", "1.5", "2020-01-01", "1.2.3")]
        [True, True, True, True, False, False, False]
    """
    return not is_number(text) and _NUMBER_FOR_PEOPLE.fullmatch(text.strip(_AROUND_NUMBERS)) is not None


def integer_name(value: Any) -> str:
    """`3` and `3.0` are the same class: tables of integers with gaps often hold fractions."""
    if value != int(value):
        raise ValueError(f"label {value!r} is not a whole number, so it names no class. Is this a regression?")
    return str(int(value))


def kind_of(value: Any) -> str | None:
    """`"a text"`, `"a number"`, ...; None for what no label can be: objects, infinity."""
    if isinstance(value, str):
        return TEXT
    if isinstance(value, bool):
        return TRUTH
    if isinstance(value, (int, float)):
        return NUMBER if abs(value) <= _LARGEST else None
    if isinstance(value, list) and all(kind_of(entry) not in (None, LIST) for entry in value):
        return LIST
    return None


def unlike_the_others(values: Sequence[Any]) -> dict[int, str]:
    """Labels of another kind than most of the column's: place -> what is wrong with it. Missing ones do not count.

    Numbers among texts that are numbers, too, are fine: ids are quoted here and not there. Where most labels are
    different numbers with a fraction (prices), texts that are none ("N/A") are unlike them, and not classes.

    Example:
        >>> unlike_the_others(["cat", "dog", 3])
        {2: "its label 3 is a number, and those of other rows are a text, e.g. 'cat'."}
    """
    kinds = [None if value is None else kind_of(value) or "no label" for value in values]
    counts = Counter(kind for kind in kinds if kind not in (None, "no label"))
    usual = max(counts, key=counts.__getitem__) if counts else None
    fine = {None, usual}
    if {usual} <= {TEXT, NUMBER} and all(is_number(v) for v, k in zip(values, kinds, strict=True) if k == TEXT):
        fine |= {TEXT, NUMBER}
    example = next((value for value, kind in zip(values, kinds, strict=True) if kind == usual), None)
    wrong = {}
    for place, (value, kind) in enumerate(zip(values, kinds, strict=True)):
        if kind == "no label":
            wrong[place] = no_label(value)
        elif kind not in fine:
            wrong[place] = (
                f"its label {_shown(value)} is {kind}, and those of other rows are {usual}, e.g. {_shown(example)}."
            )
    return wrong or (_texts_among_measurements(values) if usual in (TEXT, LIST) else {})


def _texts_among_measurements(values: Sequence[Any]) -> dict[int, str]:
    def are_numbers(value: Any) -> bool:
        return bool(value) and all(map(is_number, value if isinstance(value, list) else [value]))

    numbers = {str(value) for value in values if are_numbers(value)}
    if len(numbers) <= len(values) / 2 or not any("." in number for number in numbers):
        return {}
    example = next(value for value in values if are_numbers(value))
    return {
        place: f"its label {_shown(value)} is no number, and most others are, e.g. {_shown(example)}."
        for place, value in enumerate(values)
        if value is not None and not are_numbers(value)
    }


def no_label(value: Any) -> str:
    """What to say of an object, of lists in lists, of infinity."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, (int, float)) and kind_of(number) is None:
            return f"its label: {_too_large(number)}"
    return (
        f"its label is no text, number, truth value or list of them, but {type(value).__name__}: {_shown(value)}. "
        "Of an object name the field, e.g. label=answer.text."
    )


def ids_to_names(value: Any, feature: Any) -> Any:
    """Class ids of a `ClassLabel` (or of a list of them) as names; -1 ("hidden") and all else as it is."""
    if isinstance(feature, datasets.ClassLabel):
        return feature.int2str(value) if isinstance(value, int) and value >= 0 else value
    inner = getattr(feature, "feature", None)  # of a List
    if isinstance(inner, datasets.ClassLabel) and isinstance(value, (list, tuple)):
        return [ids_to_names(entry, inner) for entry in value]
    return value


def named(value: Any, feature: Any) -> Any:
    """A column's value as `plain` has it, ids of a `ClassLabel` as names."""
    return ids_to_names(plain(value), feature)


def similar_names(names: Sequence[str]) -> list[list[str]]:
    """Class names that differ only in case, in blanks or in how letters are encoded.

    Example:
        >>> similar_names(["A", "b", "a"])
        [['A', 'a']]
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups["".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
