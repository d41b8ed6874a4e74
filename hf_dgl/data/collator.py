"""Rows of a data set to the batch that a cross-modal model takes. Decoding happens here, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from .addresses import fetch_once
from .audio import load_audio
from .columns import CROP_COLUMN, LABEL_COLUMN, ROW_COLUMN, is_address, is_missing
from .labels import LabelSpec
from .limits import IMAGE_BACKGROUND, audio_limit, crop_audio, shortest_audio
from .media import WHITE, UnreadableMedia, describe_media, load_image


@dataclass
class CrossModalCollator:
    """Decodes and processes a list of rows on the fly; nothing is cached. Picklable, for `dataloader_num_workers`.

    A row is a dictionary with one entry per modality and optionally `label`. A modality may be missing in a row (no
    entry, or None) and in the whole batch.

    Args:
        processor: a `CrossModalProcessor` or what behaves like it: `modalities`, `processors[name]`,
            `sampling_rate(name)` and a call with one list per modality (None where a row lacks it).
        labels: what the labels mean; None: batches carry no labels (prediction).
        max_audio_seconds: longer audio is cropped: at a random place in rows whose `random_crop` is true (training),
            in the middle else. None: to what the encoder can take, if it has a limit.

    Returns:
        `{modality: {tensor name: tensor [B, ...]}, "labels": tensor}`
        - a modality that no row has is left out; one that some rows lack holds `present: BoolTensor[B]`,
        - labels are left out if no row has one; else LongTensor[B] (single-label), FloatTensor[B, num_labels]
          (multi-label) or FloatTensor[B] (regression).

    Raises:
        ValueError: unreadable image or audio (names file and row), text that is no text, unknown label, rows of which
            only some have a label, rows without any of the processor's modalities.

    Example:
        >>> collator = CrossModalCollator(processor, labels=LabelSpec.from_dataset(data["train"]))
        >>> batch = collator([data["train"][i] for i in range(8)])
        >>> batch["image"]["pixel_values"].shape
        torch.Size([8, 3, 16, 16])
    """

    processor: Any
    labels: LabelSpec | None = None
    max_audio_seconds: float | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        columns = {}
        for name in self.processor.modalities:
            column = [self._decode(name, row, position) for position, row in enumerate(rows)]
            if any(value is not None for value in column):
                columns[name] = column
        if not columns:
            raise ValueError(self._nothing_found(rows))
        of_several = len(self.processor.modalities) > 1  # `unimodal` reads the rows that have another modality, too
        for position, row in enumerate(rows if of_several else ()):
            if all(column[position] is None for column in columns.values()):
                reason = f"it has none of the modalities {list(self.processor.modalities)}. Remove it."
                raise ValueError(f"{name_row(row, position)}: {reason}{_what_to_do(row)}")
        rates = {self.processor.sampling_rate(name) for name in columns} - {None}
        if len(rates) == 1:  # with several rates a single argument cannot tell; every array has its processor's rate
            columns["sampling_rate"] = rates.pop()
        batch = dict(self.processor(**columns))
        if self.labels is not None and any(LABEL_COLUMN in row for row in rows):
            batch["labels"] = self._label_tensor(rows)
        return batch

    def _decode(self, name: str, row: Mapping[str, Any], position: int) -> Any:
        """One row's value of a modality as its processor takes it; None if the row lacks it."""
        try:
            return decode_value(
                self.processor, name, row.get(name), self.max_audio_seconds, bool(row.get(CROP_COLUMN))
            )
        except ValueError as error:
            raise ValueError(f"{name_row(row, position)}, {name!r}: {error}{_what_to_do(row)}") from error

    def _label_tensor(self, rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        assert self.labels is not None
        encoded = []
        for position, row in enumerate(rows):
            try:
                encoded.append(self.labels.encode_value(row.get(LABEL_COLUMN)))
            except ValueError as error:
                raise ValueError(f"{name_row(row, position)}: {error}") from error
        is_class_id = self.labels.problem_type == "single_label_classification"
        return torch.tensor(encoded, dtype=torch.long if is_class_id else torch.float32)

    def _nothing_found(self, rows: Sequence[Mapping[str, Any]]) -> str:
        modalities = list(self.processor.modalities)
        found = sorted({name for row in rows for name in row})
        if not set(modalities) & set(found):
            column = found[0] if found else ""
            return (
                f"The rows have the columns {found}, but none of the modalities {modalities}. Map them, e.g. "
                f"column_mapping={{{modalities[0]!r}: {column!r}}}. With the Trainer set remove_unused_columns=False: "
                "it drops columns that the model's forward does not name."
            )
        return f"All {len(rows)} rows of this batch lack all modalities {modalities}. Remove such rows."


def decode_value(
    processor: Any, name: str, value: Any, max_audio_seconds: float | None = None, random_crop: bool = False
) -> Any:
    """What a data set holds of one modality in one row -> what that modality's processor takes.

    Args:
        processor: A `CrossModalProcessor`.
        name: The modality.
        value: Path, bytes, image, text, ..., or None.
        max_audio_seconds, random_crop: As in [`CrossModalCollator`].

    Returns:
        PIL image, string, float32 waveform; None for what is missing (None, NaN, an empty text or path).

    Raises:
        ValueError: a file that cannot be read, or text that is no text.

    Example:
        >>> decode_value(processor, "text", 7)
        '7'
    """
    if is_missing(value):
        return None
    part, rate = processor.processors[name], processor.sampling_rate(name)
    if hasattr(part, "read_value"):  # a column of features, see `hf_dgl.models.native.FeatureArray`
        return part.read_value(value)
    if isinstance(part, PreTrainedTokenizerBase):
        if isinstance(value, (str, Number)):
            return str(value)
        raise ValueError(f"expected a string, got {type(value).__name__}: {value!r:.80}.")
    value = _fetched(value, name, getattr(processor, "allow_urls", False))
    if rate is not None:
        samples = load_audio(value, rate)
        if len(samples) < (least := shortest_audio(part)):
            raise UnreadableMedia(
                f"The audio in {describe_media(value)} is too short: {len(samples):,} samples "
                f"({1000 * len(samples) / rate:.1f} ms at {rate} Hz), and the encoder needs {least:,} "
                f"({1000 * least / rate:.1f} ms).",
                "Remove the row, or set the value to null: a row may lack a modality.",
            )
        seconds = audio_limit(part) if max_audio_seconds is None else max_audio_seconds
        if seconds is None or len(samples) <= seconds * rate:
            return samples
        return crop_audio(samples, max(1, round(seconds * rate)), random_crop)
    return load_image(value, getattr(part, IMAGE_BACKGROUND, WHITE))


def _fetched(value: Any, name: str, is_allowed: bool) -> Any:
    """A media value, and in place of one that is an address what lies there."""
    path = value.get("path") if isinstance(value, Mapping) and value.get("bytes") is None else value
    if not isinstance(path, str) or not is_address(path):
        return value
    if not is_allowed:
        raise UnreadableMedia(
            f"{path!r} is an address, no file.",
            "To fetch such files, once: --allow_urls true. Or download them and give their paths.",
        )
    return {"path": path, "bytes": fetch_once(path)}


def _what_to_do(row: Mapping[str, Any]) -> str:
    if ROW_COLUMN not in row:  # no row of a data set that we loaded
        return ""
    return " Or leave such rows out: --on_error skip. `hf-dgl data` lists them all."


def name_row(row: Mapping[str, Any], position: int) -> str:
    return f"Row {row[ROW_COLUMN]}" if ROW_COLUMN in row else f"Row {position} of this batch"
