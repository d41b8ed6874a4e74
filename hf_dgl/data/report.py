"""What is in a data set, before an hour is spent on training with it: counts, damage, leaks between splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any

import datasets
import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerBase

from .broken import BrokenRow, why_broken
from .collator import decode_value
from .columns import LABEL_COLUMN, ROW_COLUMN, is_missing
from .label_values import named, similar_names, unlike_the_others
from .labels import LabelSpec
from .limits import audio_limit, count_tokens, text_limit
from .media import has_frames, is_transparent
from .problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .workers import map_rows


@dataclass(frozen=True)
class Lengths:
    """Lengths of texts (tokens, special ones included) or audio (seconds).

    Args:
        minimum, median, maximum: Over all rows that have the modality.
        limit: The most that the encoder takes; None: no limit.
        num_longer: How many are longer: the encoder will not see them whole.
    """

    minimum: float
    median: float
    maximum: float
    limit: float | None
    num_longer: int


@dataclass(frozen=True)
class Sizes:
    """Sizes of images, (width, height) in pixels.

    Args:
        smallest, largest: By area.
        most_common: And how many images have it.
        num_different: How many sizes there are.
    """

    smallest: tuple[int, int]
    largest: tuple[int, int]
    most_common: tuple[int, int]
    num_most_common: int
    num_different: int


@dataclass
class SplitReport:
    """One split.

    Args:
        num_rows: Rows, broken ones included.
        classes: Class -> rows; empty for regression.
        baseline: What a model scores here that always answers the training split's most frequent class: accuracy, in
            multi-label tasks that of the labels one by one. For regression: the mean squared error of the training
            split's mean.
        missing: Modality -> rows that lack it.
        texts, audios, images: By modality.
        transparent: Modality -> pictures with an alpha channel, which are put on a background.
        several_frames: Modality -> animations and files of several pages, of which the first is read.
    """

    num_rows: int
    classes: dict[str, int] = field(default_factory=dict)
    baseline: float | None = None
    missing: dict[str, int] = field(default_factory=dict)
    texts: dict[str, Lengths] = field(default_factory=dict)
    audios: dict[str, Lengths] = field(default_factory=dict)
    images: dict[str, Sizes] = field(default_factory=dict)
    transparent: dict[str, int] = field(default_factory=dict)
    several_frames: dict[str, int] = field(default_factory=dict)


@dataclass
class DataReport:
    """What [`inspect_data`] found.

    Args:
        problem_type: What the labels are; None if that cannot be told.
        splits: By name.
        broken: Rows that cannot be used.
        duplicates: Groups of rows with equal inputs that lie in several splits, each as `split: row`.
        shared: Modality -> how many of its contents occur in several splits. (A caption may well do so.)
        similar_classes: Groups of class names that differ only in case, blanks or how letters are encoded.
        note: What to know about how this was found.
    """

    problem_type: str | None
    splits: dict[str, SplitReport]
    broken: list[BrokenRow]
    duplicates: list[list[str]]
    shared: dict[str, int]
    similar_classes: list[list[str]] = field(default_factory=list)
    note: str = ""

    @property
    def is_broken(self) -> bool:
        """Whether a run on this data would stop, or leave rows out."""
        return bool(self.broken)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def inspect_data(
    splits: Mapping[str, datasets.Dataset],
    processor: Any,
    problem_type: str | None = None,
    class_names: Sequence[str] | None = None,
    num_workers: int | None = None,
) -> DataReport:
    """Reads every row once, in worker processes, as training would.

    Args:
        splits: From `load_data`.
        processor: The `CrossModalProcessor` of the model that is to be trained.
        problem_type, class_names: As in a recipe.
        num_workers: Processes; None: one per core.

    Example:
        >>> report = inspect_data({"train": data["train"].select(range(20))}, processor)
        >>> report.splits["train"].num_rows, report.broken
        (20, [])
    """
    facts = {
        split: map_rows(part, partial(_read_row, processor=processor, split=split), num_workers)
        for split, part in splits.items()
    }
    _find_odd_labels(splits, facts)
    broken = [row.broken for rows in facts.values() for row in rows if row.broken is not None]
    labels, wrong = _read_labels(splits, facts, problem_type, class_names)
    duplicates, shared = _find_duplicates(facts, processor.modalities)
    reports = {split: _summarise(rows, processor) for split, rows in facts.items()}
    spec, encoded = labels
    if spec is not None:
        for split, report in reports.items():
            _add_classes(report, encoded.get(split, []), spec, encoded.get("train", []))
    return DataReport(
        problem_type=None if spec is None else spec.problem_type,
        splits=reports,
        broken=broken + wrong,
        duplicates=duplicates,
        shared=shared,
        similar_classes=[] if spec is None or spec.problem_type == REGRESSION else similar_names(spec.names),
    )


@dataclass
class _RowFacts:
    """What one row says about itself; small, as it comes from a worker process."""

    name: str
    broken: BrokenRow | None
    label: Any
    missing: list[str]
    digests: dict[str, bytes] = field(default_factory=dict)  # of the decoded content: the file's name does not matter
    tokens: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    transparent: list[str] = field(default_factory=list)
    several_frames: list[str] = field(default_factory=list)


def _read_row(row: Mapping[str, Any], processor: Any, split: str) -> _RowFacts:
    missing = [name for name in processor.modalities if is_missing(row.get(name))]
    facts = _RowFacts(str(row.get(ROW_COLUMN, "?")), why_broken(row, processor, split), row.get(LABEL_COLUMN), missing)
    if facts.broken is not None and facts.broken.modality != LABEL_COLUMN:
        return facts
    for name in processor.modalities:
        value = decode_value(processor, name, row.get(name), max_audio_seconds=float("inf"))
        rate = processor.sampling_rate(name)
        if value is None:
            content = b""
        elif rate is not None:
            content = value.tobytes()
            facts.seconds[name] = len(value) / rate
        elif isinstance(processor.processors[name], PreTrainedTokenizerBase):
            content = value.encode("utf-8", "replace")
            facts.tokens[name] = count_tokens(value, processor.processors[name])
        elif isinstance(value, str):
            content = value.encode("utf-8", "replace")
        elif isinstance(value, Image.Image):
            content = repr(value.size).encode() + value.tobytes()
            facts.sizes[name] = value.size
            if is_transparent(row.get(name)):
                facts.transparent.append(name)
            if has_frames(row.get(name)):
                facts.several_frames.append(name)
        else:  # features that were computed before
            content = np.asarray(value).tobytes()
        facts.digests[name] = b"" if value is None else blake2b(content, digest_size=16).digest()
    return facts


def _find_odd_labels(splits: Mapping[str, datasets.Dataset], facts: Mapping[str, list[_RowFacts]]) -> None:
    """Marks rows whose label is of another kind than most."""
    for split, rows in facts.items():
        feature = splits[split].features[LABEL_COLUMN]
        for index, reason in unlike_the_others([named(row.label, feature) for row in rows]).items():
            rows[index].broken = rows[index].broken or BrokenRow(split, rows[index].name, LABEL_COLUMN, "", reason)


def _read_labels(
    splits: Mapping[str, datasets.Dataset],
    facts: Mapping[str, list[_RowFacts]],
    problem_type: str | None,
    class_names: Sequence[str] | None,
) -> tuple[tuple[LabelSpec | None, dict[str, list[Any]]], list[BrokenRow]]:
    """The meaning of the labels, each split's labels as the loss takes them, and labels that mean nothing."""

    def usable(split: str) -> list[int]:
        return [
            index
            for index, row in enumerate(facts[split])
            if row.broken is None or row.broken.modality != LABEL_COLUMN
        ]

    if "train" not in splits or not usable("train"):
        return (None, {}), []
    spec = LabelSpec.from_dataset(splits["train"].select(usable("train")), problem_type, class_names=class_names)
    encoded: dict[str, list[Any]] = {split: [] for split in splits}
    wrong = []
    for split, part in splits.items():
        feature = part.features[LABEL_COLUMN]
        for index in usable(split):
            row = facts[split][index]
            try:
                encoded[split].append(spec.encode_raw(row.label, feature))
            except ValueError as error:
                wrong.append(BrokenRow(split, row.name, LABEL_COLUMN, "", str(error)))
    return (spec, encoded), wrong


