from __future__ import annotations

import doctest
import math
import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_dgl.analysis.comparison import statistics
from hf_dgl.analysis.comparison.statistics import Spread, paired

scores = st.lists(st.integers(0, 1000).map(lambda value: value / 1000), min_size=3, max_size=8)


def test_toy_numbers_against_scipy() -> None:
    ours, joint = [0.83, 0.84, 0.79, 0.86, 0.85], [0.80, 0.78, 0.79, 0.83, 0.80]
    found = paired(ours, joint)
    assert found.difference == pytest.approx(0.034)
    assert found.p_t == pytest.approx(scipy.stats.ttest_rel(ours, joint).pvalue)
    assert found.p_wilcoxon == pytest.approx(scipy.stats.wilcoxon(np.subtract(ours, joint)).pvalue)
    differences = np.subtract(ours, joint)
    half = scipy.stats.t.ppf(0.975, 4) * differences.std(ddof=1) / math.sqrt(5)
    assert (found.low, found.high) == pytest.approx((0.034 - half, 0.034 + half))
    assert found.verdict() == "better" and found.verdict(lower_is_better=True) == "worse"
    assert paired(joint, ours).verdict() == "worse"


def test_pairs_matter() -> None:
    joint = [0.1, 0.5, 0.9]
    ours = [value + gain for value, gain in zip(joint, [0.02, 0.021, 0.019], strict=True)]
    assert paired(ours, joint).verdict() == "better"
    assert paired(ours[::-1], joint).verdict() == "no clear difference"


@pytest.mark.parametrize("number", [1, 2])
def test_too_few_seeds_are_never_significant(number: int) -> None:
    found = paired([0.9, 0.9001][:number], [0.1, 0.1][:number])
    assert found.verdict() == "too few seeds"
    assert all(math.isnan(value) for value in (found.low, found.high, found.p_t, found.p_wilcoxon))
    assert found.difference == pytest.approx(0.8, abs=1e-3)


def test_differences_without_spread_are_not_tested() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paired([0.5, 0.6, 0.7], [0.5, 0.6, 0.7]).verdict() == "equal"
        found = paired([0.6, 0.7, 0.8], [0.5, 0.6, 0.7])
    assert found.verdict() == "the same difference in every seed: no test" and math.isnan(found.p_t)


@settings(deadline=None, max_examples=50)
@given(scores, st.integers(0, 100))
def test_interval_and_test_agree(joint: list[float], seed: int) -> None:
    ours = list(np.round(np.random.default_rng(seed).uniform(size=len(joint)), 3))
    found, back = paired(ours, joint), paired(joint, ours)
    assert back.difference == pytest.approx(-found.difference)
    if not math.isnan(found.p_t):
        assert found.low <= found.difference <= found.high
        assert (found.p_t < 0.05) == (not found.low <= 0 <= found.high)
        assert back.p_t == pytest.approx(found.p_t) and back.p_wilcoxon == pytest.approx(found.p_wilcoxon)


def test_values_that_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired([0.1, 0.2], [0.1])
    assert paired([0.1, math.nan, 0.3], [0.1, 0.2, 0.2]).verdict() != "better"


def test_spread() -> None:
    assert Spread.of([0.5, 0.7]) == pytest.approx((0.6, 0.1 * math.sqrt(2), 2))
    assert str(Spread.of([0.5])) == "0.500"  # no spread is claimed
    assert str(Spread(math.nan, math.nan, 0)) == "–"


def test_examples() -> None:
    assert doctest.testmod(statistics).failed == 0
