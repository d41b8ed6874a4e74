"""Data sets from wherever they are to splits whose columns bear the names of the modalities."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from hf_dgl.method.modalities import did_you_mean

from .columns import LABEL_COLUMN, MEDIA, ROW_COLUMN, expect_dataset, holds_paths, replace_column, whole_path
from .folders import Source, read_folder
from .mixing import mix_splits
from .renaming import rename_columns
from .samples import load_sample
from .splits import add_missing_splits, check_has_labels, limit_rows, pick_splits
from .streaming import first_rows, prepare_streams
from .tables import TABLE_SUFFIXES, read_table, table_of

SAMPLE_PREFIX = "sample:"


def load_data(
    dataset_name: str | os.PathLike[str] | datasets.Dataset | datasets.DatasetDict | Mapping[str, float],
    dataset_config_name: str | None = None,
    column_mapping: Mapping[str, Any] | None = None,
    modalities: Sequence[str] | None = None,
    train_split: str = "train",
    validation_split: str = "validation",
    test_split: str | None = "test",
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    token: str | bool | None = None,
    streaming: bool = False,
) -> Any:
    """Loads a data set, names its columns by modality, and sees to it that it has all splits.

    | `dataset_name` | what is read |
    |---|---|
    | `sample:image_text` | offline sample data (`hf_dgl/data/samples.py`) |
    | `data.csv` (tsv, json, jsonl, parquet) | one file; image and audio columns hold paths relative to its folder |
    | `folder/` | tables named by split, class folders of images or audio files (`folders.py`), or `save_to_disk` |
    | `user/name` | a data set on the Hub |
    | a `Dataset` or `DatasetDict` | itself |
    | `{"a.csv": 0.7, "b.csv": 0.3}` | several, mixed: 7 of 10 training rows come from `a.csv` |

    Images and audio stay encoded here (paths or bytes); the collator decodes them batch by batch.

    Args:
        dataset_name: see the table.
        dataset_config_name: configuration (subset) of a Hub data set.
        column_mapping: modality or `label` -> column of the data set, e.g. `{"image": "img", "label": "y"}`. Names
            that are columns already need no entry. `media.image` is a field of a column of objects, a list of columns
            (`"label": ["price", "weight"]`) several numbers.
        modalities: which modalities must be there, e.g. `processor.modalities`; other columns are dropped. None: the
            keys of `column_mapping`, and nothing is dropped.
        train_split: name of the split to train on.
        validation_split: likewise; also found as `val`, `valid` or `dev`. If the data set has none, a tenth of the
            training split is taken, stratified by label and fixed by `seed`.
        test_split: likewise, a fifth; also found as `eval`. None: no test split.
        max_train_samples: at most so many training rows, drawn at random by `seed`.
        max_eval_samples: likewise for each of the other splits.
        seed: of the splitting and drawing, and of `sample:` data.
        revision: branch, tag or commit of a Hub data set.
        token: for private Hub data sets; None: the one of `hf auth login`.
        streaming: read rows when they are asked for, in place of loading them first. `max_train_samples` and
            `max_eval_samples` are then the *first* rows. Nothing is shuffled: before training type
            `data["train"].shuffle(seed=0, buffer_size=1000)`.

    Returns:
        A `DatasetDict` (with `streaming` an `IterableDatasetDict`) with the splits `train`, `validation` and (unless
        `test_split=None`) `test`, which have a column per modality, `label`, and `row`: where the row comes from, e.g.
        `train[17]`, for messages.

    Raises:
        ValueError: no such data set, file, split or column (with the nearest match), an empty data set or split.

    Example:
        >>> data = load_data("sample:image_text", modalities=["image", "text"], max_train_samples=100)
        >>> data["train"].column_names
        ['image', 'text', 'label', 'row']
    """

    if isinstance(dataset_name, os.PathLike):
        dataset_name = os.fspath(dataset_name)

    def load(name: Any) -> dict[str, Any]:
        source = _read(name, dataset_config_name, seed, revision, token, streaming)
        what = name if isinstance(name, str) else type(name).__name__
        picked = pick_splits(source, what, train_split, validation_split, test_split)
        rows, folders = ({split: part[i] for split, part in picked.items()} for i in range(2))
        prepare: Callable[..., dict[str, Any]] = prepare_streams if streaming else _prepare_tables
        return prepare(rows, what, folders, column_mapping or {}, modalities, test_split is not None, seed)

    is_one = isinstance(dataset_name, (datasets.DatasetDict, datasets.IterableDatasetDict))  # which are mappings, too
    if isinstance(dataset_name, Mapping) and not is_one:
        splits = mix_splits({name: load(name) for name in dataset_name}, dataset_name, seed)
    else:
        splits = load(dataset_name)
    limits = {split: max_train_samples if split == "train" else max_eval_samples for split in splits}
    if not streaming:
        return datasets.DatasetDict({split: limit_rows(part, limits[split], seed) for split, part in splits.items()})
    return datasets.IterableDatasetDict({split: first_rows(part, limits[split]) for split, part in splits.items()})


def _prepare_tables(
    splits: Mapping[str, datasets.Dataset],
    what: str,
    folders: Mapping[str, Path | None],
    column_mapping: Mapping[str, Any],
    modalities: Sequence[str] | None,
    wants_test: bool,
    seed: int,
) -> dict[str, datasets.Dataset]:
    """Splits with our column names, encoded media, whole paths and each row's place; missing splits are made."""
    prepared = {}
    for split, dataset in splits.items():
        dataset = expect_dataset(dataset, f"split {split!r} of {what!r}")
        check_has_labels(dataset, split, column_mapping.get(LABEL_COLUMN, LABEL_COLUMN), what)
        dataset = rename_columns(dataset, column_mapping, modalities, what)
        for name in dataset.column_names:
            if name != LABEL_COLUMN:
                dataset = _leave_encoded(dataset, name, folders[split])
        if ROW_COLUMN not in dataset.column_names:
            dataset = dataset.add_column(ROW_COLUMN, [f"{split}[{index}]" for index in range(len(dataset))])
        prepared[split] = dataset
    return add_missing_splits(prepared, wants_test=wants_test, seed=seed)


