"""Data before there is a model: which columns hold what, and how to read them merely to look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from numbers import Number
from pathlib import Path
from typing import Any

import datasets

from .columns import LABEL_COLUMN, ROW_COLUMN, is_missing
from .folders import AUDIO_SUFFIXES, IMAGE_SUFFIXES

SAMPLING_RATE = 16_000
"""What audio is resampled to, as most encoders want it."""

_PEEK = 100  # rows that tell what a column holds


class LookingProcessor:
    """Stands where a model's processor would, for [`inspect_data`] and [`draw_preview`].

    Args:
        kinds: Modality -> `image`, `audio` or `text`, e.g. from [`kinds_of_columns`].

    Example:
        >>> LookingProcessor({"text": "text"}).modalities
        ['text']
    """

    allow_urls = False

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self.kinds = dict(kinds)
        self.processors: dict[str, Any] = {name: _READERS[kind]() for name, kind in kinds.items()}

    @property
    def modalities(self) -> list[str]:
        """Names, in order."""
        return list(self.kinds)

    def sampling_rate(self, modality: str) -> int | None:
        """Rate in Hz of a modality's waveforms, or None if it is no audio."""
        return SAMPLING_RATE if self.kinds[modality] == "audio" else None


class _Reader:
    """Of what `decode_value` reads itself."""


class _TextReader(_Reader):
    def read_value(self, value: Any) -> str:
        if isinstance(value, (str, Number)):
            return str(value)
        raise ValueError(f"expected a string, got {type(value).__name__}: {value!r:.80}.")


_READERS: dict[str, type[_Reader]] = {"image": _Reader, "text": _TextReader, "audio": _Reader}


def kinds_of_columns(dataset: Any, names: Sequence[str] | None = None) -> dict[str, str]:
    """What the columns of a data set hold: `image`, `text` or `audio`, in this order.

    Args:
        dataset: From `load_data`.
        names: Of the columns; None: all but the label, and but those that hold numbers beside others that do not.

    Example:
        >>> rows = datasets.Dataset.from_dict({"photo": ["a.png"], "title": ["a cat"], "id": [7], "label": [0]})
        >>> kinds_of_columns(rows)
        {'photo': 'image', 'title': 'text'}
    """
    rows = list(islice(dataset, _PEEK))
    columns = [name for row in rows[:1] for name in row if name not in (LABEL_COLUMN, ROW_COLUMN)]
    found = {}
    for name in columns if names is None else names:
        values = [row[name] for row in rows if not is_missing(row.get(name))]
        found[name] = _kind(name, values, None if dataset.features is None else dataset.features.get(name))
    if names is None:
        number = {name for name, kind in found.items() if kind == "text" and _are_numbers(rows, name)}
        found = {name: kind for name, kind in found.items() if name not in number} or found
    return {name: kind for wanted in _READERS for name, kind in found.items() if kind == wanted}


def _kind(name: str, values: Sequence[Any], feature: Any) -> str:
    if isinstance(feature, datasets.Image):
        return "image"
    if isinstance(feature, datasets.Audio) or any(isinstance(value, Mapping) and "array" in value for value in values):
        return "audio"
    paths = [value.get("path") if isinstance(value, Mapping) else value for value in values]
    suffixes = {Path(path).suffix.lower() for path in paths if isinstance(path, str) and len(path) < 1024}
    for kind, known in (("image", IMAGE_SUFFIXES), ("audio", AUDIO_SUFFIXES)):
        if suffixes & set(known):
            return kind
    are_files = any(not isinstance(value, (str, Number)) for value in values)
    return next((kind for kind in ("image", "audio") if kind in name and (are_files or not values)), "text")


def _are_numbers(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    values = [row[name] for row in rows if not is_missing(row.get(name))]
    return all(isinstance(value, Number) or str(value).replace(".", "", 1).lstrip("-").isdigit() for value in values)
