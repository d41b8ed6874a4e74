"""Mean and spread over seeds, and what can be said about the difference between two methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

MIN_SEEDS = 3
"""With fewer pairs nothing is said about significance."""

LEVEL = 0.05


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds (NaN for a single one).

    Example:

        >>> str(Spread.of([0.5, 0.7]))
        '0.600 ± 0.141'
    """

    mean: float
    deviation: float
    num_seeds: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """From one value per seed; at least one."""
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)), deviation, len(values))

    def text(self, digits: int) -> str:
        """With so many digits behind the decimal point."""
        if not math.isfinite(self.mean):
            return "–"
        deviation = f" ± {self.deviation:.{digits}f}" if math.isfinite(self.deviation) else ""
        return f"{self.mean:.{digits}f}{deviation}"

    def __str__(self) -> str:
        return self.text(3)


class Paired(NamedTuple):
    """Difference between two methods, seed by seed.

    Args:
        difference: Its mean.
        low, high: 95 % confidence interval of the mean, by Student's t. NaN with fewer than three seeds.
        p_t: Two-sided p-value of the paired t-test; NaN with fewer than three seeds, or if all differences are equal.
        p_wilcoxon: Of Wilcoxon's signed-rank test, which assumes no normal distribution. With n seeds it cannot be
            below `2 / 2**n`: 0.0625 for five.
        num_seeds: Pairs.
    """

    difference: float
    low: float
    high: float
    p_t: float
    p_wilcoxon: float
    num_seeds: int

    def interval(self) -> str:
        """`+0.005 to +0.055`; a dash where there is none."""
        return f"{self.low:+.3f} to {self.high:+.3f}" if math.isfinite(self.low) else "–"

    def verdict(self, lower_is_better: bool = False) -> str:
        """In words: `better`, `worse`, `no clear difference`, `too few seeds`, ..."""
        if self.num_seeds < MIN_SEEDS:
            return "too few seeds"
        if math.isnan(self.p_t):
            return "equal" if self.difference == 0 else "the same difference in every seed: no test"
        if self.p_t >= LEVEL:
            return "no clear difference"
        return "better" if (self.difference > 0) != lower_is_better else "worse"


def paired(values: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compares a method with a baseline over the same seeds.

    Args:
        values, baseline: One value per seed, in the same order.

    Raises:
        ValueError: if they are not as many, or none.

    Example:

        >>> found = paired([0.8, 0.9, 0.9], [0.7, 0.7, 0.8])
        >>> round(found.difference, 3), round(found.p_t, 3), found.verdict()
        (0.133, 0.057, 'no clear difference')
    """
    if len(values) != len(baseline) or not values:
        raise ValueError(f"Pairs need as many values on both sides, got {len(values)} and {len(baseline)}.")
    differences = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    mean, number = float(differences.mean()), len(differences)
    unknown = Paired(mean, math.nan, math.nan, math.nan, math.nan, number)
    if number < MIN_SEEDS or not np.isfinite(differences).all():
        return unknown
    if np.allclose(differences, mean, rtol=0, atol=1e-12):  # no spread: a test would divide by zero
        return unknown._replace(difference=0.0 if abs(mean) < 1e-12 else mean, low=mean, high=mean)
    test = scipy.stats.ttest_rel(values, baseline)
    low, high = test.confidence_interval(1 - LEVEL)
    wilcoxon = scipy.stats.wilcoxon(differences).pvalue
    return Paired(mean, float(low), float(high), float(test.pvalue), float(wilcoxon), number)
