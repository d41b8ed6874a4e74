"""A few rows of a data set as files, to look at and to label: pictures, sounds, and a table of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soundfile

from .collator import decode_value
from .columns import LABEL_COLUMN

ROWS = "rows.jsonl"
"""The table; `hf-dgl predict OUT --input DIR/rows.jsonl` reads it."""


def save_rows(
    dataset: datasets.Dataset, processor: Any, folder: str | os.PathLike[str], num_rows: int
) -> list[dict[str, Any]]:
    """Writes rows, evenly spread over a split, as `1-image.png`, `1-audio.wav`, ... and a table of them.

    Args:
        dataset: A split from `load_data`.
        processor: A `CrossModalProcessor`: says which column is an image, a text or audio.
        folder: Is made.
        num_rows: How many.

    Returns:
        The rows of the table: per modality a text, or the name of a file in the folder; and `label`.

    Raises:
        ValueError: there is such a table already, or a row cannot be read.

    Example:

        >>> save_rows(data["test"], processor, "digits", 3)[0]
        {'image': '1-image.png', 'text': 'an even digit', 'label': 'four'}
    """
    folder = Path(folder)
    check_rows_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    feature, rows = dataset.features[LABEL_COLUMN], []
    picked = np.unique(np.linspace(0, len(dataset) - 1, min(num_rows, len(dataset))).astype(int))
    for number, index in enumerate(picked.tolist(), start=1):
        row = dataset[index]
        values = {name: _save(processor, name, row.get(name), folder, number) for name in processor.modalities}
        label = row[LABEL_COLUMN]
        if isinstance(feature, datasets.ClassLabel) and label is not None and label >= 0:
            label = feature.int2str(label)
        rows.append({**values, LABEL_COLUMN: label})
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / ROWS).write_text("".join(lines), encoding="utf-8")
    return rows


def check_rows_folder(folder: str | os.PathLike[str]) -> None:
    """Raises ValueError if rows were saved there before."""
    if Path(folder, ROWS).exists():
        raise ValueError(f"--save_rows: there are saved rows in {os.fspath(folder)!r} already. Name another folder.")


def read_rows(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What [`save_rows`] wrote, with whole paths.

    Raises:
        ValueError: there is nothing of that kind.
    """
    table = Path(folder, ROWS)
    if not table.is_file():
        raise ValueError(
            f"There is no {ROWS} in {os.fspath(folder)!r}. `hf-dgl data RECIPE --save_rows 3 DIR` writes one."
        )
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [{name: _whole(value, table.parent) for name, value in row.items()} for row in rows]


def _save(processor: Any, name: str, value: Any, folder: Path, number: int) -> Any:
    found = decode_value(processor, name, value, max_audio_seconds=float("inf"))
    rate = processor.sampling_rate(name)
    if found is None or isinstance(found, str):
        return found
    if rate is not None:
        file = f"{number}-{name}.wav"
        soundfile.write(folder / file, found, rate)
    elif hasattr(found, "save"):
        file = f"{number}-{name}.png"
        found.save(folder / file)
    else:
        return np.asarray(found).tolist()  # an array of features
    return file


def _whole(value: Any, folder: Path) -> Any:
    return str(folder / value) if isinstance(value, str) and (folder / value).is_file() else value
