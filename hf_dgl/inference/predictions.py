"""A file of rows in, a file of answers out: in batches, resumable, and never half-written.

    rows.jsonl -> [CrossModalPipeline] -> scores.parquet.partial (one JSON line per row, as they come)
                                       -> scores.parquet         (at the end, in one step)

The `.partial` file begins with a line that says what job it is of. A run that finds one of its own goes on behind its
last whole line; so a killed run is continued by the same command, and `scores.parquet` is whole whenever it is there.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_dgl.data import ROW_COLUMN
from hf_dgl.data.columns import LABEL_COLUMN
from hf_dgl.data.renaming import with_derived_columns
from hf_dgl.data.tables import read_table
from hf_dgl.method.modalities import did_you_mean

from .cross_modal_pipeline import CrossModalPipeline

logger = logging.get_logger(__name__)

OUTPUT_FORMATS = (".jsonl", ".csv", ".parquet")
_KEPT_KINDS = tuple(
    getattr(pa.types, f"is_{kind}") for kind in ("string", "large_string", "integer", "floating", "boolean", "null")
)
_ROWS_AT_ONCE = 10_000  # of the answers, when they are brought into their final form


@dataclass(frozen=True)
class PredictionSummary:
    """What [`predict_file`] did.

    Args:
        output_file: Where the answers are.
        num_rows: Rows of the input, and of the output.
        num_errors: Rows that could not be read; their `error` says why.
        num_resumed: Rows that an earlier, interrupted run had answered already.
    """

    output_file: str
    num_rows: int
    num_errors: int
    num_resumed: int


def predict_file(
    pipeline: CrossModalPipeline,
    input_file: str | os.PathLike[str],
    output_file: str | os.PathLike[str],
    column_mapping: Mapping[str, str] | None = None,
    keep: Sequence[str] = (),
    batch_size: int = 8,
    num_workers: int = 0,
    on_error: str = "raise",
    top_k: int | None = None,
    unimodal: bool = True,
    overwrite: bool = False,
    long_audio: str = "crop",
) -> PredictionSummary:
    """Labels every row of a file.

    The output has one row per row of the input, in its order. In `.jsonl` it is what the pipeline answers, with the
    row's number and kept columns: `{"row": 17, "input": {...}, "label": ..., "score": ..., "scores": {...},
    "modalities": {...}}`, or `{"row": 17, "error": "..."}`. In `.csv` and `.parquet` the same is
    flat: `row`, `input.<column>`, `label`, `score`, `scores.<label>`, `modalities.image.label`, ..., `error`; in csv a
    list of labels is JSON.

    Args:
        pipeline: From `hf_dgl.pipeline(...)`.
        input_file: csv, tsv, json, jsonl or parquet. Image and audio columns hold paths (relative ones: to this
            file's folder), http(s) addresses, or embedded files.
        output_file: Its suffix chooses the format: `.jsonl`, `.csv` or `.parquet`.
        column_mapping: Modality -> column. A column that bears the modality's name needs no entry; a modality without
            column is absent.
        keep: Columns of the input that go into the output: text, numbers, true/false.
        batch_size: Rows that the model gets at once.
        num_workers: Processes that read files meanwhile.
        on_error: `"raise"`: stop at the first row that cannot be read, and name it; what was answered before is kept.
            `"skip"`: its answer is an `error`.
        top_k: Only the so many best `scores`.
        unimodal: False leaves out what each modality alone says, which takes half of the time.
        overwrite: Begin anew, whatever is there.
        long_audio: `"windows"` reads long audio piece by piece; as in the pipeline.

    Raises:
        ValueError: an unreadable file or row, an unknown column or format, an output that exists, or a `.partial` file
            of another job.

    Example:

        >>> predict_file(hf_dgl.pipeline("outputs/image_text"), "rows.jsonl", "scores.parquet", batch_size=32)
        PredictionSummary(output_file='scores.parquet', num_rows=1000, num_errors=0, num_resumed=0)
    """
    source, output = Path(input_file), Path(output_file)
    partial = output.with_name(output.name + ".partial")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}.")
    pipeline._sanitize_parameters(top_k=top_k, on_error=on_error, long_audio=long_audio)
    _check_output(output, source, overwrite or partial.is_file())  # both are there: the end of a run was interrupted
    table = _read(source)
    table, mapping = with_derived_columns(table, column_mapping or {})
    columns = _columns(pipeline.modalities, mapping, table.column_names, str(source))
    kept = _kept(table, keep, str(source))
    _say_what_is_absent(
        pipeline.modalities, columns, [name for name in table.column_names if name not in kept], source
    )
    options = {"columns": columns, "keep": list(keep), "top_k": top_k, "unimodal": unimodal, "long_audio": long_audio}
    job = {"model": _state_of_model(pipeline), "input": _state_of(source), "num_rows": len(table), **options}
    if overwrite:
        output.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
    num_done = _begin(partial, job)
    inputs = table.select_columns(list(kept))
    settings = {"batch_size": batch_size, "num_workers": num_workers, "on_error": on_error, "top_k": top_k}
    answers: Iterable[dict[str, Any]] = ()  # a run that was stopped after its last row has only its output to finish
    if num_done < len(table):
        rows = _rows(table, columns).select(range(num_done, len(table)))
        answers = pipeline(rows, folder=source.resolve().parent, unimodal=unimodal, long_audio=long_audio, **settings)
    with partial.open("a", encoding="utf-8", buffering=1) as file:  # line by line: a kill loses no whole line
        progress = tqdm(answers, desc=source.name, total=len(table), initial=num_done, unit="row", disable=None)
        try:
            for number, answer in enumerate(progress, start=num_done):
                row = {ROW_COLUMN: number, **({"input": inputs[number]} if kept else {}), **answer}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except ValueError as error:
            raise ValueError(f"{error} Or go on from here without it: --on_error skip.") from error
    num_errors = _finish(partial, output, _schema(pipeline, kept, unimodal))
    return PredictionSummary(str(output), len(table), num_errors, num_done)


def _check_output(output: Path, source: Path, overwrite: bool) -> None:
    if output.suffix not in OUTPUT_FORMATS:
        raise ValueError(
            f"Cannot write {str(output)!r}: expected a name that ends in one of {', '.join(OUTPUT_FORMATS)}"
            f"{did_you_mean(output.suffix, OUTPUT_FORMATS)}"
        )
    if output.exists() and source.exists() and output.samefile(source):
        raise ValueError(f"{str(output)!r} is the file of rows itself, which would be lost. Choose another name.")
    if output.exists() and not overwrite:
        raise ValueError(f"{str(output)!r} is there already. Choose another name, or write over it: --overwrite.")
    if not output.parent.is_dir():
        raise ValueError(f"There is no folder {str(output.parent)!r} to write {output.name!r} into. Make it first.")


# ---------------------------------------------------------------------------------------------------------- the input


def _read(source: Path) -> datasets.Dataset:
    if not source.is_file():
        siblings = [entry.name for entry in source.parent.iterdir()] if source.parent.is_dir() else []
        raise ValueError(f"There is no file {str(source)!r}{did_you_mean(source.name, siblings)}")
    table = read_table(source)
    for name, feature in table.features.items():
        if isinstance(feature, (datasets.Image, datasets.Audio)):
            table = table.cast_column(name, type(feature)(decode=False))
    return table


def _columns(
    modalities: Sequence[str], column_mapping: Mapping[str, str], found: Sequence[str], what: str
) -> dict[str, str]:
    """Modality -> its column, for those that have one."""
    for name, column in column_mapping.items():
        if name not in modalities:
            raise ValueError(
                f"column_mapping: {name!r} is no modality of the model{did_you_mean(name, modalities)} It has "
                f"{list(modalities)}."
            )
        if column not in found:
            raise ValueError(
                f"{what!r} has no column {column!r} for {name!r}{did_you_mean(column, found)} Its columns: {found}."
            )
    columns = {name: column_mapping.get(name, name) for name in modalities}
    columns = {name: column for name, column in columns.items() if column in found}
    for column in columns.values():
        users = [name for name, other in columns.items() if other == column]
        if len(users) > 1:
            raise ValueError(f"column_mapping: the column {column!r} is used for {users}; each needs its own.")
    if not columns:
        raise ValueError(
            f"{what!r} has the columns {found}, none of them a modality of the model ({list(modalities)}). Say which "
            f"column is which: --column_mapping {modalities[0]}={found[0] if found else 'COLUMN'}."
        )
    return columns


def _say_what_is_absent(modalities: Sequence[str], columns: Mapping[str, str], found: list[str], source: Path) -> None:
    """Names modalities without a column where there are columns that nobody reads: one of them may be meant."""
    absent = [name for name in modalities if name not in columns]
    left = [name for name in found if name not in columns.values() and name != LABEL_COLUMN]
    if absent and left:
        logger.warning(
            f"{str(source)!r} has no column {' or '.join(map(repr, absent))}, so every row is labelled without. Its "
            f"other columns are {left}; if one of them is meant: {' '.join(f'--{name} COLUMN' for name in absent)}."
        )


def _rows(table: datasets.Dataset, columns: Mapping[str, str]) -> datasets.Dataset:
    """The modalities' columns under their names, and each row's number."""
    rows = table.select_columns(list(columns.values()))
    rows = rows.rename_columns({column: name for name, column in columns.items()})
    return rows.add_column(ROW_COLUMN, list(range(len(table))))


def _kept(table: datasets.Dataset, keep: Sequence[str], what: str) -> dict[str, pa.DataType]:
    """Columns that go into the output as they are, and their types."""
    types = {}
    for name in keep:
        if name not in table.column_names:
            near = did_you_mean(name, table.column_names)
            raise ValueError(f"{what!r} has no column {name!r} to keep{near} Its columns: {table.column_names}.")
        types[name] = kind = table.features.arrow_schema.field(name).type
        if not any(is_kind(kind) for is_kind in _KEPT_KINDS):
            raise ValueError(
                f"keep: {name!r} holds values of type {kind}; only text, numbers and true/false are kept."
            )
    return types


# ------------------------------------------------------------------------------------------------- the .partial file


def _state_of(file: Path) -> list[Any]:
    """What changes when the file does."""
    stat = file.stat()
    return [str(file.resolve()), stat.st_size, stat.st_mtime_ns]


def _state_of_model(pipeline: CrossModalPipeline) -> list[Any]:
    config = pipeline.model.config
    name = str(getattr(config, "_name_or_path", ""))
    weights = sorted(Path(name).glob("*.safetensors")) if os.path.isdir(name) else []
    return [name, getattr(config, "_commit_hash", None), *(_state_of(file) for file in weights)]


def _begin(partial: Path, job: Mapping[str, Any]) -> int:
    """Opens the book: how many rows are answered already. A line that was being written is cut off.

    Raises:
        ValueError: it is of another job.
    """
    num_lines, num_bytes, first = 0, 0, b""
    if partial.exists():
        with partial.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                first = first or line
                num_lines, num_bytes = num_lines + 1, num_bytes + len(line)
    if not num_lines:
        partial.write_text(json.dumps(job) + "\n", encoding="utf-8")
        return 0
    before, now = _parsed(first), json.loads(json.dumps(job))
    other = [key for key in now if before.get(key) != now[key]]
    if other:
        raise ValueError(
            f"{str(partial)!r} was begun by another job, with another {' and '.join(other)}. Choose another output, "
            "or begin anew: --overwrite."
        )
    os.truncate(partial, num_bytes)
    return num_lines - 1


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError:
        return {}


# ---------------------------------------------------------------------------------------------------------- the output


def _schema(pipeline: CrossModalPipeline, kept: Mapping[str, pa.DataType], unimodal: bool) -> pa.Schema:
    """Columns of a flat output."""
    config: Any = pipeline.model.config
    is_regression = config.problem_type == "regression" or config.problem_type is None and config.num_labels == 1
    is_multi_label = config.problem_type == "multi_label_classification"
    answer: list[tuple[str, pa.DataType]] = []
    if not is_regression:
        answer.append(("label", pa.list_(pa.string()) if is_multi_label else pa.string()))
    if not is_regression or config.num_labels == 1:
        answer.append(("score", pa.float64()))
    if config.num_labels > 1:
        answer += [(f"scores.{config.id2label[index]}", pa.float64()) for index in range(config.num_labels)]
    fields = [(ROW_COLUMN, pa.int64()), *((f"input.{name}", kind) for name, kind in kept.items()), *answer]
    for name in pipeline.modalities if unimodal else ():
        fields += [(f"modalities.{name}.{key}", kind) for key, kind in answer]
    return pa.schema([*fields, ("error", pa.string())])


def _finish(partial: Path, output: Path, schema: pa.Schema) -> int:
    """Brings the answers into their final form, which is there in one step or not at all; counts the errors."""
    temporary, num_errors = output.with_name(f".{output.name}.tmp"), 0
    with partial.open(encoding="utf-8") as lines, _writer(temporary, output.suffix, schema) as write:
        next(lines)  # the job
        while answers := [json.loads(line) for line in islice(lines, _ROWS_AT_ONCE)]:
            num_errors += sum("error" in answer for answer in answers)
            write(answers)
    os.replace(temporary, output)
    partial.unlink()
    return num_errors


@contextmanager
def _writer(path: Path, suffix: str, schema: pa.Schema) -> Iterator[Callable[[list[dict[str, Any]]], Any]]:
    """A function that writes answers."""
    if suffix == ".parquet":
        with pq.ParquetWriter(path, schema) as parquet:
            yield lambda answers: parquet.write_table(pa.Table.from_pylist(list(map(_flat, answers)), schema))
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if suffix == ".jsonl":
            yield lambda answers: file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in answers)
        else:
            table = csv.DictWriter(file, schema.names)
            table.writeheader()
            yield lambda answers: table.writerows(_without_lists(_flat(answer)) for answer in answers)


def _flat(answer: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"scores": {"cat": 0.9}}` -> `{"scores.cat": 0.9}`."""
    flat: dict[str, Any] = {}
    for key, value in answer.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _without_lists(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