def _read(
    name: Any, config_name: str | None, seed: int, revision: str | None, token: str | bool | None, streaming: bool
) -> dict[str, Source]:
    """All splits of a source, and the folder that paths in each are relative to."""
    if isinstance(name, (datasets.Dataset, datasets.IterableDataset if streaming else datasets.Dataset)):
        return _without_folder({"train": name})
    if isinstance(name, (datasets.DatasetDict, datasets.IterableDatasetDict if streaming else datasets.DatasetDict)):
        return _without_folder(name)
    if isinstance(name, (datasets.IterableDataset, datasets.IterableDatasetDict)):
        raise ValueError(f"dataset_name: {type(name).__name__} is a stream: set streaming=True.")
    if not isinstance(name, str):
        raise ValueError(
            "dataset_name: expected a Hub id, a path, sample:NAME, a Dataset or a DatasetDict, got "
            f"{type(name).__name__}. Make one with Dataset.from_list(rows) or Dataset.from_pandas(table)."
        )
    return _read_named(name, config_name, seed, revision, token, streaming)


def _read_named(
    name: str, config_name: str | None, seed: int, revision: str | None, token: str | bool | None, streaming: bool
) -> dict[str, Source]:
    """A sample, a file, a folder, or a data set of the Hub."""
    if name.startswith(SAMPLE_PREFIX):
        return _without_folder(load_sample(name.removeprefix(SAMPLE_PREFIX), seed=seed))
    path = Path(name).expanduser()
    if path.is_file():
        return {"train": Source(read_table(path, streaming), path.resolve().parent)}
    if path.is_dir():
        return _read_folder(path, config_name, streaming)
    if path.suffix in TABLE_SUFFIXES or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"There is no file or folder {name!r} (seen from {Path.cwd()}){_nearest_file(path)}")
    if f".{name}" in TABLE_SUFFIXES or name in ("imagefolder", "audiofolder"):  # would read the working directory
        raise ValueError(f"{name!r} is a format, not a data set. Give the path of the file or folder, e.g. data.csv.")
    lazily = {"streaming": True} if streaming else {}
    try:
        loaded = datasets.load_dataset(name, config_name, revision=revision, token=token, **lazily)
    except (datasets.exceptions.DatasetsError, FileNotFoundError, ConnectionError, ValueError) as error:
        raise ValueError(
            f"Cannot load the data set {name!r}: {error} (It is neither a file nor a folder here, so it was looked "
            f"for on the Hub. Offline sample data: {SAMPLE_PREFIX}image_text.)"
        ) from error
    return _without_folder(loaded)


