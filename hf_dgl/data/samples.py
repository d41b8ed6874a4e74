"""Offline data for the quickstarts and the tests: ten digits seen, heard and written about, each of them unreliably.

| sample | columns | what is real |
|---|---|---|
| `image_text` | image, text, label | the digits under the noise are real handwriting |
| `audio_text` | audio, text, label | nothing: synthetic voices (`hf_dgl/data/speech.py`) and templated sentences |
| `image_audio_text` | image, audio, text, label | the handwriting |

The modalities of a row are paired by class only and their noise is independent, so each says something the others do
not. No modality suffices by itself and none is useless: that is where joint training visibly starves encoders.

What is in a split is in no other split: every handwritten digit, voice and background is used by one of them. Test
images occur once; the train split shows each of its about 860 images about twice, with fresh noise. Sentences come
from templates, so the same sentence can occur in several rows and splits.

There are also tasks about two different digits, one seen and one named: `two_digits.py`.
"""

from __future__ import annotations

import difflib
import io
import zlib
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import soundfile
from PIL import Image
from sklearn.datasets import load_digits

from .speech import SAMPLING_RATE, add_background, babble, draw_speaker, speak
from .two_digits import QUESTIONS, TWO_DIGITS, TwoDigits, draw

DIGIT_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SAMPLES = {
    "image_text": ("image", "text"),
    "audio_text": ("audio", "text"),
    "image_audio_text": ("image", "audio", "text"),
    **dict.fromkeys(TWO_DIGITS, ("image", "text")),
}
NUM_ROWS = {"train": 1600, "validation": 300, "test": 640}

_IMAGE_SIZE = 32  # pixels; the handwriting has 8 x 8
_IMAGE_NOISE = 0.42  # standard deviation, the ink being 1: pixels alone give a small encoder about .72
_LITTLE_IMAGE_NOISE = 0.15  # where the digit itself shall not be the difficulty
_NUM_SPEAKERS = {"train": 40, "validation": 12, "test": 16}
_SNR_DB = (-5.0, 1.0)  # word over babble: sound alone gives a small encoder about .80
_WRONG_SENTENCES = 0.2  # share of sentences that describe another digit


def _generator(seed: int, *what: str) -> np.random.Generator:
    """A random stream of its own for every (seed, purpose): adding a modality does not change the others."""
    return np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in what)])


# Images: real handwriting, made noisy


def _digit_pools(seed: int, pixels_per_digit: np.ndarray) -> dict[str, list[np.ndarray]]:
    """For every split and digit the indices of the handwritten digits that belong to it; no index occurs twice."""
    rng = _generator(seed, "image", "pools")
    pools: dict[str, list[np.ndarray]] = {split: [] for split in NUM_ROWS}
    num_validation, num_test = NUM_ROWS["validation"] // 10, NUM_ROWS["test"] // 10
    for digit in range(10):
        shuffled = rng.permutation(np.flatnonzero(pixels_per_digit == digit))
        validation, test, train = np.split(shuffled, [num_validation, num_validation + num_test])
        pools["train"].append(train)
        pools["validation"].append(validation)
        pools["test"].append(test)
    return pools


