"""Paths in tables: which columns hold them, in which forms, and that no text is taken for one."""

import json

import datasets
import pyarrow.parquet as pq
import pytest
from datasets import Audio, Dataset, Features, Image, Value

from hf_dgl.data import load_data
from hf_dgl.data.collator import decode_value
from hf_dgl.inference.fetching import located


def both(source, **kwargs):
    """The training rows of a table, loaded and streamed."""
    for streaming in (False, True):
        yield list(load_data(str(source), test_split=None, streaming=streaming, **kwargs)["train"])


def write(folder, **columns):
    """`train.jsonl` with these columns and labels; and a validation split, so that all rows stay."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    lines = "".join(json.dumps({**row, "label": "xy"[i % 2]}) + "\n" for i, row in enumerate(rows))
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text(lines)
    return folder


@pytest.mark.parametrize("name", ["text", "image_caption", "audio_words", "title"])
def test_texts_are_no_paths(media_folder, name):
    """`README`, also a file in the folder, was enough to turn every text into a path; so was the name of a column."""
    (media_folder / "README").touch()
    texts = ["README", "a word", "images", "v2.0 is out", "", "..", "images/0.png"]
    texts = texts if name == "text" else texts[:-1]
    write(media_folder, **{name: texts}, image=["images/0.png"] * len(texts))
    for rows in both(media_folder, modalities=[name, "image"]):
        assert [row[name] for row in rows] == texts
        assert {row["image"] for row in rows} == {str(media_folder / "images/0.png")}


@pytest.mark.parametrize(
    "form",
    [
        lambda path: path,
        lambda path: [path],
        lambda path: {"path": path},
        lambda path: {"path": path, "bytes": None},
        lambda path: [{"path": path}],
    ],
)
@pytest.mark.parametrize("kind, name", [("image", "image"), ("image", "photo"), ("audio", "audio"), ("audio", "clip")])
def test_every_form_of_a_path_is_relative_to_the_table(media_folder, processor, form, kind, name, monkeypatch):
    suffix = {"image": "images/0.png", "audio": "sounds/0.wav"}[kind]
    write(media_folder, **{name: [form(suffix), None, form(suffix)]})
    for rows in both(media_folder, column_mapping={kind: name}, modalities=[kind]):
        values = [decode_value(processor, kind, row[kind]) for row in rows]
        assert values[1] is None and values[0] is not None and values[2] is not None
    assert decode_value(processor, kind, located(form(suffix), 1.0, media_folder)) is not None  # of `hf-dgl predict`


def test_paths_of_several_forms_in_a_column(media_folder, processor):
    forms = ["images/0.png", {"path": "images/1.png"}, ["images/2.png"], str(media_folder / "images/3.png"), None]
    write(media_folder, image=forms)
    for rows in both(media_folder, modalities=["image"]):
        assert [decode_value(processor, "image", row["image"]) is None for row in rows] == [False] * 4 + [True]


def test_the_home_is_known(media_folder, processor, monkeypatch):
    monkeypatch.setenv("HOME", str(media_folder))
    write(media_folder, image=["~/images/0.png"] * 2)
    for rows in both(media_folder, modalities=["image"]):
        assert [row["image"] for row in rows] == [str(media_folder / "images/0.png")] * 2


@pytest.mark.parametrize("name", ["image", "photo"])
def test_paths_that_come_late(media_folder, name):
    """A stream whose first rows lack the picture lost all of them."""
    write(media_folder, **{name: [None] * 150 + ["images/0.png"]})
    for rows in both(media_folder, column_mapping={"image": name}, modalities=["image"]):
        assert rows[-1]["image"] == str(media_folder / "images/0.png")


@pytest.mark.parametrize("kind", ["image", "audio"])
@pytest.mark.parametrize("is_embedded", [False, True])
def test_declared_media_in_parquet(media_folder, processor, kind, is_embedded):
    """Relative paths are the table's; streamed files were decoded by `datasets` first, which needs torchcodec."""
    file = {"image": "images/0.png", "audio": "sounds/0.wav"}[kind]
    content = (media_folder / file).read_bytes() if is_embedded else None
    value = {"bytes": content, "path": file}
    missing = {"bytes": None, "path": None}
    plain = Features({kind: {"bytes": Value("binary"), "path": Value("string")}, "label": Value("string")})
    table = Dataset.from_dict({kind: [value, missing, value], "label": ["x", "y", "x"]}, features=plain)
    declared = {**plain, kind: (Image if kind == "image" else Audio)()}
    schema = table.data.table.replace_schema_metadata(Features(declared).arrow_schema.metadata)
    for split in ("train", "validation"):
        pq.write_table(schema, media_folder / f"{split}.parquet")
    assert isinstance(
        datasets.load_dataset("parquet", data_files=str(media_folder / "train.parquet"))["train"].features[kind],
        type(declared[kind]),
    )
    for rows in both(media_folder, modalities=[kind]):
        assert [decode_value(processor, kind, row[kind]) is None for row in rows] == [False, True, False]


def test_a_column_called_row_may_be_a_modality(media_folder):
    write(media_folder, row=["a", "b"])
    for rows in both(media_folder, column_mapping={"text": "row"}, modalities=["text"]):
        assert [(row["text"], row["row"]) for row in rows] == [("a", "train[0]"), ("b", "train[1]")]
