"""Offline tasks about two digits, one seen and one named: each has its own rule for what a modality alone can tell.

| sample | label, of digit `a` in the image and `b` in the sentence | the modalities are |
|---|---|---|
| `sum_mod_3` | (a + b) mod 3 | synergistic: each alone is at chance |
| `same_size` | whether both are above four, or both are not | synergistic |
| `match` | whether a = b | synergistic |
| `question` | the sentence asks whether `a` is even, above four, or has loops | mixed: the image alone tells a part |
| `size_and_sum` | a above four or not, and (a + b) mod 3 | mixed |
| `larger` | whether a > b | mixed: each alone tells a part |
| `sum` | a + b, of digits below five | mixed |
| `irrelevant_text` | a | the text is useless |

The handwriting is real (scikit-learn's digits, as in `samples.py`, with less noise), the sentences are templates.
Joint training learns these; full DGL, whose encoders learn from what a modality tells alone, cannot learn the
synergistic ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

LOOPS = (0, 6, 8, 9)
QUESTIONS: dict[str, Callable[[int], bool]] = {
    "is it even ?": lambda digit: digit % 2 == 0,
    "is it above four ?": lambda digit: digit > 4,
    "is it drawn with loops ?": lambda digit: digit in LOOPS,
}
_YES_NO = ["no", "yes"]


class TwoDigits(NamedTuple):
    """One task.

    Args:
        label: From the digit seen and the one named (or the number of the question) to the class.
        classes: Their names.
        digits: They are drawn from 0 to `digits` - 1.
        asks: Whether the sentence is one of [`QUESTIONS`].
        half_equal: Whether both digits are the same in every second row.
    """

    label: Callable[[int, int], int]
    classes: list[str]
    digits: int = 10
    asks: bool = False
    half_equal: bool = False


TWO_DIGITS = {
    "sum_mod_3": TwoDigits(lambda a, b: (a + b) % 3, ["0", "1", "2"], digits=9),
    "same_size": TwoDigits(lambda a, b: (a > 4) == (b > 4), _YES_NO),
    "match": TwoDigits(lambda a, b: a == b, _YES_NO, half_equal=True),
    "question": TwoDigits(lambda a, b: list(QUESTIONS.values())[b](a), _YES_NO, asks=True),
    "size_and_sum": TwoDigits(
        lambda a, b: 3 * (a > 4) + (a + b) % 3, [f"{size} {rest}" for size in ("small", "large") for rest in range(3)]
    ),
    "larger": TwoDigits(lambda a, b: a > b, _YES_NO),
    "sum": TwoDigits(lambda a, b: a + b, [str(total) for total in range(9)], digits=5),
    "irrelevant_text": TwoDigits(lambda a, b: a, [str(digit) for digit in range(10)]),
}
"""The tasks by the name of their sample."""


def draw(task: TwoDigits, num_rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The digits seen, the digits named (or the questions), and the labels, int64 `[num_rows]` each.

    Example:

        >>> seen, named, labels = draw(TWO_DIGITS["sum_mod_3"], 4, np.random.default_rng(0))
        >>> bool(((seen + named) % 3 == labels).all())
        True
    """
    seen = rng.permutation(np.arange(num_rows) % task.digits)
    named = rng.integers(len(QUESTIONS) if task.asks else task.digits, size=num_rows)
    if task.half_equal:
        named = np.where(
            rng.uniform(size=num_rows) < 0.5, seen, (seen + rng.integers(1, task.digits, num_rows)) % task.digits
        )
    labels = np.array([int(task.label(int(a), int(b))) for a, b in zip(seen, named, strict=True)])
    return seen, named, labels
