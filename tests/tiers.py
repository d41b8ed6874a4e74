"""Which cases of a dear matrix run in the fast tier. The others are marked `slow`, and run with `--runslow` and in CI.

A matrix is thinned here and nowhere else, so that no case is ever lost: only its tier changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


def slow_but(*fast: Any, of: Iterable[Any]) -> list[Any]:
    """The cases of one parameter, all `slow` but those named.

    >>> [case if isinstance(case, str) else case.marks[0].name for case in slow_but("b", of=["a", "b"])]
    ['slow', 'b']
    """
    cases = list(of)
    assert all(case in cases for case in fast), f"{fast}: not all of them are in {cases}"
    return [case if case in fast else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def each_once(*axes: Sequence[Any], name: Callable[[Any], str] = str) -> list[Any]:
    """The product of several parameters; fast are so many cases that each value of each axis is in one of them.

    >>> [(case.values, len(case.marks)) for case in each_once("ab", "xy")]
    [(('a', 'x'), 0), (('a', 'y'), 1), (('b', 'x'), 1), (('b', 'y'), 0)]
    """
    length = max(map(len, axes))
    fast = set(zip(*([index % len(axis) for index in range(length)] for axis in axes), strict=True))
    cases = []
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        values = [axis[place] for axis, place in zip(axes, places, strict=True)]
        marks = () if places in fast else (pytest.mark.slow,)
        cases.append(pytest.param(*values, marks=marks, id="-".join(name(value) for value in values)))
    return cases
