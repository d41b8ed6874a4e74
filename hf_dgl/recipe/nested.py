"""Numbers within `encoders` and `peft`, which are fields of other libraries' configurations: told by their names.

The configurations check little: a width of 0 is met as a division by zero deep inside a model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from hf_dgl.training.ranges import check_range

_WHOLE = {
    r"(?!type_)(.*_)?vocab_size": "[1, 10000000]",
    r"(.*_)?(size|sizes|dim|dims|d_model|d_ff|d_kv|width|channels|stride|strides|kernel)": "[1, 1000000]",
    r"(.*_)?(length|embeddings)": "[1, 10000000]",
    r"(.*_)?(heads|layers|depth|depths|groups|frames|bins|stages)|r": "[1, 10000]",
}
"""Name of an entry that is a whole number, or a list of them -> its range."""

_REAL = {
    r"(.*_)?(dropout|drop|layerdrop|droprate)|.*(_dropout_prob|_drop_rate|_drop_path_rate)": "[0, 1)",
    r".*_prob": "[0, 1]",
    r"(.*_)?(eps|epsilon)": "(0, 1]",
    r"initializer_range|init_std|initializer_factor": "(0, 1000]",
    r"lora_alpha": "(0, 1000000]",
    r".*": "(-inf, inf)",
}
"""Name of any other entry -> the range of its numbers; the first that matches counts."""


def check_nested(where: str, settings: Mapping[str, Any]) -> None:
    """Refuses widths, counts and probabilities that no model can have.

    Args:
        where: For messages, e.g. `encoders: image`.
        settings: Of one encoder, or of `peft`.

    Raises:
        ValueError: names the entry, what it has to be, and what it is.

    Example:

        >>> check_nested("encoders: image", {"model_type": "vit", "hidden_size": 0})
        ValueError: encoders: image: hidden_size: expected a number from 1 to 1000000, got 0.
    """
    for name, value in settings.items():
        if isinstance(value, Mapping):
            check_nested(f"{where}: {name}", value)
            continue
        whole = _range_of(str(name), _WHOLE)
        if whole is not None:
            for entry in value if isinstance(value, (list, tuple)) else [value]:
                _check_whole(f"{where}: {name}", entry)
        check_range(f"{where}: {name}", value, whole or _range_of(str(name), _REAL) or "(-inf, inf)")


def _range_of(name: str, ranges: Mapping[str, str]) -> str | None:
    return next((notation for pattern, notation in ranges.items() if re.fullmatch(pattern, name)), None)


def _check_whole(where: str, value: Any) -> None:
    if isinstance(value, (list, tuple)) or value is None:  # sizes of several axes; the configuration's default
        return
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value):  # from a command line
        return
    if not isinstance(value, int) or isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            return  # its range says it
        raise ValueError(f"{where}: expected a whole number, got {value!r}.")
