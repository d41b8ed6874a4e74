from __future__ import annotations

import numpy as np
import pytest
import soundfile
from datasets import Dataset

from hf_dgl.training.lengths import with_lengths
from tests.tiny import tiny_processor
from tests.training.test_trainer import make

TEXTS = ["a", "one two three", "loud", "quiet quiet quiet quiet", "zero", "the digit is even"]
GROUPED = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2, "max_steps": 3}


def rows():
    return [{"image": "p" * (20 - len(text)), "text": text, "label": i % 3} for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("data", [rows, lambda: Dataset.from_list(rows())], ids=["list", "Dataset"])
@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_the_texts_length_counts(tmp_path, data, strategy):
    trainer = make(tmp_path, train_dataset=data(), **{**GROUPED, "train_sampling_strategy": strategy})
    sampler = trainer._get_train_sampler()
    assert list(sampler.lengths) == [len(text) for text in TEXTS]
    if strategy == "group_by_length":
        assert list(trainer._get_eval_sampler(data()).lengths) == [len(text) for text in TEXTS]
        longest = max(range(len(TEXTS)), key=lambda index: len(TEXTS[index]))
        assert next(iter(sampler)) == longest  # upstream begins with the longest


def test_a_column_of_lengths_counts_more(tmp_path):
    data = Dataset.from_list([{**row, "length": index} for index, row in enumerate(rows())])
    trainer = make(tmp_path, train_dataset=data, **GROUPED)
    assert list(trainer._get_train_sampler().lengths) == list(range(6))


def test_where_there_is_no_text_the_seconds_of_audio_count(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    values = [
        str(tmp_path / "a.wav"),
        np.zeros(4000, dtype=np.float32),
        {"array": [0.0] * 16000, "sampling_rate": 8000},
    ]
    data = [{"image": "p", "audio": value} for value in [*values, None]]
    found = with_lengths(data, tiny_processor(("image", "audio")), "length")
    assert found["length"][:] == [1000, 250, 2000, 0]


def test_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Rows of \['image'\] have no length to group by"):
        with_lengths([{"image": "cat.png"}], tiny_processor(("image",)), "length")

    class Plain:
        model_input_names = ["pixel_values"]

    with pytest.raises(ValueError, match="would sort rows by `len.row.'pixel_values'.."):
        with_lengths([{"pixel_values": "cat.png"}], Plain(), "length")
    tokenized = [{"input_ids": [1, 2]}]
    assert with_lengths(tokenized, None, "length") is tokenized
