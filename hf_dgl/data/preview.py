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


def draw_preview(dataset: datasets.Dataset, processor: Any, path: str | os.PathLike[str], num_rows: int = 8) -> None:
    """Draws a row of the data set per line: each image, the text, the audio's spectrogram, and the label.

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
    modalities = list(processor.modalities)
    picked = np.unique(np.linspace(0, len(dataset) - 1, min(num_rows, len(dataset))).astype(int))
    figure = new_figure(figsize=(3.2 * len(modalities), 1.8 * len(picked)))
    grid = figure.subplots(len(picked), len(modalities), squeeze=False)
    feature = dataset.features[LABEL_COLUMN]
    for line, index in enumerate(picked.tolist()):
        row = dataset[index]
        for axes, name in zip(grid[line], modalities, strict=True):
            _draw(axes, name, row, processor)
        label = row[LABEL_COLUMN]
        if isinstance(feature, datasets.ClassLabel) and label is not None and label >= 0:
            label = feature.int2str(label)
        grid[line][0].set_title(f"{row.get(ROW_COLUMN, index)}: {label}", fontsize="small", loc="left")
    figure.savefig(path, dpi=100)


def _draw(axes: Any, name: str, row: Mapping[str, Any], processor: Any) -> None:
    axes.set(xticks=[], yticks=[])
    try:
        value = decode_value(processor, name, row.get(name), max_audio_seconds=float("inf"))
    except ValueError as error:
        value = f"BROKEN: {error}"
    rate = processor.sampling_rate(name)
    if value is None or isinstance(value, str):
        _write(axes, f"(no {name})" if value is None else value)
    elif rate is not None:
        window = max(16, min(512, len(value) // 8))
        axes.specgram(value, NFFT=window, noverlap=window // 2, Fs=rate)
        axes.set_xlabel(f"{len(value) / rate:.2f} s", fontsize="x-small")
    else:
        axes.imshow(np.asarray(value))
        axes.set_xlabel(f"{value.width} x {value.height}", fontsize="x-small")


def _write(axes: Any, text: str) -> None:
    lines = textwrap.wrap(text, 36)[:7] or [""]
    # `$` would begin a formula
    axes.text(0.5, 0.5, "\n".join(lines).replace("$", r"\$"), ha="center", va="center", fontsize="x-small")
    for spine in axes.spines.values():
        spine.set_visible(False)
