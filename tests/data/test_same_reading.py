"""The same rows in any file, loaded, streamed or predicted, are read as the same texts, labels and presence."""

import csv
import json
import tempfile
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_dgl.data.collator import decode_value
from hf_dgl.data.label_values import named
from hf_dgl.data.labels import LabelSpec
from hf_dgl.data.sources import load_data
from hf_dgl.data.tables import read_table
from hf_dgl.inference.predictions import _columns, _read, _rows

TRAPS = (
    "NA N/A NaN nan null None none NULL true false 001 100 -7 1.0 1e5 0x1F inf 1_000 2020-01-01 12:30 [1] {} é 你好 😀"
)
WORDS = [
    *TRAPS.split(),
    "",
    " ",
    "  two  blanks ",
    'a "quoted" word',
    "a,b;c\td",
    "two\nlines",
    "'",
    '"',
    "\\N",
    "#x",
    "$",
]
CELLS = st.one_of(st.sampled_from(WORDS), st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=6))
COLUMNS = st.one_of(  # the types of a column, in files that have any
    st.lists(st.tuples(st.none() | CELLS, st.none() | CELLS), min_size=2, max_size=8),
    st.lists(st.tuples(st.none() | st.integers(-(2**60), 2**60), st.integers(0, 12)), min_size=2, max_size=8),
    st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.booleans()), min_size=2, max_size=8),
)


def write(folder: Path, rows: list[dict], suffix: str) -> str:
    """A folder with the same rows for every split, so that none are moved."""
    folder.mkdir()
    for split in ("train", "validation", "test"):
        path = folder / f"{split}{suffix}"
        if suffix in (".csv", ".tsv"):
            with path.open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
                table.writerow(["text", "label"])
                table.writerows([["" if value is None else value for value in row.values()] for row in rows])
        elif suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        elif suffix == ".json":
            path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        else:
            Dataset.from_list(rows).to_parquet(path)
    return str(folder)


def meaning(split, processor) -> list[tuple]:
    """Of each row the text (None: absent) and the name of its label (None: missing)."""
    feature = None if split.features is None else split.features["label"]
    read = []
    for row in split:
        label = named(row["label"], feature)
        name = None if label is None else str(label)
        read.append((decode_value(processor, "text", row["text"]), name))
    return read


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(datasets.utils.logging.get_logger("datasets"), "disabled", True)


@settings(deadline=None, max_examples=20)
@given(pairs=COLUMNS)
def test_same_rows_same_reading(pairs, processor):
    rows = [{"text": text, "label": label} for text, label in pairs]
    expected = [
        (None if text in (None, "") else str(text), None if label is None else str(label).strip() or None)
        for text, label in pairs
    ]
    if all(label is None for _, label in expected):  # refused, see test_splits
        return
    table = Dataset.from_list(rows)
    sources = [DatasetDict(train=table, validation=table, test=table)]
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".csv", ".tsv", ".json", ".jsonl", ".parquet"):
            sources.append(write(Path(folder, suffix[1:]), rows, suffix))
        for source in sources:
            for streaming in (False, True):
                data = load_data(source, modalities=["text"], streaming=streaming)
                assert meaning(data["train"], processor) == expected, (source, streaming)
            if isinstance(source, str):  # what `hf-dgl predict` reads
                file = next(Path(source).glob("test.*"))
                predicted = _rows(_read(file), _columns(["text"], {}, ["text", "label"], ""))
                assert [decode_value(processor, "text", row["text"]) for row in predicted] == [t for t, _ in expected]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "labels, names",
    [
        (["None", "NA", "null"], ("NA", "None", "null")),
        (["001", "1", "01"], ("001", "01", "1")),
        (["10", "9", "100"], ("9", "10", "100")),
        ([" a", "a ", "b"], ("a", "b")),
    ],
)
def test_class_names_are_what_the_file_says(tmp_path, suffix, labels, names):
    rows = [{"text": f"row {i}", "label": labels[i % 3]} for i in range(30)]
    data = load_data(write(tmp_path / "x", rows, suffix), modalities=["text"])
    spec = LabelSpec.from_dataset(data["train"])
    assert spec.problem_type == "single_label_classification" and spec.names == names
    assert [spec.id2label[i] for i in spec.encode(data)["test"]["label"][:3]] == [label.strip() for label in labels]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_fractions_are_a_regression_in_any_file(tmp_path, suffix):
    rows = [{"text": "x", "label": value} for value in (1.5, 2.0, 51000.25)]
    data = load_data(write(tmp_path / "x", rows, suffix), modalities=["text"])
    spec = LabelSpec.from_dataset(data["train"])
    assert spec.problem_type == "regression" and spec.encode(data["train"])["label"][:] == [1.5, 2.0, 51000.25]
    assert spec.mean == pytest.approx((17001.25,))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_column_of_numbers_is_a_vocabulary(tmp_path, suffix):
    """`[UNK]` for every row was what became of ids in a csv."""
    from hf_dgl.models.encoder_specs import processor_source, resolve_encoder

    rows = [{"text": i, "label": "ab"[i % 2]} for i in range(100, 120)]
    data = load_data(write(tmp_path / "x", rows, suffix), modalities=["text"])
    tokenizer = processor_source(resolve_encoder("text", {"model_type": "bert"}), data["train"]["text"])
    assert tokenizer.unk_token_id not in tokenizer("117")["input_ids"] and len(tokenizer) > 20


@pytest.mark.parametrize("header", ['text;"label, kind"', '"a,b";text', '"a\t,b;"\ttext'])
def test_separators_in_a_quoted_header_do_not_count(tmp_path, header):
    mark = "\t" if "\t" in header[-5:] else ";"
    (tmp_path / "a.csv").write_text(f"{header}\nx{mark}y\n")
    assert list(read_table(tmp_path / "a.csv")[0].values()) == ["x", "y"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", "[" * 10_000, "lists in lists"),
        ("a.jsonl", '{"text": "a"}\n{"text": "\\ud800"}\n', "line 2, column 'text': .* is half a character"),
        ("a.jsonl", '{"text": 1}\n{"text": 123456789012345678901}\n', "line 2, column 'text': .*64 bits. Quote it"),
    ],
)
def test_json_that_nobody_can_hold(tmp_path, streaming, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"Cannot read '.*{name}': {message}"):
        read_table(tmp_path / name, streaming)[:]


def test_utf_16_without_a_mark_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,b\n", encoding="utf-16-le")  # which is UTF-8, too
    with pytest.raises(ValueError, match="zero bytes. Is it UTF-16"):
        read_table(tmp_path / "a.csv")
