"""Files of rows as they are meant: in csv and tsv every cell is text and only an empty cell is missing; in json every
value has the type that is written there; parquet declares its types.

csv and json are read here, and not by `datasets`: its readers guess types from the values, so that a class called
"None" becomes a missing value, "001" the number 1, ids beside an empty cell fractions ("100.0"), and one row of
another type a traceback. What is read is the same whether the rows are loaded, streamed or given to `hf-dgl predict`.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from hf_dgl.method.modalities import did_you_mean

TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_CHUNK = 1000  # rows that become Arrow at once
_PEEK = 1000  # rows of a stream that show its columns
_HALF = re.compile("[\ud800-\udfff]")  # what JSON can escape and UTF-8 cannot hold


def read_table(path: str | Path, streaming: bool = False) -> Any:
    """All rows of a csv, tsv, json, jsonl or parquet file.

    | format | values |
    |---|---|
    | csv, tsv | strings; an empty cell is None, and no other (`NA`, `None`, `nan`, `001` are texts) |
    | json, jsonl | as written; columns of several types are `datasets.Json` |
    | parquet | as declared |

    Args:
        path: UTF-8. A `.json` file holds a list of objects, one object per line, or one list per column.
        streaming: Read rows when they are asked for.

    Returns:
        A `Dataset`, or an `IterableDataset`.

    Raises:
        ValueError: another suffix, no rows, or a row that cannot be read (with its line).

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "my.csv"
        >>> _ = file.write_text("text,label\\nNA,001\\n,2\\n")
        >>> read_table(file)[:]
        {'text': ['NA', None], 'label': ['001', '2']}
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise ValueError(
            f"Cannot read {str(path)!r}: expected one of {', '.join(TABLE_SUFFIXES)}, got {suffix or 'no suffix'!r}"
            f"{did_you_mean(suffix, list(TABLE_SUFFIXES))}"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"Cannot read {str(path)!r}: the file is empty.")
    if suffix == ".parquet":
        return _read_parquet(path, streaming)
    rows = _ROWS[suffix]
    first = list(islice(rows(path), _PEEK))
    if not first:
        raise ValueError(f"Cannot read {str(path)!r}: it has no rows.")
    if streaming:
        columns = tuple(dict.fromkeys(name for row in first for name in row))
        # without types: those that the first rows suggest would be forced upon the others
        return datasets.IterableDataset.from_generator(_stream, gen_kwargs={"path": path, "columns": columns})
    with _named_errors(path):
        return table_of(rows(path))


def _read_parquet(path: Path, streaming: bool) -> Any:
    try:
        loaded: Any = datasets.load_dataset("parquet", data_files=str(path), streaming=streaming)
    except (datasets.exceptions.DatasetGenerationError, datasets.exceptions.DatasetsError, ValueError) as error:
        raise ValueError(f"Cannot read {str(path)!r}: {error.__cause__ or error}. Is it damaged?") from error
    return loaded["train"]


# ------------------------------------------------------------------------------------------------------ rows of a file


def _csv_rows(path: Path) -> Iterator[dict[str, str | None]]:
    csv.field_size_limit(sys.maxsize)  # texts are longer than 128 KiB now and then
    with path.open(encoding="utf-8-sig", newline="") as file, _named_errors(path):
        lines = csv.reader(file, delimiter=_delimiter(path), strict=True)
        header: list[str] | None = None
        number = 0
        while True:
            try:
                cells = next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(f"line {lines.line_num}: {error}. Is a quote missing or too many?") from error
            if not cells:  # a blank line
                continue
            if header is None:
                header = _header(cells)
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"line {lines.line_num} (row {number}) has {len(cells)} cells, and the header {len(header)}: "
                    f"{header}. A cell that holds the separator or a line break needs quotes."
                )
            yield {name: cell or None for name, cell in zip(header, cells, strict=True)}
            number += 1


def _header(cells: list[str]) -> list[str]:
    """Column names; that of an unnamed one (pandas writes its index so) as pandas would call it."""
    if any("\0" in name for name in cells):
        raise ValueError("the header holds zero bytes. Is it UTF-16? Save it as UTF-8.")
    names = [name or f"Unnamed: {place}" for place, name in enumerate(cells)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the header names the columns {twice} more than once.")
    return names


def _delimiter(path: Path) -> str:
    """A tab in tsv; in csv the comma, except where the header has none but has semicolons (Excel) or tabs."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        header = file.readline()
    bare = re.sub(r'"[^"]*("|$)', "", header)  # without what is quoted
    return next((mark for mark in (",", ";", "\t") if mark in bare), ",")


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file, _named_errors(path):
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {line} is no JSON: {error.msg} (column {error.colno}).") from error
            yield _checked_row(row, f"line {line}")


def _json_file_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a list of objects, of one object per line, or of one object that holds a list per column."""
    with path.open(encoding="utf-8-sig") as file, _named_errors(path):
        text = file.read()
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise ValueError(f"line {error.lineno} is no JSON: {error.msg} (column {error.colno}).") from error
            yield from _json_rows(path)
            return
        if isinstance(content, list):
            for number, row in enumerate(content):
                yield _checked_row(row, f"row {number}")
        elif isinstance(content, dict) and content and all(isinstance(value, list) for value in content.values()):
            if len(lengths := {len(value) for value in content.values()}) > 1:
                raise ValueError(f"its lists, one per column, differ in length: {sorted(lengths)}.")
            for number, values in enumerate(zip(*content.values(), strict=True)):
                yield _checked_row(dict(zip(content, values, strict=True)), f"row {number}")
        else:
            yield _checked_row(content, "its content")


def _checked_row(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f'{where}: expected an object ({{"column": value, ...}}), got {type(row).__name__}.')
    for name, value in row.items():
        if isinstance(value, str) and (half := _HALF.search(value)):
            raise ValueError(f"{where}, column {name!r}: {half[0]!r} is half a character.")
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ValueError(f"{where}, column {name!r}: {value} has more than 64 bits. Quote it, if it is a name.")
    return {name: None if value != value else value for name, value in row.items()}  # NaN: pandas' missing value


_ROWS: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".jsonl": _json_rows,
    ".json": _json_file_rows,
}