def _draw_indices(pools: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """One handwritten digit per label, each used equally often."""
    indices = np.empty_like(labels)
    for digit, pool in enumerate(pools):
        rows = np.flatnonzero(labels == digit)
        indices[rows] = np.resize(pool, len(rows))
    return indices


def _images(split: str, labels: np.ndarray, seed: int, noise: float = _IMAGE_NOISE) -> list[dict[str, Any]]:
    """Noisy handwriting, from scikit-learn's `load_digits` (UCI Optical Recognition of Handwritten Digits)."""
    digits = load_digits()
    rng = _generator(seed, "image", split)
    indices = _draw_indices(_digit_pools(seed, digits.target)[split], labels)
    ink = digits.images[indices] / 16 - 0.5
    noisy = ink + rng.normal(0, noise, size=ink.shape)
    grey = np.clip(128 + 80 * noisy, 0, 255).astype(np.uint8)  # 80: 3 standard deviations of noise fit in 8 bit
    encoded = []
    for pixels in grey:
        buffer = io.BytesIO()
        image = Image.fromarray(pixels).resize((_IMAGE_SIZE, _IMAGE_SIZE), Image.Resampling.BILINEAR)
        image.save(buffer, format="PNG", compress_level=1)
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    return encoded


# Audio: synthetic voices in a noisy room


def _audios(split: str, labels: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Synthetic spoken digits over synthetic babble, as 16-bit wav; voices and babble belong to one split."""
    rng = _generator(seed, "audio", split)
    speakers = [draw_speaker(rng) for _ in range(_NUM_SPEAKERS[split])]
    crowd = babble(speakers, rng, seconds=30, num_voices=6)
    encoded = []
    for digit in labels:
        word = speak(int(digit), speakers[rng.integers(len(speakers))], rng)
        heard = add_background(word, crowd, rng.uniform(*_SNR_DB), rng)
        buffer = io.BytesIO()
        soundfile.write(buffer, heard, SAMPLING_RATE, format="WAV", subtype="PCM_16")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    return encoded


# Text: sentences from templates, some vague, some wrong

_OPENINGS = [
    "",
    "",
    "i think it is",
    "this looks like",
    "it must be",
    "they wrote",
    "hard to read , maybe",
    "probably",
]
_NAMED = ["{name}", "the digit {name}", "a {name}", "the number {name}"]
_RELATIVE = [
    (1, "the number after {other}"),
    (1, "one more than {other}"),
    (-1, "the number before {other}"),
    (-1, "one less than {other}"),
    (2, "two more than {other}"),
    (-2, "two less than {other}"),
]
_STROKES = {0: "loops", 6: "loops", 8: "loops", 9: "loops", 1: "straight lines", 4: "straight lines"}
_STROKES |= {7: "straight lines", 2: "open curves", 3: "open curves", 5: "open curves"}


def _describe(digit: int, rng: np.random.Generator) -> str:
    """One sentence that is true of `digit`: names it (50 %), places it next to another (20 %), or is vague (30 %)."""
    opening = _OPENINGS[rng.integers(len(_OPENINGS))]
    kind = rng.uniform()
    if kind < 0.5:
        phrase = _NAMED[rng.integers(len(_NAMED))].format(name=DIGIT_NAMES[digit])
    elif kind < 0.7:
        possible = [(step, form) for step, form in _RELATIVE if 0 <= digit - step <= 9]
        step, form = possible[rng.integers(len(possible))]
        phrase = form.format(other=DIGIT_NAMES[digit - step])
    else:
        parity = "an even digit" if digit % 2 == 0 else "an odd digit"
        size = "below five" if digit < 5 else "above four"
        strokes = f"written with {_STROKES[digit]}"
        phrase = [f"{parity} {size}", f"{parity} {strokes}", f"a digit {size} , {strokes}"][rng.integers(3)]
    return f"{opening} {phrase}".strip()


def _texts(split: str, labels: np.ndarray, seed: int) -> list[str]:
    """Templated sentences; one in five describes another digit than the label's."""
    rng = _generator(seed, "text", split)
    sentences = []
    for digit in labels:
        wrong = rng.uniform() < _WRONG_SENTENCES
        described = (int(digit) + int(rng.integers(1, 10))) % 10 if wrong else int(digit)
        sentences.append(_describe(described, rng))
    return sentences


_AUDIO = datasets.Audio(sampling_rate=SAMPLING_RATE, decode=False)
_BUILDERS: dict[str, tuple[Callable[[str, np.ndarray, int], list[Any]], Any]] = {
    "image": (_images, datasets.Image()),
    # bytes first, cast to _AUDIO at the end: datasets.Audio asks for torchcodec to store even what is encoded already
    "audio": (_audios, {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}),
    "text": (_texts, datasets.Value("string")),
}


def _two_digits(task: TwoDigits, split: str, seed: int) -> dict[str, Any]:
    """The columns of a task of `two_digits.py`."""
    rng = _generator(seed, "two digits", split)
    seen, named, labels = draw(task, NUM_ROWS[split], rng)
    if task.asks:
        sentences = [list(QUESTIONS)[question] for question in named]
    else:
        sentences = [_NAMED[rng.integers(len(_NAMED))].format(name=DIGIT_NAMES[digit]) for digit in named]
    return {"image": _images(split, seen, seed, _LITTLE_IMAGE_NOISE), "text": sentences, "label": labels}


def _one_digit(modalities: tuple[str, ...], split: str, seed: int) -> dict[str, Any]:
    """The columns of the samples whose modalities are about the same digit."""
    labels = _generator(seed, "label", split).permutation(np.arange(NUM_ROWS[split]) % 10)
    return {**{modality: _BUILDERS[modality][0](split, labels, seed) for modality in modalities}, "label": labels}


def load_sample(name: str, seed: int = 0) -> datasets.DatasetDict:
    """Builds an offline data set in memory; the same arguments give the same bytes. Writes no file.

    Args:
        name: `image_text`, `audio_text`, `image_audio_text`, or one of `two_digits.py`.
        seed: another seed means other noise, voices and sentences, and the handwriting divided otherwise.

    Returns:
        Splits `train` (1600 rows), `validation` (300), `test` (640), with the columns
        - `image`: `datasets.Image`, 32 x 32 grey,
        - `audio`: `datasets.Audio(sampling_rate=8000, decode=False)`: wav bytes, 0.3 to 0.9 s,
        - `text`: lower-case string,
        - `label`: `datasets.ClassLabel`; `zero` to `nine`, equally often, where there is one digit.

    Raises:
        ValueError: unknown name.

    Example:
        >>> data = load_sample("image_text")
        >>> data["train"][0]["image"].size
        (32, 32)
    """
    if name not in SAMPLES:
        near = difflib.get_close_matches(name, SAMPLES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown sample {name!r}.{hint} Available samples: {', '.join(SAMPLES)}.")
    features = datasets.Features({modality: _BUILDERS[modality][1] for modality in SAMPLES[name]})
    task = TWO_DIGITS.get(name)
    features["label"] = datasets.ClassLabel(names=DIGIT_NAMES if task is None else task.classes)
    splits = {}
    for split in NUM_ROWS:
        columns = _one_digit(SAMPLES[name], split, seed) if task is None else _two_digits(task, split, seed)
        dataset = datasets.Dataset.from_dict(columns, features=features, split=datasets.NamedSplit(split))
        if "audio" in columns:
            dataset = dataset.cast_column("audio", _AUDIO)
        splits[split] = dataset
    return datasets.DatasetDict(splits)
