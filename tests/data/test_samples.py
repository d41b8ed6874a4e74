import io
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score

from hf_dgl.data import samples, speech
from hf_dgl.data.samples import load_sample
from hf_dgl.data.two_digits import QUESTIONS, TWO_DIGITS, draw


@pytest.fixture(scope="module")
def image_text():
    return load_sample("image_text")


def test_splits_columns_and_classes(image_text):
    assert {split: len(part) for split, part in image_text.items()} == samples.NUM_ROWS
    for part in image_text.values():
        assert part.column_names == ["image", "text", "label"]
        assert part.features["label"].names[:3] == ["zero", "one", "two"]
        assert len(set(np.bincount(part["label"][:]))) == 1, "every class equally often"
    image = image_text["train"][0]["image"]
    assert image.size == (32, 32)


@pytest.fixture(scope="module")
def everything():
    return load_sample("image_audio_text")


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_same_seed_same_bytes_other_seed_or_split_other_bytes(modality):
    build, _ = samples._BUILDERS[modality]
    labels = np.arange(30) % 10
    first = build("validation", labels, 3)
    assert first == build("validation", labels, 3)
    assert first != build("validation", labels, 4)
    assert first != build("test", labels, 3)


def test_whole_data_set_is_deterministic(image_text):
    again = load_sample("image_text")
    assert all(image_text[split].data.table.equals(again[split].data.table) for split in again)


def test_nothing_is_written(everything):
    assert all(not files for files in everything.cache_files.values())
    assert list(Path(datasets.config.HF_DATASETS_CACHE).iterdir()) == []


def test_no_handwritten_digit_is_in_two_splits():
    labels = load_digits().target
    for seed in range(5):
        pools = samples._digit_pools(seed, labels)
        used = np.concatenate([pool for split in pools.values() for pool in split])
        assert len(used) == len(set(used)) == len(labels)
        for pools_of_split in pools.values():
            for digit, pool in enumerate(pools_of_split):
                assert (labels[pool] == digit).all()


def test_test_images_occur_once_and_noise_is_fresh(image_text):
    pools = samples._digit_pools(0, load_digits().target)
    labels = np.asarray(image_text["test"]["label"][:])
    assert len(set(samples._draw_indices(pools["test"], labels))) == len(labels)
    pictures = {np.asarray(image).tobytes() for part in image_text.values() for image in part["image"]}
    assert len(pictures) == sum(samples.NUM_ROWS.values())


def test_modalities_of_the_three_way_sample_are_those_of_the_pairs(image_text, everything):
    """A stream of random numbers per modality: leaving one out does not change the others."""
    assert everything["test"]["text"][:] == image_text["test"]["text"][:]
    assert everything["test"]["label"][:] == image_text["test"]["label"][:]
    assert isinstance(everything["test"].features["audio"], datasets.Audio)


def test_audio_is_wav_of_a_spoken_words_length(everything):
    for row in everything["validation"].select(range(30)):
        wave, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        assert rate == speech.SAMPLING_RATE
        assert 0.2 < len(wave) / rate < 1.1
        assert 0.5 < np.abs(wave).max() <= 1.0


def test_voices_differ_in_pitch():
    rng = np.random.default_rng(0)
    low, high = speech.Speaker(90, 1.0, 1.0, 0.0), speech.Speaker(220, 1.0, 1.0, 0.0)
    for speaker in (low, high):
        wave = speech.speak(2, speaker, rng)  # "two" ends in a long vowel
        vowel = wave[len(wave) // 2 : len(wave) // 2 + 1200]
        correlation = np.correlate(vowel, vowel, "full")[len(vowel) :]
        period = 20 + np.argmax(correlation[20:150])
        assert speech.SAMPLING_RATE / period == pytest.approx(speaker.pitch, rel=0.25)


def test_no_modality_suffices_and_each_adds(image_text):
    """The regime that the samples promise: image about .75, text about .6, together above .8 (logistic regression)."""
    log_probabilities, accuracies = 0.0, []
    vectorizer = CountVectorizer(ngram_range=(1, 2)).fit(image_text["train"]["text"][:])
    readers = [
        lambda part: np.stack([np.asarray(image, dtype=float)[1::4, 1::4].ravel() / 80 for image in part["image"]]),
        lambda part: vectorizer.transform(part["text"][:]).toarray(),
    ]
    labels = {split: np.asarray(image_text[split]["label"][:]) for split in ("train", "test")}
    for read in readers:
        probe = LogisticRegression(C=0.1, max_iter=200).fit(read(image_text["train"]), labels["train"])
        accuracies.append(probe.score(read(image_text["test"]), labels["test"]))
        log_probabilities = log_probabilities + probe.predict_log_proba(read(image_text["test"]))
    together = (log_probabilities.argmax(axis=1) == labels["test"]).mean()
    assert 0.6 < accuracies[0] < 0.85
    assert 0.5 < accuracies[1] < 0.75
    assert max(accuracies) + 0.03 < together < 0.95


def test_one_sentence_in_five_is_wrong(image_text):
    named = wrong = 0
    for row in image_text["train"].remove_columns("image"):
        words = [word for word in row["text"].split() if word in samples.DIGIT_NAMES]
        if len(words) == 1 and not any(word in row["text"] for word in ("than", "after", "before", "above", "below")):
            named += 1
            wrong += words[0] != samples.DIGIT_NAMES[row["label"]]
    assert named > 500
    assert 0.14 < wrong / named < 0.26


@pytest.mark.parametrize("name", TWO_DIGITS)
def test_two_digits_tell_what_they_promise(name):
    """From which of the two numbers the label can be told: read off the rule, all pairs being equally likely."""
    task = TWO_DIGITS[name]
    seen, named, labels = draw(task, 20_000, np.random.default_rng(0))
    image, text, both = (explained(key, labels) for key in (seen, named, 100 * seen + named))
    assert both == pytest.approx(1.0), "the two together tell it for sure"
    if name in ("sum_mod_3", "same_size", "match"):
        assert max(image, text) < 0.01, "synergy: neither tells anything alone"
    elif name == "irrelevant_text":
        assert image == pytest.approx(1.0) and text < 0.01
    else:
        assert max(image, text) > 0.1 and image + text < 0.9, "mixed"


def explained(key, labels):
    """Mutual information of a column and the label, over the label's entropy."""
    return mutual_info_score(key, labels) / mutual_info_score(labels, labels)


def test_two_digits_as_rows():
    data = load_sample("question")
    assert {split: len(part) for split, part in data.items()} == samples.NUM_ROWS
    assert set(data["train"]["text"]) == set(QUESTIONS) and data["test"].features["label"].names == ["no", "yes"]
    named = load_sample("sum_mod_3")["test"]["text"]
    assert all(any(word in samples.DIGIT_NAMES[:9] for word in sentence.split()) for sentence in named)
    assert load_sample("larger", seed=1)["test"]["label"][:] != load_sample("larger")["test"]["label"][:]


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="Unknown sample 'image-text'.*Did you mean 'image_text'.*audio_text"):
        load_sample("image-text")


def test_loading_is_quick():
    start = time.perf_counter()
    load_sample("image_text")
    assert time.perf_counter() - start < 3
