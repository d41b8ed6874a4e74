import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from hf_dgl.data.collator import CrossModalCollator
from hf_dgl.data.labels import LabelSpec
from hf_dgl.data.samples import load_sample

SINGLE = LabelSpec("single_label_classification", ("even", "odd"))


def row(**changes):
    full = {
        "image": Image.new("RGB", (10, 10)),
        "text": "an even digit",
        "audio": np.zeros(3200, dtype=np.float32),
        "label": 0,
    }
    return {name: value for name, value in {**full, **changes}.items() if value is not Ellipsis}


def test_full_batch(processor):
    batch = CrossModalCollator(processor, SINGLE)([row(), row(label="odd", text="odd")])
    assert set(batch) == {"image", "text", "audio", "labels"}
    assert batch["image"]["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["text"]["attention_mask"].sum(dim=1).tolist() == [5, 3]
    assert batch["audio"]["input_values"].shape == (2, 3200)
    assert batch["labels"].dtype == torch.long
    assert batch["labels"].tolist() == [0, 1]
    assert not any("present" in part for name, part in batch.items() if name != "labels")


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(presence=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=5))
def test_any_mixture_of_missing_modalities(processor, presence):
    names = ("image", "text", "audio")
    rows = [row(**{name: None for name, there in zip(names, flags, strict=True) if not there}) for flags in presence]
    collator = CrossModalCollator(processor, SINGLE)
    if not all(map(any, presence)):
        empty = [any(flags) for flags in presence].index(False)
        expected = f"Row {empty} of this batch: it has none of" if any(map(any, presence)) else "lack all modalities"
        with pytest.raises(ValueError, match=expected):
            collator(rows)
        return
    batch = collator(rows)
    for name, flags in zip(names, zip(*presence, strict=True), strict=True):
        assert (name in batch) == any(flags)
        if any(flags):
            assert batch[name].get("present", torch.ones(len(rows), dtype=torch.bool)).tolist() == list(flags)
            assert {len(tensor) for tensor in batch[name].values()} == {len(rows)}
    assert len(batch["labels"]) == len(rows)


def test_rows_without_label_or_without_an_entry(processor):
    batch = CrossModalCollator(processor, SINGLE)([row(label=..., audio=...), row(label=..., audio=...)])
    assert set(batch) == {"image", "text"}
    assert "labels" not in CrossModalCollator(processor)([row()])


@pytest.mark.parametrize(
    ("spec", "values", "expected"),
    [
        (LabelSpec("multi_label_classification", ("a", "b")), [["b"], [1, 0]], torch.tensor([[0.0, 1.0], [1.0, 0.0]])),
        (LabelSpec("regression", ("label",)), [1, 2.5], torch.tensor([1.0, 2.5])),
    ],
)
def test_labels_of_other_kinds(processor, spec, values, expected):
    labels = CrossModalCollator(processor, spec)([row(label=value) for value in values])["labels"]
    assert labels.dtype == expected.dtype
    assert torch.equal(labels, expected)


def test_unreadable_files_name_row_and_file(processor, tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    collator = CrossModalCollator(processor)
    with pytest.raises(ValueError, match=r"Row train\[17\], 'image': Cannot read the image file '.*broken.png'"):
        collator([row(), row(image=str(tmp_path / "broken.png"), row="train[17]")])
    with pytest.raises(ValueError, match="Row 1 of this batch, 'image': Cannot find the image file 'gone.png'"):
        collator([row(), row(image={"path": "gone.png", "bytes": None})])
    with pytest.raises(ValueError, match="Row 0 of this batch, 'audio': Cannot find the audio file 'gone.wav'"):
        collator([row(audio="gone.wav")])


def test_text_that_is_no_text(processor):
    assert CrossModalCollator(processor)([row(text=7)])["text"]["input_ids"].shape[0] == 1
    with pytest.raises(ValueError, match="Row 0 of this batch, 'text': expected a string, got list"):
        CrossModalCollator(processor)([row(text=["a", "b"])])


def test_labels_that_cannot_be(processor):
    collator = CrossModalCollator(processor, SINGLE)
    with pytest.raises(ValueError, match="Row 1 of this batch: label 'zero' does not occur in the training split"):
        collator([row(), row(label="zero")])
    with pytest.raises(ValueError, match="Row 1 of this batch: no label: the label is null"):
        collator([row(), row(label=None)])


def test_columns_of_other_names(processor):
    with pytest.raises(
        ValueError, match=r"have the columns \['img', 'label'\].*column_mapping=.*remove_unused_columns"
    ):
        CrossModalCollator(processor)([{"img": 1, "label": 0}])


def test_loader_with_worker_processes_gives_the_same_batches(processor, media_folder):
    rows = [
        {"image": f"{media_folder}/images/{i}.png", "audio": f"{media_folder}/sounds/{i}.wav", "label": i % 2}
        for i in range(6)
    ]
    data = Dataset.from_list(rows)
    collator = CrossModalCollator(processor, SINGLE)
    pickle.loads(pickle.dumps(collator))
    here, there = (list(DataLoader(data, 4, collate_fn=collator, num_workers=n)) for n in (0, 1))
    assert [len(batch["labels"]) for batch in there] == [4, 2], "the last batch is shorter"
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one["labels"], other["labels"])
        for name in ("image", "audio"):
            for key, tensor in one[name].items():
                assert torch.equal(tensor, other[name][key])


def test_samples_collate(processor):
    data = load_sample("image_text")["validation"].select(range(4))
    batch = CrossModalCollator(processor, LabelSpec.from_dataset(data))(list(data))
    assert batch["image"]["pixel_values"].shape == (4, 3, 16, 16)
    assert batch["labels"].tolist() == data["label"][:]
