"""What a folder holds: tables beside their media, media in class folders, or media with a table of metadata.

| layout | what is read |
|---|---|
| `train.csv`, (`val.csv`,) `test.csv` (tsv, json, jsonl, parquet), media wherever their paths say | the tables |
| one table of another name, whose paths lead to files | it, as `train` |
| `[split/]class/x.png` (or `x.wav`) | `image` (`audio`), `label`: the class folder (no folders in it) |
| `[split/]metadata.csv` (or jsonl, parquet) with a column `file_name` | `image` (`audio`), the other columns, and |
| | `label`: the class folder, where the table has no such column |

All else is left to `datasets.load_dataset`. (Its own readers of such folders guess types, mistake tables beside media
for metadata, and need torchcodec for audio.)
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from transformers.utils import logging

from .columns import LABEL_COLUMN, holds_paths, is_missing, replace_column
from .tables import TABLE_SUFFIXES, read_table, table_of

logger = logging.get_logger(__name__)

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm")
_SUFFIXES = {"image": IMAGE_SUFFIXES, "audio": AUDIO_SUFFIXES}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_UNREAD = (".xlsx", ".xls", ".ods", ".ndjson", ".arrow", ".feather", ".gz", ".bz2", ".xz", ".zst", ".zip")
_JUNK = ("thumbs.db", "desktop.ini")
_NO_DATA = ("dataset_info.json", "dataset_infos.json", "state.json", "package.json")
_SPLIT_OF_WORD = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test"}
_SPLIT_OF_WORD |= dict.fromkeys(("validation", "val", "valid", "dev"), "validation") | {"evaluation": "test"}


class Source(NamedTuple):
    """Rows of a split, and the folder that paths in them are relative to."""

    rows: Any
    folder: Path | None


def read_folder(path: Path, streaming: bool = False) -> dict[str, Source] | None:
    """Splits of a folder that is laid out as the table on top of this file says; None: it is not.

    Args:
        path: The folder.
        streaming: Read rows of tables when they are asked for.

    Raises:
        ValueError: several tables that may be meant, metadata without `file_name`, files that lie in no class folder.
    """
    tables = _tables_of(path)
    if named := _by_split(path, tables):
        _say_what_is_left(path, tables, named)
        return {split: _read_all(files, streaming, split) for split, files in named.items()}
    kind = _kind_of_media(path)
    if tables and (kind is None or _leads_to_files(tables, path)):
        return {"train": _read_all(tables, streaming, "train")}
    if kind is None:
        return None
    roots = _roots_by_split(path, kind) or {"train": path}
    found = {split: _read_media(root.resolve(), kind) for split, root in roots.items()}
    folders = {name for rows, labels in found.values() if labels for name in labels if name is not None}
    classes = datasets.ClassLabel(names=sorted(folders))
    return {split: Source(_with_labels(rows, labels, classes), None) for split, (rows, labels) in found.items()}


# -------------------------------------------------------------------------------------------------- tables in a folder


def _tables_of(path: Path) -> list[Path]:
    """The folder's tables; if it has none, those in its folder `data` (as in clones from the Hub), or by split."""
    by_split = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and entry.name.lower() in _SPLIT_OF_WORD]
    for folders in ([path], [path / "data"], by_split):
        if found := [file for folder in folders for file in _tables_in(folder)]:
            return found
    return []


def _tables_in(folder: Path) -> list[Path]:
    return [
        entry
        for entry in sorted(folder.iterdir() if folder.is_dir() else ())
        if entry.suffix.lower() in TABLE_SUFFIXES
        and entry.is_file()
        and entry.name not in (*_METADATA, *_NO_DATA)
        and not entry.name.startswith(".")
    ]


def _by_split(path: Path, tables: list[Path]) -> dict[str, list[Path]]:
    """Split -> its files, where one is of the training split: `train.csv`, `my-train-00-of-02.csv`, `train/x.csv`."""
    found: dict[str, list[Path]] = {}
    for file in tables:
        split = _split_in(file.stem if file.parent == path else f"{file.parent.name} {file.stem}")
        if split is not None:
            found.setdefault(split, []).append(file)
    if found and "train" not in found and (len(tables) > 1 or _unread_tables(path)):
        names = [file.name for files in found.values() for file in files]
        raise ValueError(
            f"{str(path)!r} has tables for the splits {list(found)} ({', '.join(names)}) and none to train on"
            f"{_beside(_unread_tables(path))}. Name it train{tables[0].suffix}; or give the table that is meant, "
            f"--data {tables[0]}."
        )
    return found if "train" in found else {}


