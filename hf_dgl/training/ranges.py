"""Ranges of settings, written beside the fields they are for, and checked wherever these come from.

    RANGES: ClassVar[dict[str, str]] = {"learning_rate": "[0, 100]"}

`[0, 1)` is the usual notation of intervals: from 0 to below 1. `-1 or [1, inf)` allows one value beside an interval.
NaN and infinity are in no range.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

_NOTATION = re.compile(r"(?:(?P<also>-?\d+) or )?(?P<open>[\[(])(?P<low>[^,]+), (?P<high>[^,]+)(?P<close>[\])])")


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of numbers, and maybe one number beside it.

    Example:

        >>> 1 in Range.of("[0, 1)"), str(Range.of("[0, 1)"))
        (False, 'from 0 to below 1')
    """

    low: float
    high: float
    excludes_low: bool
    excludes_high: bool
    also: float | None = None

    @staticmethod
    @functools.cache
    def of(notation: str) -> Range:
        """Reads `(0, 1]`, `[1, inf)`, `-1 or [1, inf)`."""
        match = _NOTATION.fullmatch(notation)
        assert match is not None, notation
        also = None if match["also"] is None else float(match["also"])
        return Range(float(match["low"]), float(match["high"]), match["open"] == "(", match["close"] == ")", also)

    def __contains__(self, number: float) -> bool:
        if number == self.also:
            return True
        if not math.isfinite(number):  # NaN, too
            return False
        above = number > self.low if self.excludes_low else number >= self.low
        return above and (number < self.high if self.excludes_high else number <= self.high)

    def __str__(self) -> str:
        beside = "" if self.also is None else f"{self.also:g} or "
        low = f"{beside}{'above' if self.excludes_low else 'from'} {self.low:.15g}"
        if math.isinf(self.high):
            return low if self.excludes_low else f"{beside}{self.low:.15g} or more"
        return f"{low} to {'below ' if self.excludes_high else ''}{self.high:.15g}"


def check_ranges(arguments: Any) -> None:
    """Refuses numbers that no run could have meant.

    Args:
        arguments: A dataclass with a table `RANGES`, field -> range. Of a field that holds a mapping or a list, every
            number in it is looked at.

    Raises:
        ValueError: names the field, its range and what it holds.
    """
    for name, notation in arguments.RANGES.items():
        check_range(name, getattr(arguments, name), notation)


def check_range(name: str, value: Any, notation: str) -> None:
    """As [`check_ranges`], for one value; what is no number is left to whoever reads it.

    Example:

        >>> check_range("adam_beta1", 1.0, "[0, 1)")
        ValueError: adam_beta1: expected a number from 0 to below 1, got 1.0.
    """
    if isinstance(value, Mapping):
        for key, entry in value.items():
            check_range(f"{name}: {key}", entry, notation)
        return
    if isinstance(value, (list, tuple)):
        for entry in value:
            check_range(name, entry, notation)
        return
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except OverflowError:  # a whole number of a thousand digits
        number = math.inf
    except (TypeError, ValueError):
        return
    if value is not None and not isinstance(value, bool) and number not in Range.of(notation):
        shown = repr(value) if len(str(number)) < 30 and not math.isinf(number) else str(number)
        raise ValueError(f"{name}: expected a number {Range.of(notation)}, got {shown}.")
