"""Streams: rows that are read while training, so that memory stays flat however many there are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from .broken import BROKEN_ROWS_FILE, BrokenRow, why_broken, why_unknown
from .columns import LABEL_COLUMN, MEDIA, ROW_COLUMN, holds_paths, is_missing, whole_path
from .labels import LabelSpec, first_label
from .renaming import rename_columns
from .splits import TEST_FRACTION, VALIDATION_FRACTION, check_has_labels
from .tables import table_of

logger = logging.get_logger(__name__)

_PLAIN = (str, int, float, bool, list, dict, type(None))
_PEEK, _MOST_PEEKED = 100, 1000  # rows that tell whether a column holds paths, and where they say nothing


def prepare_streams(
    splits: Mapping[str, Any],
    what: str,
    folders: Mapping[str, Path | None],
    column_mapping: Mapping[str, Any],
    modalities: Sequence[str] | None,
    wants_test: bool,
    seed: int,
) -> dict[str, datasets.IterableDataset]:
    """Splits as streams whose columns bear our names; missing ones are taken from the training split.

    A stream cannot be counted or stratified: whether a row belongs to the validation (a tenth) or test split (a fifth)
    is told by a hash of its content, so that it is the same in every epoch and process, and equal rows stay together.

    Args:
        splits: As picked from the source, streamed or not.
        what: The source's name, for messages.
        folders: Split -> what paths in it are relative to.
        column_mapping, modalities, wants_test, seed: As in `load_data`.

    Raises:
        ValueError: no rows, or a column that is not there.
    """
    streams = {split: _named(part, split, what, column_mapping, modalities) for split, part in splits.items()}
    fractions = {"validation": VALIDATION_FRACTION} | ({"test": TEST_FRACTION} if wants_test else {})
    missing = {split: fraction for split, fraction in fractions.items() if split not in streams}
    if missing:
        whole = streams["train"]
        for split in ("train", *missing):
            belongs = partial(_belongs, split=split, fractions=missing, seed=seed)
            streams[split] = whole.filter(belongs)
        logger.warning(
            f"The data set has no {' and no '.join(missing)} split: by a hash of their content, "
            + ", ".join(
                f"{fraction:.0%} of the training rows are its {split} rows" for split, fraction in missing.items()
            )
            + f" (seed {seed}; a stream cannot be stratified)."
        )
    return {  # last: the hash must not depend on where the folder is
        split: _with_whole_paths(streams[split], folders.get(split, folders["train"]))
        for split in ("train", "validation", "test")
        if split in streams
    }


def leave_out_broken_rows_of_streams(
    streams: Mapping[str, datasets.IterableDataset], processor: Any, output_dir: str | os.PathLike[str] | None
) -> datasets.IterableDatasetDict:
    """Streams that pass over rows that cannot be used. Each is named in a warning and in a file when it is met.

    Every file is decoded once more than without. `broken_rows.jsonl` is begun anew.
    """
    path = None if output_dir is None else Path(output_dir) / BROKEN_ROWS_FILE
    if path is not None:
        path.unlink(missing_ok=True)
    return datasets.IterableDatasetDict(
        {split: stream.filter(partial(_is_usable, processor, split, path)) for split, stream in streams.items()}
    )


def leave_out_unknown_labels_of_streams(
    streams: Mapping[str, datasets.IterableDataset], labels: LabelSpec, output_dir: str | os.PathLike[str] | None
) -> datasets.IterableDatasetDict:
    """Streams that pass over rows whose label the model does not know, and name them as broken ones."""
    path = None if output_dir is None else Path(output_dir) / BROKEN_ROWS_FILE
    return datasets.IterableDatasetDict(
        {
            split: stream.filter(partial(_has_known_label, labels, *first_label(stream), split, path))
            for split, stream in streams.items()
        }
    )


def first_rows(stream: datasets.IterableDataset, max_samples: int | None) -> datasets.IterableDataset:
    """At most the first `max_samples` rows; None: all of them."""
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_train_samples and max_eval_samples must be at least 1, got {max_samples}.")
    return stream if max_samples is None else stream.take(max_samples)


def shuffle_streams(splits: Any, buffer_size: int, seed: int) -> Any:
    """Splits whose training rows, if they are streamed, come in a random order, another one in every epoch.

    Last of all, as upstream waits for seconds at the end of every shuffled stream of parquet files.
    """
    if not isinstance(splits.get("train"), datasets.IterableDataset) or buffer_size <= 1:
        return splits
    return type(splits)({**splits, "train": splits["train"].shuffle(seed=seed, buffer_size=buffer_size)})


def place_in_stream(checkpoint: str | os.PathLike[str], accumulation: int) -> tuple[int, int] | None:
    """Where in a streamed training split a run stopped; upstream takes the first pass over a stream for endless.

    Args:
        checkpoint: The Trainer's.
        accumulation: `gradient_accumulation_steps`.

    Returns:
        Whole passes, and batches of the next one; None: upstream's place is right.
    """
    path = Path(checkpoint) / TRAINER_STATE_NAME
    if not path.is_file():
        return None
    state = TrainerState.load_from_json(str(path))
    if not state.epoch or state.global_step >= state.max_steps:
        return None
    passes = int(state.epoch)  # its fraction counts batches in units of `max_steps`
    return passes, round((state.epoch - passes) * state.max_steps * accumulation)


def head(stream: datasets.IterableDataset, num_rows: int) -> datasets.Dataset:
    """The first rows of a stream as a data set that can be counted and indexed.

    Raises:
        ValueError: the stream has no rows.

    Example:
        >>> from hf_dgl.data import load_data
        >>> head(load_data("sample:image_text", streaming=True)["train"], 100).num_rows
        100
    """
    rows = list(islice(stream, num_rows))
    if not rows:
        raise ValueError("The stream has no rows.")
    if stream.features is None and all(isinstance(value, _PLAIN) for row in rows for value in row.values()):
        return table_of(rows)  # upstream's function refuses columns of several types
    return datasets.Dataset.from_list(rows, features=stream.features)


def _named(
    part: Any, split: str, what: str, column_mapping: Mapping[str, str], modalities: Sequence[str] | None
) -> datasets.IterableDataset:
    """Our column names, encoded media, and each row's place."""
    stream = part.to_iterable_dataset() if isinstance(part, datasets.Dataset) else part
    for name, feature in (stream.features or {}).items():
        if isinstance(feature, (datasets.Image, datasets.Audio)):
            stream = stream.cast_column(name, MEDIA)  # `decode=False` would still want torchcodec
    _check_has_rows(stream, split, what)
    check_has_labels(stream, split, column_mapping.get(LABEL_COLUMN, LABEL_COLUMN), what)
    stream = rename_columns(stream, column_mapping, modalities, what)
    features = stream.features or {}
    numbered = stream.num_shards == 1  # several shards are read in any order: their rows have no numbers
    label = features.get(LABEL_COLUMN)
    declared = None  # types that were guessed from the first rows would refuse `seven` after `7`: only classes stay
    if isinstance(getattr(label, "feature", label), datasets.ClassLabel):
        rows = {ROW_COLUMN: datasets.Value("string")} if numbered or ROW_COLUMN in features else {}
        declared = datasets.Features({**stream.features, **rows})
    return stream.map(partial(_number, split=split if numbered else None), with_indices=True, features=declared)


