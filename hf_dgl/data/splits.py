"""Which rows are for training, which to choose by, which to score once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import islice
from typing import Any

import datasets
import numpy as np
from transformers.utils import logging

from hf_dgl.method.modalities import did_you_mean

from .columns import LABEL_COLUMN, is_missing
from .label_values import kind_of, plain, unlike_the_others
from .problem_types import REGRESSION, guess_problem_type
from .renaming import columns_of

logger = logging.get_logger(__name__)

VALIDATION_FRACTION, TEST_FRACTION = 0.1, 0.2  # of the training split, where the data set brings no split of its own
_PEEK = 1000  # rows of a stream that are looked at
_OTHER_NAMES = {"validation": ("val", "valid", "dev"), "test": ("eval",)}


def pick_splits(
    source: Mapping[str, datasets.Dataset],
    what: str,
    train_split: str,
    validation_split: str,
    test_split: str | None,
) -> dict[str, datasets.Dataset]:
    """The wanted splits under our names `train`, `validation`, `test`; the latter two only if the source has them.

    Raises:
        ValueError: a split is not there, and is not one that we would make ourselves (`validation`, `test`).
    """
    wanted = {"train": train_split, "validation": validation_split, "test": test_split}
    picked: dict[str, str] = {}
    for ours, theirs in wanted.items():
        if theirs is None:
            continue
        found = [name for name in (theirs, *_OTHER_NAMES.get(theirs, ())) if name in source]
        if found:
            picked[ours] = found[0]
        elif theirs not in _OTHER_NAMES:
            raise ValueError(
                f"{what!r} has no split {theirs!r}{did_you_mean(theirs, list(source))} Its splits: {list(source)}. "
                f"Say which one it is with {ours}_split=<name>."
            )
    for ours, theirs in picked.items():
        if list(picked.values()).count(theirs) > 1:
            raise ValueError(
                f"{ours}_split: the split {theirs!r} of {what!r} is used twice ({picked}). Scores on rows that the "
                "model was trained on or chosen by mean nothing: name another split, or leave the option out."
            )
    return {ours: source[theirs] for ours, theirs in picked.items()}


def check_has_labels(dataset: Any, split: str, column: Any, what: str) -> None:
    """Refuses a split to be scored on that has no labels, as the test split of a competition.

    Args:
        dataset: The split, as it was read.
        split: Ours: `train`, `validation` or `test`.
        column: What the label is mapped to.
        what: The source's name, for messages.

    Raises:
        ValueError: says how to leave the split out.
    """
    columns = columns_of(dataset)
    if split == "train" or not isinstance(column, str) or column not in columns and "." in column:
        return
    reason = f"has no column {column!r}"
    if column in columns:
        is_stream = isinstance(dataset, datasets.IterableDataset)
        rows = dataset.select_columns([column])
        if not all(is_missing(row[column]) for row in (islice(rows, _PEEK) if is_stream else rows)):
            return
        reason = f"has no label in any row (column {column!r})"
    raise ValueError(
        f"The split {split!r} of {what!r} {reason}, so nothing can be scored on it. Leave it out: "
        + ("--test_split null" if split == "test" else "remove or rename its file")
        + ". Its answers are written by `hf-dgl predict OUT --input FILE --output ANSWERS`. (Or say which column is "
        "the label: --label COLUMN.)"
    )


def add_missing_splits(
    splits: Mapping[str, datasets.Dataset], wants_test: bool, seed: int
) -> dict[str, datasets.Dataset]:
    """`splits` with validation and test taken from the training split where they are missing.

    Raises:
        ValueError: too few rows to split.
    """
    splits = dict(splits)
    fractions = {"test": TEST_FRACTION} if wants_test else {}
    num_rows = len(splits["train"])  # both shares are of what there was before any was taken
    for name, fraction in {**fractions, "validation": VALIDATION_FRACTION}.items():
        if name in splits:
            continue
        keys = _strata(splits["train"])
        held_out = stratified_sample(keys, round(num_rows * fraction), seed)
        if len(held_out) == 0:
            raise ValueError(
                f"The training split has {num_rows} rows, too few to take a {name} split from it. Add rows, or bring "
                f"a split of your own ({name}_split=<name>)."
            )
        train = np.setdiff1d(np.arange(len(keys)), held_out)
        splits[name] = splits["train"].select(held_out)
        splits["train"] = splits["train"].select(train)
        logger.warning(
            f"The data set has no {name} split: {len(held_out)} of its {num_rows} training rows were set aside as "
            f"{name} split (stratified by label, seed {seed})."
        )
    return {name: splits[name] for name in ("train", "validation", "test") if name in splits}


def stratified_sample(keys: Sequence[Hashable], num_rows: int, seed: int) -> np.ndarray:
    """Indices of `num_rows` rows in which every key has its share; at least one row of every key is left out.

    Args:
        keys: what each row is an instance of (its label).
        num_rows: how many rows to draw; fewer are drawn if leaving one of each key does not allow as many.
        seed: same seed, same rows.

    Returns:
        Sorted int64 `[<= num_rows]`.

    Example:
        >>> stratified_sample(["a"] * 8 + ["b"] * 4, 3, seed=0).tolist()  # two of a, one of b
        [4, 6, 10]
    """
    rng = np.random.default_rng(seed)
    groups: dict[Hashable, list[int]] = {}
    for index in rng.permutation(len(keys)).tolist():
        groups.setdefault(keys[index], []).append(index)
    # keys one after the other, the first row of each kept out of reach; then every n-th row of that long line
    line = [index for key in sorted(groups, key=str) for index in groups[key][1:]]
    count = min(num_rows, len(line))
    places = ((np.arange(count) + 0.5) * len(line) / max(count, 1)).astype(np.int64)
    return np.sort(np.asarray(line, dtype=np.int64)[places])


def limit_rows(dataset: datasets.Dataset, max_samples: int | None, seed: int) -> datasets.Dataset:
    """At most `max_samples` rows, drawn at random (the first ones of a sorted file would be of one class)."""
    if max_samples is None or max_samples >= len(dataset):
        return dataset
    if max_samples < 1:
        raise ValueError(f"max_train_samples and max_eval_samples must be at least 1, got {max_samples}.")
    return dataset.select(np.sort(np.random.default_rng(seed).permutation(len(dataset))[:max_samples]))


def _strata(dataset: datasets.Dataset) -> list[Hashable]:
    """The label of each row as something to group by; one group for continuous labels, and where most occur once."""
    values = [plain(value) for value in dataset.select_columns(LABEL_COLUMN)[LABEL_COLUMN][:]]
    known = [value for value in values if value is not None and kind_of(value) is not None]
    if known and not unlike_the_others(values) and guess_problem_type(known, quietly=True) == REGRESSION:
        return [0] * len(values)
    keys: list[Hashable] = [tuple(value) if isinstance(value, list) else str(value) for value in values]
    return keys if len(set(keys)) <= len(keys) / 2 else [0] * len(keys)  # integers to be predicted, say