def _find_duplicates(
    facts: Mapping[str, list[_RowFacts]], modalities: Sequence[str]
) -> tuple[list[list[str]], dict[str, int]]:
    """Rows with equal inputs in several splits; per modality the number of contents in several splits."""
    rows: dict[tuple[bytes, ...], list[tuple[str, str]]] = defaultdict(list)
    splits_of: dict[str, dict[bytes, set[str]]] = {name: defaultdict(set) for name in modalities}
    for split, found in facts.items():
        for row in found:
            if not row.digests:
                continue
            rows[tuple(row.digests[name] for name in modalities)].append((split, row.name))
            for name in modalities:
                if row.digests[name]:
                    splits_of[name][row.digests[name]].add(split)
    groups = [group for group in rows.values() if len({split for split, _ in group}) > 1]
    duplicates = [[f"{split}: {row}" for split, row in group] for group in groups]
    return duplicates, {name: sum(len(where) > 1 for where in splits_of[name].values()) for name in modalities}


def _summarise(rows: Sequence[_RowFacts], processor: Any) -> SplitReport:
    report = SplitReport(num_rows=len(rows))
    for name in processor.modalities:
        part = processor.processors[name]
        report.missing[name] = sum(name in row.missing for row in rows)
        if tokens := [row.tokens[name] for row in rows if name in row.tokens]:
            report.texts[name] = _lengths(tokens, text_limit(part))
        if seconds := [row.seconds[name] for row in rows if name in row.seconds]:
            report.audios[name] = _lengths(seconds, audio_limit(part))
        if sizes := [row.sizes[name] for row in rows if name in row.sizes]:
            report.images[name] = _sizes(sizes)
            report.transparent[name] = sum(name in row.transparent for row in rows)
            report.several_frames[name] = sum(name in row.several_frames for row in rows)
    return report


