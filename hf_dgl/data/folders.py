"""Folders of audio files. (Images: `datasets` reads those folders itself; for audio it would need torchcodec.)"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets

from .columns import LABEL_COLUMN, replace_column

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64")
_METADATA = {"metadata.csv": "csv", "metadata.jsonl": "json", "metadata.parquet": "parquet"}
_SPLIT_OF_FOLDER = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation"}
_SPLIT_OF_FOLDER |= {"dev": "validation", "test": "test", "eval": "test"}


def is_audio_folder(path: Path) -> bool:
    """Whether a folder holds audio files to be found by walking it, rather than tables or images."""
    return next(_audio_files(path), None) is not None and not any(
        entry.suffix.lower() in (".csv", ".tsv", ".json", ".jsonl", ".parquet") and entry.name not in _METADATA
        for entry in path.iterdir()
    )


def load_audio_folder(path: Path) -> dict[str, datasets.Dataset]:
    """Splits of a folder of audio files, laid out as for `datasets`' audiofolder.

    | layout | columns |
    |---|---|
    | `[split/]class/x.wav` | `audio`, `label` (the class folder) |
    | `[split/]metadata.csv` (or jsonl, parquet) with a column `file_name`, and the files | `audio`, and the others |

    Returns:
        Split name -> data set; `audio` is an absolute path. Without split folders everything is `train`.

    Raises:
        ValueError: metadata without `file_name`, or files that lie in no class folder.
    """
    parts = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and entry.name in _SPLIT_OF_FOLDER]
    roots = {_SPLIT_OF_FOLDER[entry.name]: entry for entry in parts} or {"train": path}
    return {split: _load_root(root) for split, root in roots.items()}


def _load_root(root: Path) -> datasets.Dataset:
    root = root.resolve()
    for name, builder in _METADATA.items():
        if not (root / name).is_file():
            continue
        table = datasets.load_dataset(builder, data_files=str(root / name))["train"]
        if "file_name" not in table.column_names:
            raise ValueError(
                f"{str(root / name)!r} needs a column 'file_name' (path relative to it); it has {table.column_names}. "
                f"If other columns hold the paths, give the file itself: --data {root / name} --audio COLUMN."
            )
        paths = [value if value is None else str(root / value) for value in table["file_name"][:]]
        return replace_column(table, "file_name", paths, datasets.Value("string"), new_name="audio")
    files = sorted(_audio_files(root))
    outside = [file for file in files if file.parent == root]
    if outside:
        raise ValueError(
            f"{str(outside[0])!r} lies in no class folder, so it has no label. Move files to {root}/<class>/, or "
            f"write {root}/metadata.csv with the columns file_name,label."
        )
    return datasets.Dataset.from_dict(
        {"audio": [str(file) for file in files], LABEL_COLUMN: [file.parent.name for file in files]}
    )


def _audio_files(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file())
