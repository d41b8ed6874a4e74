"""Rows that cannot be used: each is named with its row, file and reason, or left out, as the user chose."""

import json
import logging
import pickle
import time

import numpy as np
import pytest
import soundfile
from datasets import Dataset, DatasetDict
from PIL import Image

from hf_dgl.data.broken import find_broken_rows, leave_out_broken_rows, why_broken
from hf_dgl.data.collator import CrossModalCollator
from hf_dgl.data.labels import LabelSpec
from hf_dgl.data.preparation import prepare_splits
from hf_dgl.data.sources import load_data
from hf_dgl.data.workers import map_rows

NUM_ROWS = 500
MAPPING = {"image": "photo", "text": "title", "label": "kind"}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A csv of 500 rows, and the rows of it that are broken: 1 % each gone, truncated, no image."""
    folder = tmp_path_factory.mktemp("damaged")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(NUM_ROWS):
        path = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
        rows.append({"photo": path.name, "title": f"thing {index}", "kind": "ab"[index % 2]})
    broken = rng.permutation(NUM_ROWS)[:15].tolist()
    for index in broken[:5]:
        (folder / f"{index}.png").unlink()
    for index in broken[5:10]:
        path = folder / f"{index}.png"
        path.write_bytes(path.read_bytes()[:-40])
        assert Image.open(path).size == (8, 8), "a look at the header does not tell"
    for index in broken[10:]:
        (folder / f"{index}.png").write_text("no image")
    Dataset.from_list(rows).to_csv(folder / "data.csv")
    return folder, set(broken)


def source_rows(rows):
    return {int(row.removeprefix("train[").removesuffix("]")) for row in rows}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_broken_row_is_found_and_named(damaged, processor, num_workers):
    folder, expected = damaged
    data = load_data(str(folder / "data.csv"), column_mapping=MAPPING, modalities=["image", "text"])
    broken, usable = find_broken_rows(data, processor, num_workers)
    assert source_rows(row.row for row in broken) == expected
    for row in broken:
        number = row.row.removeprefix("train[").removesuffix("]")
        assert row.file == str(folder.resolve() / f"{number}.png") and row.modality == "image"
        assert row.file in str(row) and row.row in str(row)
        assert row.split in data and row.row in data[row.split]["row"][:]
    assert sum(map(len, usable.values())) == NUM_ROWS - len(expected)


def test_skip_leaves_them_out_lists_them_and_warns_once(damaged, processor, tmp_path, caplog):
    logging.getLogger("hf_dgl").propagate = True
    folder, expected = damaged
    data = load_data(str(folder / "data.csv"), column_mapping=MAPPING, modalities=["image", "text"])
    caplog.clear()
    usable = prepare_splits(data, processor, on_error="skip", output_dir=tmp_path)
    left = source_rows(row for part in usable.values() for row in part["row"])
    assert left == set(range(NUM_ROWS)) - expected, "and no other row is lost"
    listed = [json.loads(line) for line in (tmp_path / "broken_rows.jsonl").read_text().splitlines()]
    assert source_rows(row["row"] for row in listed) == expected
    assert set(listed[0]) == {"split", "row", "modality", "file", "reason"}
    (message,) = [record.getMessage() for record in caplog.records]
    assert "15 of 500 rows are broken and left out" in message and "broken_rows.jsonl" in message
    assert listed[0]["file"] in message and "... and 10 more" in message
    spec = LabelSpec.from_dataset(usable["train"])
    collator = CrossModalCollator(processor, spec)
    assert sum(len(collator(list(part))["labels"]) for part in usable.values()) == NUM_ROWS - len(expected)


def test_a_later_run_without_broken_rows_leaves_no_old_list(processor, tmp_path):
    (tmp_path / "broken_rows.jsonl").write_text("{}\n")
    fine = DatasetDict(train=Dataset.from_dict({"text": ["a"], "label": [0]}))
    assert len(leave_out_broken_rows(fine, processor, output_dir=tmp_path)["train"]) == 1
    assert not (tmp_path / "broken_rows.jsonl").exists()


def test_raise_names_the_row_and_what_to_type(damaged, processor):
    folder, expected = damaged
    data = load_data(str(folder / "data.csv"), column_mapping=MAPPING, modalities=["image", "text"])
    assert prepare_splits(data, processor, on_error="raise")["train"] is data["train"]
    row = next(row for row in data["train"] if int(row["row"][6:-1]) in expected)
    with pytest.raises(ValueError) as caught:
        CrossModalCollator(processor)([row])
    for part in (f"Row {row['row']}, 'image'", row["image"], "--on_error skip", "hf-dgl data"):
        assert part in str(caught.value)


def test_rows_without_anything_or_without_label(processor):
    assert why_broken({"image": None, "text": None, "label": 1}, processor, "train").reason.startswith(
        "it has none of"
    )
    assert why_broken({"text": "a", "label": None}, processor, "test").modality == "label"
    assert why_broken({"text": "a", "label": float("nan")}, processor, "test").reason == "it has no label."
    assert why_broken({"text": ["a"], "label": 0}, processor, "test").modality == "text"
    assert why_broken({"text": "a", "image": None, "label": 0}, processor, "test") is None


def test_truncated_audio_is_found(processor, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "b.wav").write_bytes(whole[:5000])
    rows = [{"audio": str(tmp_path / f"{name}.wav"), "label": 0, "row": name} for name in "ab"]
    broken, usable = find_broken_rows({"train": Dataset.from_list(rows)}, processor)
    assert [row.row for row in broken] == ["b"] and usable == {"train": [0]}
    assert "ends too early" in broken[0].reason


def test_a_split_of_broken_rows_only(processor):
    data = DatasetDict(test=Dataset.from_dict({"image": ["gone.png"], "label": [0], "row": ["test[0]"]}))
    with pytest.raises(ValueError, match="Nothing is left of the split 'test'.*gone.png"):
        leave_out_broken_rows(data, processor)


def test_streams_pass_over_broken_rows_and_list_each_once(damaged, processor, tmp_path):
    folder, expected = damaged
    streams = load_data(str(folder / "data.csv"), column_mapping=MAPPING, modalities=["image", "text"], streaming=True)
    usable = prepare_splits(streams, processor, on_error="skip", output_dir=tmp_path)
    for _ in range(2):
        rows = [row["row"] for part in usable.values() for row in part]
        assert source_rows(rows) == set(range(NUM_ROWS)) - expected
    listed = [json.loads(line)["row"] for line in (tmp_path / "broken_rows.jsonl").read_text().splitlines()]
    assert len(listed) == len(expected) and source_rows(listed) == expected


def slow(row):
    time.sleep(0.01)
    return row["number"] ** 2


def test_map_rows_keeps_the_order_and_shares_the_work():
    data = Dataset.from_dict({"number": list(range(64))})
    assert map_rows(data, slow, num_workers=2) == [number**2 for number in range(64)]
    pickle.dumps(slow)


def test_a_column_without_a_value_is_told(processor, monkeypatch):
    told = []
    monkeypatch.setattr("hf_dgl.data.preparation.logger.warning", told.append)
    rows = Dataset.from_dict({"image": [None, ""], "text": ["a", None], "audio": [b"x", b"x"], "label": [0, 1]})
    prepare_splits(DatasetDict(train=rows), processor)
    assert told == ["No row of the split 'train' has a value for 'image'. Is it the right column?"]


def test_a_row_without_anything_is_named_in_any_batch(processor):
    """Beside rows that have something it was trained on, and answered by a constant."""
    rows = [{"text": "a", "label": 0, "row": "train[4]"}, {"text": "", "label": 1, "row": "train[5]"}]
    with pytest.raises(ValueError, match=r"Row train\[5\]: it has none of the modalities .* --on_error skip"):
        CrossModalCollator(processor)(rows)