def _lengths(values: Sequence[float], limit: float | None) -> Lengths:
    longer = 0 if limit is None else sum(value > limit for value in values)
    return Lengths(min(values), float(np.median(values)), max(values), limit, longer)


def _sizes(sizes: Sequence[tuple[int, int]]) -> Sizes:
    (common, count), *_ = Counter(sizes).most_common(1)
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    return Sizes(by_area[0], by_area[-1], common, count, len(set(sizes)))


def _add_classes(report: SplitReport, encoded: Sequence[Any], spec: LabelSpec, train: Sequence[Any]) -> None:
    """Rows per class, and the score of the best constant answer."""
    if spec.problem_type == SINGLE_LABEL:
        counts = Counter(encoded)
        report.classes = {name: counts[index] for index, name in enumerate(spec.names)}
    elif spec.problem_type == MULTI_LABEL:
        sums = np.sum(np.reshape(encoded, (-1, spec.num_labels)), axis=0)
        report.classes = {name: int(count) for name, count in zip(spec.names, sums, strict=True)}
    if not encoded or not train:
        return
    if spec.problem_type == SINGLE_LABEL:
        (majority, _), *_ = Counter(train).most_common(1)
        report.baseline = sum(label == majority for label in encoded) / len(encoded)
    elif spec.problem_type == MULTI_LABEL:
        answer = np.mean(train, axis=0) >= 0.5
        report.baseline = float(np.mean(np.asarray(encoded) == answer))
    else:
        assert spec.problem_type == REGRESSION
        report.baseline = float(np.mean((np.asarray(encoded) - np.mean(train, axis=0)) ** 2))
