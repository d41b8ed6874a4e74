"""A picture of some rows: what the encoders will see and hear. matplotlib is needed here and nowhere else in data."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np

from hf_dgl.reports.drawing import new_figure

from .collator import decode_value
from .columns import LABEL_COLUMN, ROW_COLUMN
from .label_values import named

_INCHES = {"label": 1.4, "text": 3.4, "media": 2.2}  # widths of columns, by what they hold
_NUM_LINES = 10  # of a text in a row of the picture


def draw_preview(dataset: datasets.Dataset, processor: Any, path: str | os.PathLike[str], num_rows: int = 8) -> None:
    """Draws a row of the data set per line: the label, and beside it each image, text and audio's spectrogram.

    Args:
        dataset: A split from `load_data`; rows evenly spread over it are drawn.
        processor: A `CrossModalProcessor`: says which column is an image, a text or audio.
        path: File to write; its ending chooses the format.
        num_rows: How many.

    Raises:
        ValueError: matplotlib does not know the format.

    Example:
        >>> draw_preview(data["train"], processor, "data.png")
    """
    modalities = sorted(processor.modalities, key=lambda name: _is_audio(processor, name))  # text beside its picture
    picked = np.unique(np.linspace(0, len(dataset) - 1, min(num_rows, len(dataset))).astype(int)).tolist()
    rows = [dataset[index] for index in picked]
    values = {name: [_value(name, row, processor) for row in rows] for name in modalities}
    widths = [_INCHES["text"] if _is_text(values[name]) else _INCHES["media"] for name in modalities]
    label_width = _INCHES["label"]
    figure = new_figure(figsize=(label_width + sum(widths), 0.3 + 1.8 * len(picked)))
    ratios = {"width_ratios": [label_width, *widths]}
    grid = figure.subplots(len(picked), 1 + len(modalities), squeeze=False, gridspec_kw=ratios)
    for axes, head in zip(grid[0], ["label", *modalities], strict=True):
        axes.set_title(head, fontsize="medium", fontweight="bold")
    for line, row in enumerate(rows):
        label = _label(row[LABEL_COLUMN], dataset.features[LABEL_COLUMN])
        _write(grid[line][0], f"{label}\n({row.get(ROW_COLUMN, picked[line])})", 16)
        for axes, name in zip(grid[line][1:], modalities, strict=True):
            _draw(axes, name, values[name][line], processor)
    figure.savefig(path, dpi=100)


def _label(value: Any, feature: Any) -> str:
    value = named(value, feature)
    return "(no label)" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _value(name: str, row: Mapping[str, Any], processor: Any) -> Any:
    try:
        return decode_value(processor, name, row.get(name), max_audio_seconds=float("inf"))
    except ValueError as error:
        return f"BROKEN: {error}"


def _is_audio(processor: Any, name: str) -> bool:
    return processor.sampling_rate(name) is not None


def _is_text(values: list[Any]) -> bool:
    return any(isinstance(value, str) and not value.startswith("BROKEN: ") for value in values)


def _draw(axes: Any, name: str, value: Any, processor: Any) -> None:
    axes.set(xticks=[], yticks=[])
    rate = processor.sampling_rate(name)
    if value is None or isinstance(value, str):
        _write(axes, f"(no {name})" if value is None else value, 44 if not _is_audio(processor, name) else 30)
    elif rate is not None:
        window = max(16, min(512, len(value) // 8))
        axes.specgram(value, NFFT=window, noverlap=window // 2, Fs=rate)
        axes.set_xlabel(f"{len(value) / rate:.2f} s", fontsize="x-small")
    else:
        axes.imshow(np.asarray(value))
        axes.set_xlabel(f"{value.width} x {value.height}", fontsize="x-small")


def _write(axes: Any, text: str, width: int) -> None:
    """Text as it stands, wrapped to so many characters; what does not fit ends in dots."""
    axes.set(xticks=[], yticks=[])
    lines = [part for line in text.splitlines() or [""] for part in textwrap.wrap(line, width) or [""]]
    lines = lines if len(lines) <= _NUM_LINES else [*lines[: _NUM_LINES - 1], "..."]
    # `$` would begin a formula
    axes.text(0.0, 0.5, "\n".join(lines).replace("$", r"\$"), ha="left", va="center", fontsize="x-small")
    for spine in axes.spines.values():
        spine.set_visible(False)
