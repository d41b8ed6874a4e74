"""The report on a data set, against one of which everything is known."""

import json

import numpy as np
import pytest
import soundfile
from datasets import Dataset
from PIL import Image

from hf_dgl.data.preview import draw_preview
from hf_dgl.data.report import inspect_data
from hf_dgl.models import CrossModalProcessor
from hf_dgl.models.processing_cross_modal import train_tokenizer


@pytest.fixture
def splits(tmp_path):
    rng = np.random.default_rng(0)
    sounds = []
    for index in range(14):
        Image.fromarray(rng.integers(0, 255, (8, 8 + index % 2, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
        soundfile.write(tmp_path / f"{index}.wav", rng.uniform(-1, 1, 800 * (1 + index)), 16_000)
        sounds.append(str(tmp_path / f"{index}.wav"))
    # the same picture as train[0] under another name, size on disk and row
    Image.open(tmp_path / "0.png").save(tmp_path / "again.bmp")
    (tmp_path / "3.png").write_text("no image")
    (tmp_path / "4.png").unlink()
    images = [str(tmp_path / f"{index}.png") for index in range(14)]

    def part(split, numbers, labels):
        return Dataset.from_list(
            [
                {
                    "image": images[n],
                    "audio": sounds[n],
                    "text": f"an odd digit {n}",
                    "label": label,
                    "row": f"{split}[{i}]",
                }
                for i, (n, label) in enumerate(zip(numbers, labels, strict=True))
            ]
        )

    train = part("train", range(10), list("aaaaaabbbb"))
    rows = list(train)
    rows[5].update(image=None, text=None)
    rows[6].update(text="an odd digit " * 10)
    test = list(part("test", [0, 10, 11, 12], list("abbb")))
    test[0]["image"] = str(tmp_path / "again.bmp")
    return {"train": Dataset.from_list(rows), "test": Dataset.from_list(test)}


@pytest.fixture
def small_processor(processor):
    tokenizer = train_tokenizer(["an even digit", "an odd digit"], max_length=16)
    return CrossModalProcessor({**processor.processors, "text": tokenizer})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_report(splits, small_processor, num_workers):
    report = inspect_data(splits, small_processor, num_workers=num_workers)
    assert report.problem_type == "single_label_classification"
    train, test = report.splits["train"], report.splits["test"]
    assert (train.num_rows, test.num_rows) == (10, 4)
    assert train.classes == {"a": 6, "b": 4} and test.classes == {"a": 1, "b": 3}
    assert (train.baseline, test.baseline) == (0.6, 0.25), "the training split's most frequent class"
    assert train.missing == {"image": 1, "text": 1, "audio": 0}
    assert [(row.row, row.modality) for row in report.broken] == [("train[3]", "image"), ("train[4]", "image")]
    assert report.is_broken and "3.png" in report.broken[0].file
    assert report.duplicates == [["train: train[0]", "test: test[0]"]]
    assert report.shared == {"image": 1, "text": 1, "audio": 1}
    text = train.texts["text"]
    assert (text.limit, text.num_longer, text.maximum) == (16, 1, 32)
    sound = test.audios["audio"]
    assert (sound.minimum, sound.maximum) == (pytest.approx(0.05), pytest.approx(0.65))
    assert (sound.limit, sound.num_longer) == (None, 0)
    assert train.images["image"].num_different == 2 and set(train.images["image"].largest) == {8, 9}
    assert json.loads(json.dumps(report.to_dict()))["splits"]["train"]["classes"] == {"a": 6, "b": 4}


def test_labels_that_training_never_saw_and_none(splits, small_processor):
    rows = list(splits["test"])
    rows[1]["label"], rows[2]["label"] = "zebra", None
    report = inspect_data({**splits, "test": Dataset.from_list(rows)}, small_processor)
    wrong = {row.row: row.reason for row in report.broken if row.modality == "label"}
    assert set(wrong) == {"test[1]", "test[2]"} and "'zebra' does not occur" in wrong["test[1]"]
    assert report.splits["test"].classes == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("labels", "classes", "baseline"),
    [
        ([["x"], ["x", "y"], ["x"], ["y", "x"]], {"x": 4, "y": 2}, 0.75),
        ([1.0, 2.0, 3.0, 4.0], {}, 1.25),
    ],
)
def test_other_problems(small_processor, labels, classes, baseline):
    data = Dataset.from_dict({"text": list("abcd"), "label": labels})
    report = inspect_data({"train": data}, small_processor)
    assert report.splits["train"].classes == classes
    assert report.splits["train"].baseline == pytest.approx(baseline)


def test_preview(splits, small_processor, tmp_path):
    draw_preview(splits["train"], small_processor, tmp_path / "data.png")  # rows 3 and 4 are broken: drawn as such
    assert Image.open(tmp_path / "data.png").size[0] > 500
    with pytest.raises(ValueError, match="Format 'xyz' is not supported"):
        draw_preview(splits["train"], small_processor, tmp_path / "data.xyz")
