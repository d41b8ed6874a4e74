"""`train_sampling_strategy: group_by_length`, or `batch_rebalance`: how long a row of raw data is.

Upstream takes the length of the first input of the processor. In rows as this toolkit reads them that may be the path
of an image. Texts count by their characters; audio, where there is no text, by its seconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import has_length

from hf_dgl.data.audio import audio_seconds

STRATEGIES = ("group_by_length", "batch_rebalance")
_MILLISECONDS = 1000  # lengths are whole numbers


def with_lengths(dataset: Any, processor: Any, column: str) -> Any:
    """What upstream's samplers may be given in place of a data set: a column of lengths, or the data set itself.

    Args:
        dataset: With a length; rows are dictionaries.
        processor: The Trainer's `processing_class`.
        column: `length_column_name`; where the data set has it, it counts.

    Returns:
        The data set, where upstream finds the lengths by itself.

    Raises:
        ValueError: nothing in a row tells how long it is.

    Example:

        >>> with_lengths([{"image": "cat.png", "text": "a cat"}], processor, "length")["length"]
        [5]
    """
    rows: Any = dataset
    if rows is None or not has_length(dataset) or column in getattr(dataset, "column_names", ()):
        return dataset
    names = list(getattr(processor, "modalities", ()))
    if not names:
        _refuse_paths(dataset, processor, column)
        return dataset
    for name, measure in [(name, _measure(processor, name)) for name in names]:
        if measure is not None:
            values = dataset[name] if isinstance(dataset, datasets.Dataset) else (row.get(name) for row in rows)
            return datasets.Dataset.from_dict({column: [0 if value is None else measure(value) for value in values]})
    raise ValueError(
        f"Rows of {names} have no length to group by: remove `train_sampling_strategy`, or give the data set a column "
        f"{column!r} with lengths."
    )


def _measure(processor: Any, name: str) -> Any:
    """What gives the length of a modality's values; texts come before audio."""
    of_modality = getattr(processor, "processors", {})
    texts = [n for n, part in of_modality.items() if isinstance(part, PreTrainedTokenizerBase)] or ["text"]
    if name in texts:
        return _of_text
    if set(texts) & set(processor.modalities):
        return None
    rate = processor.sampling_rate(name) if hasattr(processor, "sampling_rate") else None
    return None if rate is None else lambda value: round(audio_seconds(value, rate) * _MILLISECONDS)


def _of_text(value: Any) -> int:
    return len(value) if isinstance(value, str) else sum(map(len, value))


def _refuse_paths(dataset: Any, processor: Any, column: str) -> None:
    """Upstream would count the characters of a path."""
    first = dataset[0]
    name = (getattr(processor, "model_input_names", None) or ["input_ids"])[0]
    value = first.get(name) if isinstance(first, Mapping) else None
    if isinstance(value, (str, bytes, os.PathLike, Mapping)):
        raise ValueError(
            f"`train_sampling_strategy` would sort rows by `len(row[{name!r}])`, which is {type(value).__name__} "
            f"({str(value)[:40]!r}): give the data set a column {column!r} with lengths, or remove it."
        )
