"""Folders as people have them: nothing in them is passed over, or added, without a word."""

import re

import pytest
from PIL import Image

from hf_dgl.data import LabelSpec, load_data

TABLE = "text,label\n" + "a,x\nb,y\n" * 10


@pytest.fixture
def told(monkeypatch):
    said = []
    for name in ("folders", "problem_types"):
        monkeypatch.setattr(f"hf_dgl.data.{name}.logger.warning", said.append)
    return said


def write(root, *names):
    """Pictures, tables and whatever else."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".png", ".heic")):
            Image.new("RGB", (2, 2)).save(root / name, format="png")
        else:
            (root / name).write_text(TABLE)


def pictures(*folders, suffix=".png"):
    return [f"{folder}/{index}{suffix}" for folder in folders for index in range(6)]


def read(root, modality="image"):
    data = load_data(str(root), modalities=[modality], test_split=None)
    return data, LabelSpec.from_dataset(data["train"]).names


def test_files_of_other_suffixes_are_named(tmp_path, told):
    """A class of HEIC files was missing without a word."""
    write(tmp_path, *pictures("cat", "dog"), *pictures("bird", suffix=".heic"), "cat/Thumbs.db", "cat/x", "notes.txt")
    assert read(tmp_path)[1] == ("cat", "dog")
    assert re.search("^7 files in the class folders of .* are not read: 6 of .heic, 1 of no suffix", told[0])


def test_hidden_folders_are_no_classes(tmp_path, told):
    hidden = pictures(".ipynb_checkpoints", "cat/.ipynb_checkpoints", ".git")
    write(tmp_path, *pictures("cat", "dog"), *hidden, "cat/._0.png")
    data, names = read(tmp_path)
    assert names == ("cat", "dog") and data["train"].num_rows + data["validation"].num_rows == 12 and not told


def test_linked_folders_are_classes(tmp_path, told):
    root = tmp_path / "root"
    write(tmp_path, *pictures("elsewhere", "root/cat"))
    (root / "bird").symlink_to(tmp_path / "elsewhere")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "up").symlink_to(root)  # a loop
    (root / "cat" / "gone.png").symlink_to(tmp_path / "gone.png")
    data, names = read(root)
    assert names == ("bird", "cat", "dog") and data["train"].num_rows + data["validation"].num_rows == 19


def test_a_class_that_only_another_split_has_is_told(tmp_path, told):
    write(tmp_path, *pictures("train/cat", "train/dog", "validation/cat", "validation/unknown"))
    assert read(tmp_path)[1] == ("cat", "dog", "unknown")
    assert told == ["No row of the training split is of the class 'unknown': the model will not learn it."]


def test_folders_beside_those_of_splits_are_named(tmp_path, told):
    write(tmp_path, *pictures("train/cat", "train/dog", "validation/cat", "extra/cat"))
    assert read(tmp_path)[0]["train"].num_rows == 12 and told[0].endswith("folders of splits are read; extra are not.")


@pytest.mark.parametrize(
    "names, num_rows, message",
    [
        (["train.csv", "train_old.csv"], 40, "split 'train' is the rows of 2 tables: train.csv, train_old.csv. Move"),
        (["a.csv", "b.csv"], 40, "split 'train' is the rows of 2 tables: a.csv, b.csv"),
        (["train-0-of-2.csv", "train-1-of-2.csv"], 40, None),
        (["train.csv", "val.xlsx", "test.csv.gz"], 20, "are read; test.csv.gz, val.xlsx are not"),
        (["test.csv"], 20, None),
    ],
)
def test_tables_that_are_read_or_not(tmp_path, told, names, num_rows, message):
    write(tmp_path, *names)
    data = read(tmp_path, "text")[0]
    assert data["train"].num_rows + data["validation"].num_rows == num_rows
    assert re.search(message, told[0]) if message else not told, told


@pytest.mark.parametrize("names", [["val.csv", "test.csv"], ["train.csv.gz", "test.csv"], ["a.csv", "test.csv"]])
def test_rows_to_test_on_are_not_trained_on(tmp_path, names):
    write(tmp_path, *names)
    with pytest.raises(ValueError, match=r"has tables for .*test.csv.* and none to train on.*train.csv; or"):
        read(tmp_path, "text")


def test_files_of_a_split_may_differ_in_type(tmp_path):
    (tmp_path / "train-0.jsonl").write_text('{"text": "a", "label": 1}\n{"text": 7, "label": 2}\n' * 5)
    (tmp_path / "train-1.jsonl").write_text('{"text": "a", "label": "1"}\n{"text": null, "label": "2"}\n' * 5)
    data, names = read(tmp_path, "text")
    assert names == ("1", "2") and data["train"].num_rows == 18