def _unread_tables(path: Path) -> list[str]:
    """Files that are called as a split's table is, and of a kind that is not read: `train.csv.gz`, `val.xlsx`."""
    files = [entry for entry in sorted(path.iterdir()) if entry.suffix.lower() in _UNREAD and entry.is_file()]
    return [file.name for file in files if _split_in(file.stem) is not None]


def _beside(unread: list[str]) -> str:
    return f" ({', '.join(unread)}: expected {', '.join(TABLE_SUFFIXES)})" if unread else ""


def _split_in(name: str) -> str | None:
    """Which split a name speaks of: `my-train-00`, `Training_Set`."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD), None)


def _say_what_is_left(path: Path, tables: list[Path], named: dict[str, list[Path]]) -> None:
    used = {file for files in named.values() for file in files}
    for split, files in named.items():
        if len({file.suffix for file in files}) > 1:
            raise ValueError(
                f"{str(path)!r} has several tables for the split {split!r}: {[file.name for file in files]}. Remove "
                "or rename those that are not meant."
            )
    if left := [*(file.name for file in tables if file not in used), *_unread_tables(path)]:
        logger.warning(f"Of {str(path)!r} the tables named by split are read; {', '.join(left)} are not.")


def _leads_to_files(tables: list[Path], path: Path) -> bool:
    """Whether these tables, rather than the media around them, are the data."""
    rows = [row for row, _ in zip(read_table(tables[0], streaming=True), range(100), strict=False)]
    columns = {name: [row[name] for row in rows if isinstance(row[name], str)] for row in rows[:1] for name in row}
    return any(holds_paths("", values, tables[0].parent) for values in columns.values())


def _read_all(files: list[Path], streaming: bool, split: str) -> Source:
    """The rows of one split's files, which must have the same columns."""
    parts = [read_table(file, streaming) for file in files]
    if len(parts) > 1:
        columns = [list(next(iter(part))) for part in parts]
        if any(set(other) != set(columns[0]) for other in columns):
            shown = "; ".join(f"{file.name}: {names}" for file, names in zip(files, columns, strict=True))
            raise ValueError(
                f"{str(files[0].parent)!r} holds several tables with different columns ({shown}). Name the one that "
                f"is meant, e.g. --data {files[0]}; or call them train.csv, validation.csv and test.csv."
            )
        if len({re.sub(r"\d+", "", file.name) for file in files}) > 1:  # no shards, `train-0.csv` and `train-1.csv`
            names = ", ".join(file.name for file in files)
            logger.warning(f"The split {split!r} is the rows of {len(files)} tables: {names}. Move what is not meant.")
    return Source(_together(parts, files), files[0].parent.resolve())


def _together(parts: list[Any], files: list[Path]) -> Any:
    if len(parts) == 1:
        return parts[0]
    try:
        return datasets.concatenate_datasets(parts)
    except ValueError as error:  # ids that are quoted in one file and not in the other, say
        if files[0].suffix.lower() == ".parquet":
            names = [file.name for file in files]
            raise ValueError(f"{str(files[0].parent)!r}: {names} have columns of other types: {error}") from error
        return table_of(row for part in parts for row in part)


# --------------------------------------------------------------------------------------------------- media in a folder


def _kind_of_media(path: Path) -> str | None:
    """`image` or `audio`: what there is more of (covers lie beside music); None: neither."""
    counts = {kind: sum(1 for _ in _media_files(path, kind)) for kind in _SUFFIXES}
    return max(counts, key=counts.__getitem__) if any(counts.values()) else None


def _roots_by_split(path: Path, kind: str) -> dict[str, Path]:
    """Split -> its folder: `train`, `Test`; `training_set` (the class `train_station`?) if all speak of splits."""
    folders = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and next(_media_files(entry, kind), None)]
    splits = [_split_in(entry.name) for entry in folders]
    if "train" not in splits or None in splits:
        named = [entry for entry in folders if entry.name.lower() in _SPLIT_OF_WORD]
        if named and (left := [entry.name for entry in folders if entry not in named]):
            logger.warning(f"Of {str(path)!r} the folders of splits are read; {', '.join(left)} are not.")
        folders, splits = named, [_split_in(entry.name) for entry in named]
    if len(set(splits)) < len(splits):
        raise ValueError(f"{str(path)!r} has several folders for one split: {[entry.name for entry in folders]}.")
    return {split: entry for split, entry in zip(splits, folders, strict=True) if split is not None}