class _named_errors:
    """Puts the file's name before what went wrong in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, UnicodeDecodeError):
            raise ValueError(
                f"Cannot read {str(self.path)!r}: it is not UTF-8 ({error.reason} at byte {error.start}: "
                f"{error.object[error.start : error.start + 1]!r}). Save it as UTF-8."
            ) from error
        if isinstance(error, RecursionError):
            raise ValueError(f"Cannot read {str(self.path)!r}: lists in lists, deeper than anyone reads.") from error
        if isinstance(error, ValueError) and not str(error).startswith("Cannot read"):
            raise ValueError(f"Cannot read {str(self.path)!r}: {error}") from error


# ---------------------------------------------------------------------------------------------------- rows to a table


def _stream(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows, all of them with the columns that the first ones have."""
    return ({name: row.get(name) for name in columns} for row in _ROWS[path.suffix.lower()](path))


def _as_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def table_of(rows: Iterable[dict[str, Any]]) -> datasets.Dataset:
    """Rows as a data set, chunk by chunk so that they are never all Python objects at once.

    Values keep their types: a column of several is a `datasets.Json`.

    Example:
        >>> table_of([{"text": "1"}, {"text": 1}, {}])["text"][:]
        ['1', 1, None]
    """
    rest = iter(rows)
    columns: dict[str, list[pa.Array]] = {}
    num_rows = 0
    while chunk := list(islice(rest, _CHUNK)):
        for name in dict.fromkeys(name for row in chunk for name in row):
            before = columns.setdefault(name, [pa.nulls(num_rows)] if num_rows else [])
            before.append(_array([row.get(name) for row in chunk]))
        num_rows += len(chunk)
        for name, arrays in columns.items():
            if (lacking := num_rows - sum(map(len, arrays))) > 0:
                columns[name].append(pa.nulls(lacking))
    unified = {name: _unified(arrays) for name, arrays in columns.items()}
    features = datasets.Features(
        {name: datasets.Json() if _is_json(array.type) else _feature(array) for name, array in unified.items()}
    )
    table = pa.table(unified).cast(features.arrow_schema)
    return datasets.Dataset(datasets.table.InMemoryTable(table), info=datasets.DatasetInfo(features=features))


def _array(values: list[Any]) -> pa.Array:
    """Values of one type as Arrow; those of several as JSON, which keeps each what it is."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds <= {str} or len(kinds) == 1:
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
            pass  # lists or objects that are not alike
    return pa.array(list(map(_as_json, values)), pa.json_())


def _unified(arrays: list[pa.Array]) -> pa.ChunkedArray:
    kinds = {array.type for array in arrays if not pa.types.is_null(array.type)}
    if len(kinds) > 1 and not any(map(_is_json, kinds)):
        kind = _common_type(kinds)
        if kind is not None:
            return pa.chunked_array([array.cast(kind) for array in arrays])
    if len(kinds) > 1:
        arrays = [array if _is_json(array.type) else _array_of_json(array) for array in arrays]
        kinds = {pa.json_()}
    kind = kinds.pop() if kinds else pa.null()
    return pa.chunked_array([pa.nulls(len(a), kind) if pa.types.is_null(a.type) else a for a in arrays], kind)


def _common_type(kinds: set[pa.DataType]) -> pa.DataType | None:
    """Of structs that gain fields, lists that begin empty, arrays of numbers; no text or id becomes a fraction."""
    if not all(map(pa.types.is_nested, kinds)):
        return None
    try:
        promote = "permissive" if all(map(pa.types.is_list, kinds)) else "default"
        return pa.unify_schemas([pa.schema([("", kind)]) for kind in kinds], promote_options=promote).field(0).type
    except pa.ArrowTypeError:
        return None


def _array_of_json(array: pa.Array) -> pa.Array:
    return pa.array(list(map(_as_json, array.to_pylist())), pa.json_())


def _is_json(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.JsonType)


def _feature(array: pa.ChunkedArray) -> Any:
    return datasets.Features.from_arrow_schema(pa.schema([("column", array.type)]))["column"]