def _without_folder(splits: Mapping[Any, Any]) -> dict[str, Source]:
    return {str(split): Source(_unformatted(rows, str(split)), None) for split, rows in splits.items()}


def _unformatted(rows: Any, split: str) -> Any:
    """Rows as Python values: what becomes of them is the collator's to say, not `with_format("torch")`'s."""
    if isinstance(rows, datasets.Dataset) and rows.format["type"] == "custom":
        raise ValueError(
            f"Split {split!r} has a transform (`set_transform`), which would be lost where columns are chosen and "
            "renamed. Apply it beforehand, data.map(function, batched=True); or take it off, data.with_format(None)."
        )
    return rows.with_format(None) if isinstance(rows, (datasets.Dataset, datasets.IterableDataset)) else rows


def _read_folder(path: Path, config_name: str | None, streaming: bool) -> dict[str, Source]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = datasets.load_from_disk(str(path))
        return _without_folder(saved if isinstance(saved, datasets.DatasetDict) else {"train": saved})
    found = None if config_name is not None or _names_its_files(path) else read_folder(path, streaming)
    if found is not None:
        return found
    if tables := [file for file in path.rglob("*") if file.suffix.lower() in (".csv", ".tsv", ".json", ".jsonl")]:
        if config_name is None and not _names_its_files(path):  # upstream would guess the types of their values
            raise ValueError(
                f"{str(path)!r} holds tables in sub-folders, e.g. {str(tables[0].relative_to(path))!r}. Give the one "
                f"that is meant, --data {tables[0]}; or put train.csv, validation.csv and test.csv into one folder."
            )
    lazily = {"streaming": True} if streaming else {}
    loaded = _load_local(str(path), str(path.resolve()), name=config_name, **lazily)
    return {split: Source(rows, path.resolve()) for split, rows in loaded.items()}


def _names_its_files(path: Path) -> bool:
    """Whether the folder's card says which files are which split, as that of a data set from the Hub may."""
    card = path / "README.md"
    return card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace").split("\n---")[0]


def _load_local(what: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """`datasets.load_dataset` on files, with its errors turned into ones that name the file."""
    try:
        return dict(datasets.load_dataset(*args, **kwargs))
    except (datasets.exceptions.DatasetGenerationError, datasets.exceptions.DatasetGenerationCastError) as error:
        reason = error.__cause__ or error
        raise ValueError(f"Cannot read {what!r}: {reason}. Is the file empty or damaged?") from error
    except (datasets.exceptions.DatasetsError, FileNotFoundError, ValueError) as error:
        raise ValueError(f"Cannot read {what!r}: {error}") from error


def _nearest_file(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, siblings)


def _leave_encoded(dataset: datasets.Dataset, column: str, folder: Path | None) -> datasets.Dataset:
    """Switches off decoding by `datasets`, and makes relative paths absolute."""
    feature = dataset.features[column]
    if isinstance(feature, (datasets.Image, datasets.Audio)):
        dataset = dataset.cast_column(column, type(feature)(decode=False))
        embedded = dataset.select_columns(column).flatten().data.column(f"{column}.bytes")
        if folder is None or embedded.null_count == 0:
            return dataset
        feature = MEDIA  # as which it is written: for `datasets.Audio` upstream would want torchcodec
    if folder is None or not _may_name_files(feature):
        return dataset
    values = dataset[column][:]
    if not holds_paths(column, values, folder):
        return dataset
    absolute = [whole_path(value, folder) for value in values]
    if feature == datasets.Json():  # whose values `add_column` does not write
        derived = table_of({column: value} for value in absolute)
        return datasets.concatenate_datasets([dataset.remove_columns(column), derived], axis=1)
    return replace_column(dataset, column, absolute, feature)


def _may_name_files(feature: Any) -> bool:
    """Texts, objects with a path, lists of these; and what is of several types."""
    if isinstance(feature, datasets.List):
        return _may_name_files(feature.feature)
    if isinstance(feature, Mapping):
        return "path" in feature
    return feature in (datasets.Value("string"), datasets.Value("large_string"), datasets.Json())