def _media_files(path: Path, kind: str) -> Iterator[Path]:
    return (file for file in _files_below(path) if file.suffix.lower() in _SUFFIXES[kind])


def _files_below(path: Path) -> Iterator[Path]:
    """All files of a folder and of those in it, linked ones too; but none that are hidden (`.ipynb_checkpoints`)."""
    for folder, folders, files in os.walk(path, followlinks=True):
        here = Path(folder)
        if here != path and here.is_symlink() and any(map(here.samefile, here.parents)):  # a link upwards: for ever
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (here / name for name in sorted(files) if not name.startswith("."))


def _say_what_is_unread(root: Path, kind: str) -> None:
    """Names the files of class folders that have another suffix; there may be whole classes of them."""
    suffixes = Counter(
        file.suffix.lower() or "no suffix"
        for file in _files_below(root)
        if file.suffix.lower() not in _SUFFIXES[kind] and file.parent != root and file.name.lower() not in _JUNK
    )
    if suffixes:
        shown = ", ".join(f"{count:,} of {suffix}" for suffix, count in suffixes.most_common(5))
        logger.warning(
            f"{sum(suffixes.values()):,} files in the class folders of {str(root)!r} are not read: {shown}. Files of "
            f"{kind}s have the suffixes {' '.join(_SUFFIXES[kind])}: convert the others, if they are meant."
        )


def _read_media(root: Path, kind: str) -> tuple[datasets.Dataset, list[str | None] | None]:
    """Rows, and the class folder of each; None for the latter where a table says the labels."""
    for name in _METADATA:
        if (root / name).is_file():
            return _read_metadata(root / name, kind)
    files = sorted(_media_files(root, kind))
    outside = [file for file in files if file.parent == root]
    if outside:
        raise ValueError(
            f"{str(outside[0])!r} lies in no class folder, so it has no label. Move files to {root}/<class>/, or "
            f"write {root}/metadata.csv with the columns file_name,label."
        )
    if not files:
        raise ValueError(f"{str(root)!r} holds no {kind} files.")
    _say_what_is_unread(root, kind)
    rows = datasets.Dataset.from_dict({kind: [str(file) for file in files]})
    if (file := _nested_file(files)) is not None:
        raise ValueError(
            f"{str(file)!r}: is its class {file.parent.parent.name!r} or {file.parent.name!r}? Put the files of each "
            f"class into one folder, or write {root}/metadata.csv with the columns file_name,label."
        )
    return rows, [file.parent.name for file in files]


def _nested_file(files: list[Path]) -> Path | None:
    """The first file below a folder that has others beside it: `cat/2020/x.png` may be meant in two ways."""
    above = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    return next((file for file in files if len(file.parent.relative_to(above).parts) > 1), None)


def _with_labels(
    rows: datasets.Dataset, labels: list[str | None] | None, classes: datasets.ClassLabel
) -> datasets.Dataset:
    if labels is None:
        return rows
    ids = [None if name is None else classes.str2int(name) for name in labels]
    return rows.add_column(LABEL_COLUMN, ids, feature=classes)


def _read_metadata(file: Path, kind: str) -> tuple[datasets.Dataset, list[str | None] | None]:
    """Its rows; `file_name` as `image` or `audio`, `<name>_file_name` as `<name>`. And the class folders."""
    table, root = read_table(file), file.parent
    named = {name: name.removesuffix("_file_name") for name in table.column_names if name.endswith("_file_name")}
    if "file_name" in table.column_names:
        named["file_name"] = kind
    if not named:
        raise ValueError(
            f"{str(file)!r} needs a column 'file_name' (path relative to it); it has {table.column_names}. "
            f"If other columns hold the paths, give the file itself: --data {file} --{kind} COLUMN."
        )
    first = next(iter(named))
    folders = [None if is_missing(value) else Path(value).parent.name for value in table[first][:]]
    for column, name in named.items():
        paths = [None if is_missing(value) else str(root / value) for value in table[column][:]]
        table = replace_column(table, column, paths, datasets.Value("string"), new_name=name)
    there = [Path(value) for value in table[named[first]][:] if value is not None]
    has_classes = LABEL_COLUMN not in table.column_names and any(folders) and _nested_file(there) is None
    return table, [name or None for name in folders] if has_classes else None
