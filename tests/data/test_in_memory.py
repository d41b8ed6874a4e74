"""Data sets that are there already: in any format they are read as Python values, and a transform is not lost."""

from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict, IterableDatasetDict

from hf_dgl.data import LabelSpec, load_data

ROWS = Dataset.from_dict({"text": ["a", None, "c", "d"], "label": [3, 5, 3, 5]})


@pytest.mark.parametrize("streaming", [False, True, "a stream"])
@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "arrow"])
def test_formats_do_not_matter(kind, streaming):
    rows = ROWS.with_format(kind, columns=["label"])
    source = DatasetDict(train=rows, validation=rows)
    if streaming == "a stream":
        rows = ROWS.to_iterable_dataset().with_format(kind)
        source = IterableDatasetDict(train=rows, validation=rows)
    data = load_data(source, modalities=["text"], test_split=None, streaming=bool(streaming))["train"]
    assert [row["text"] for row in data] == ["a", None, "c", "d"]
    spec = LabelSpec.from_dataset(data, class_names=["3", "5"])
    assert [row["label"] for row in spec.encode(data)] == [0, 1, 0, 1]


def test_a_transform_is_not_lost():
    rows = datasets.concatenate_datasets([ROWS] * 5).with_transform(lambda batch: batch)
    with pytest.raises(ValueError, match=r"'train' has a transform .*data.map\(function, batched=True\)"):
        load_data(rows, modalities=["text"])
    assert load_data(rows.with_format(None), modalities=["text"])["train"].num_rows == 14


def test_a_stream_is_called_one():
    with pytest.raises(ValueError, match="IterableDataset is a stream: set streaming=True"):
        load_data(ROWS.to_iterable_dataset(), modalities=["text"])


def test_a_path_is_a_name(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "a,x\nb,y\n" * 10)
    assert load_data(Path(tmp_path, "a.csv"), modalities=["text"])["train"].num_rows == 14
