import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import ASTFeatureExtractor, ClapFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from hf_dgl.data.collator import CrossModalCollator
from hf_dgl.data.limits import (
    audio_limit,
    audio_windows,
    count_long_texts,
    crop_audio,
    remember_crops,
    report_long_texts,
    text_limit,
)
from hf_dgl.data.preparation import prepare_splits
from hf_dgl.data.sources import load_data
from hf_dgl.models import CrossModalProcessor
from hf_dgl.models.processing_cross_modal import train_tokenizer


@pytest.mark.parametrize(
    ("extractor", "seconds"),
    [
        (ASTFeatureExtractor(), 10.255),
        (WhisperFeatureExtractor(), 30.0),
        (WhisperFeatureExtractor(chunk_length=5), 5.0),
        (ClapFeatureExtractor(truncation="rand_trunc"), 10.0),
        (ClapFeatureExtractor(truncation="fusion"), None),
        (Wav2Vec2FeatureExtractor(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_audio_limits(extractor, seconds):
    assert audio_limit(extractor) == (None if seconds is None else pytest.approx(seconds))


def test_ast_limit_is_exact():
    """At the limit nothing is cut off; one frame more is."""
    extractor = ASTFeatureExtractor(max_length=20, num_mel_bins=16, do_normalize=False)
    num_samples = round(audio_limit(extractor) * 16_000)
    noise = np.random.default_rng(0).normal(size=num_samples + 160).astype(np.float32)
    last = extractor(noise[:num_samples], sampling_rate=16_000)["input_values"][0][-1]
    shorter = extractor(noise[: num_samples - 160], sampling_rate=16_000)["input_values"][0][-1]
    assert np.abs(last).sum() > 0 and np.abs(shorter).sum() == 0
    longer = extractor(noise, sampling_rate=16_000)["input_values"][0]
    assert np.allclose(longer[-1], last, atol=1e-3)


def test_crops():
    samples = np.arange(100)
    assert crop_audio(samples, 10, at_random=False).tolist() == list(range(45, 55))
    assert crop_audio(samples, 200, at_random=True) is samples
    starts = {int(crop_audio(samples, 10, at_random=True)[0]) for _ in range(2000)}
    assert starts == set(range(91)), "every place, the last one included"


def test_windows_cover_everything():
    samples = np.arange(100)
    assert audio_windows(samples, 100)[0] is samples
    for size in (7, 30, 50, 99):
        windows = audio_windows(samples, size)
        assert len(windows) == -(-100 // size) and {len(window) for window in windows} == {size}
        assert set(np.concatenate(windows)) == set(range(100))


def test_what_training_crops_to_is_saved_with_the_processor(processor, tmp_path):
    """The pipeline is to hear what training heard: a minute of audio for a model of 2-second crops is another task."""
    assert audio_limit(processor.processors["audio"]) is None
    try:
        remember_crops(processor, 2.0)
        processor.save_pretrained(tmp_path)
        loaded = type(processor).from_pretrained(tmp_path)
        assert audio_limit(loaded.processors["audio"]) == 2.0
        collated = CrossModalCollator(loaded)([{"audio": np.zeros(5 * 16000, dtype=np.float32)}])
        assert collated["audio"]["input_values"].shape[1] == 2 * 16000
    finally:
        del processor.processors["audio"].max_audio_seconds


def test_collator_crops_at_random_in_training_and_in_the_middle_else(processor):
    collator = CrossModalCollator(processor, max_audio_seconds=0.1)
    ramp = np.linspace(-1, 1, 16_000, dtype=np.float32)
    evaluated = [collator([{"audio": ramp}])["audio"]["input_values"] for _ in range(3)]
    assert evaluated[0].shape == (1, 1600)
    assert all(torch.equal(evaluated[0], other) for other in evaluated)
    middle = CrossModalCollator(processor)([{"audio": ramp[7200:8800]}])["audio"]["input_values"]
    assert torch.equal(evaluated[0], middle)
    torch.manual_seed(0)
    raw = CrossModalCollator(CrossModalProcessor({"audio": Wav2Vec2FeatureExtractor(do_normalize=False)}), None, 0.1)
    trained = [raw([{"audio": ramp, "random_crop": True}])["audio"]["input_values"][0, 0].item() for _ in range(5)]
    assert len(set(trained)) == 5
    torch.manual_seed(0)
    assert raw([{"audio": ramp, "random_crop": True}])["audio"]["input_values"][0, 0].item() == trained[0]


def test_training_rows_only_are_marked_and_only_where_audio_is_limited(processor):
    data = DatasetDict({name: Dataset.from_dict({"text": ["a"], "label": [0]}) for name in ("train", "test")})
    marked = prepare_splits(data, processor, max_audio_seconds=5.0)
    assert marked["train"]["random_crop"][:] == [True]
    assert "random_crop" not in marked["test"].column_names
    assert "random_crop" not in prepare_splits(data, processor)["train"].column_names  # wav2vec2 has no limit
    assert "random_crop" not in prepare_splits(data, processor, max_audio_seconds=5.0, is_training=False)["train"][0]
    whisper = CrossModalProcessor({"audio": WhisperFeatureExtractor()})
    assert "random_crop" in prepare_splits(data, whisper)["train"].column_names


@pytest.fixture
def short_processor():
    return CrossModalProcessor({"text": train_tokenizer(["an even digit", "an odd digit"], max_length=8)})


def test_long_texts_are_counted_exactly(short_processor):
    tokenizer = short_processor.processors["text"]
    rng = np.random.default_rng(0)
    words = ["an", "even", "digit", "ü", "漢字", "x" * 30, "ﷺ"]
    texts = [" ".join(rng.choice(words, size=rng.integers(1, 10))) for _ in range(300)]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    counts = count_long_texts([*texts, None, 3], tokenizer)
    assert (counts.num_texts, counts.num_cut) == (300, sum(length > 8 for length in lengths))
    assert counts.longest == max(lengths)
    tokenizer.model_max_length = int(1e30)
    assert text_limit(tokenizer) is None and count_long_texts(texts, tokenizer) is None


def test_long_texts_are_reported_once_with_counts(short_processor, caplog):
    caplog.set_level(logging.WARNING)
    logging.getLogger("hf_dgl").propagate = True
    long = "an even digit " * 5
    data = DatasetDict(
        train=Dataset.from_dict({"text": [long] * 3 + ["an", None] * 10, "label": [0] * 23}),
        test=Dataset.from_dict({"text": [long * 2], "label": [0]}),
    )
    counts = report_long_texts(data, short_processor)["text"]
    assert (counts.num_texts, counts.num_cut, counts.longest) == (14, 4, 32)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "text: 4 of 14 texts have more than the 8 tokens" in warnings[0] and "has 32 tokens" in warnings[0]
    caplog.clear()
    report_long_texts({"train": data["train"].select(range(3, 23))}, short_processor)
    assert not caplog.records


def test_long_texts_of_a_stream(short_processor, caplog):
    rows = Dataset.from_dict({"text": ["an even digit " * 5] * 1500, "label": ["a", "b"] * 750})
    data = load_data(rows, streaming=True, test_split=None)
    assert report_long_texts({"train": data["train"]}, short_processor)["text"].num_texts == 1000