def _check_has_rows(stream: datasets.IterableDataset, split: str, what: str) -> None:
    try:
        first = next(iter(stream), None)
    except ValueError:
        raise
    except Exception as error:  # pyarrow's, fsspec's, ...
        raise ValueError(f"Cannot read {what!r}: {error}. Is the file damaged?") from error
    if first is None:
        raise ValueError(f"split {split!r} of {what!r}: the data set has no rows.")


def _number(row: dict[str, Any], index: int, split: str | None) -> dict[str, Any]:
    return row if split is None or row.get(ROW_COLUMN) else {**row, ROW_COLUMN: f"{split}[{index}]"}


def _belongs(row: Mapping[str, Any], split: str, fractions: Mapping[str, float], seed: int) -> bool:
    """Whether a row of the training split goes to `split`: its hash is a number in [0, 1)."""
    content = repr(sorted((name, value) for name, value in row.items() if name != ROW_COLUMN))
    digest = blake2b(content.encode("utf-8", "replace"), digest_size=8, key=str(seed).encode()).digest()
    place = int.from_bytes(digest, "big") / 2**64
    for name, fraction in fractions.items():
        if place < fraction:
            return name == split
        place -= fraction
    return split == "train"


def _with_whole_paths(stream: datasets.IterableDataset, folder: Path | None) -> datasets.IterableDataset:
    if folder is None:
        return stream
    columns = [name for name, values in _first_values(stream).items() if holds_paths(name, values, folder)]
    if not columns:
        return stream
    return stream.map(partial(_join, columns=columns, folder=folder), features=stream.features)


def _first_values(stream: datasets.IterableDataset) -> dict[str, list[Any]]:
    """Values of each column in the first rows; in more of them where a column has none there."""
    found: dict[str, list[Any]] = {}
    for index, row in enumerate(islice(stream, _MOST_PEEKED)):
        if index >= _PEEK and all(found.values()):
            break
        for name in row.keys() - {LABEL_COLUMN, ROW_COLUMN}:
            values = found.setdefault(name, [])
            if len(values) < _PEEK and not is_missing(row[name]):
                values.append(row[name])
    return found


def _join(row: dict[str, Any], columns: Sequence[str], folder: Path) -> dict[str, Any]:
    return {**row, **{name: whole_path(row.get(name), folder) for name in columns}}


def _is_usable(processor: Any, split: str, path: Path | None, row: Mapping[str, Any]) -> bool:
    broken = why_broken(row, processor, split)
    return broken is None or _left_out(broken, path)


def _has_known_label(
    labels: LabelSpec, feature: Any, example: Any, split: str, path: Path | None, row: Mapping[str, Any]
) -> bool:
    reason = why_unknown(row.get(LABEL_COLUMN), feature, labels, example)
    name = str(row.get(ROW_COLUMN, "?"))
    return reason is None or _left_out(BrokenRow(split, name, LABEL_COLUMN, "", reason), path)


def _left_out(broken: BrokenRow, path: Path | None) -> bool:
    """Names a row when it is met, in the log and in the file; False."""
    line = json.dumps(asdict(broken)) + "\n"
    if path is not None:
        if path.is_file() and line in path.read_text(encoding="utf-8"):
            return False  # met in an earlier epoch, or by another process
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    logger.warning(f"Left out a broken row. {broken}")
    return False
