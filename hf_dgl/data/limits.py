"""How much an encoder can take: tokens of a text, seconds of audio; and how many texts are longer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

logger = logging.get_logger(__name__)

UNLIMITED = int(1e9)  # upstream writes 1e30 where a tokenizer states no maximal length
MAX_AUDIO_SECONDS = "max_audio_seconds"
"""Entry of a saved feature extractor: a model that was trained on crops is to be asked about crops."""

MIN_AUDIO_SAMPLES = "min_audio_samples"
"""Likewise: what the encoder needs for one token; see `hf_dgl.models.parts.remember_shortest_audio`."""

IMAGE_BACKGROUND = "image_background"
"""Entry of a saved image processor: the colour behind transparent pixels that the model was trained with."""

_STREAM_ROWS = 1000  # of a stream so many rows are looked at


def text_limit(processor: Any) -> int | None:
    """Longest text in tokens, special ones included, that a tokenizer leaves whole; None: no limit, or no tokenizer.

    Example:
        >>> text_limit(processor.processors["text"])
        512
    """
    if not isinstance(processor, PreTrainedTokenizerBase) or processor.model_max_length >= UNLIMITED:
        return None
    return int(processor.model_max_length)


def audio_limit(processor: Any) -> float | None:
    """Longest audio in seconds of which a feature extractor keeps everything; None: no limit, or no audio.

    What training cropped audio to (`max_audio_seconds`) is kept in the feature extractor, and wins.

    Example:
        >>> from transformers import WhisperFeatureExtractor
        >>> audio_limit(WhisperFeatureExtractor())
        30.0
    """
    cropped_to = getattr(processor, MAX_AUDIO_SECONDS, None)
    if cropped_to is not None:
        return float(cropped_to)
    name = type(processor).__name__
    if name == "ASTFeatureExtractor":  # frames of 25 ms, every 10 ms (kaldi's)
        return 0.025 + 0.01 * (processor.max_length - 1)
    if name.startswith("Whisper"):
        return float(processor.n_samples / processor.sampling_rate)
    if name.startswith("Clap") and processor.truncation == "rand_trunc":  # "fusion" sees long audio whole
        return float(processor.max_length_s)
    return None


def shortest_audio(processor: Any) -> int:
    """Fewest samples that an encoder can read, as its feature extractor remembers; 1 where it does not.

    Example:
        >>> from transformers import WhisperFeatureExtractor
        >>> shortest_audio(WhisperFeatureExtractor())
        1
    """
    return int(getattr(processor, MIN_AUDIO_SAMPLES, None) or 1)


def remember_background(processor: Any, colour: str | None) -> None:
    """Notes in a processor's image processors what is behind transparent pixels; it is saved with them."""
    for name in processor.modalities if colour is not None else ():
        if isinstance(processor.processors[name], BaseImageProcessor):
            setattr(processor.processors[name], IMAGE_BACKGROUND, colour)


def remember_crops(processor: Any, max_audio_seconds: float | None) -> None:
    """Notes in a processor's feature extractors what training crops audio to; they are saved with it."""
    for name in processor.modalities if max_audio_seconds is not None else ():
        if processor.sampling_rate(name) is not None:
            setattr(processor.processors[name], MAX_AUDIO_SECONDS, max_audio_seconds)


def crop_audio(samples_N: np.ndarray, max_samples: int, at_random: bool) -> np.ndarray:
    """At most `max_samples` of a waveform: from a random place (torch's generator), or from the middle.

    Example:
        >>> crop_audio(np.arange(6), 2, at_random=False)
        array([2, 3])
    """
    spare = len(samples_N) - max_samples
    if spare <= 0:
        return samples_N
    start = int(torch.randint(spare + 1, ())) if at_random else spare // 2
    return samples_N[start : start + max_samples]


def audio_windows(samples_N: np.ndarray, max_samples: int) -> list[np.ndarray]:
    """All of a waveform in as few windows of `max_samples` as cover it, evenly spaced.

    Example:
        >>> audio_windows(np.arange(5), 2)
        [array([0, 1]), array([1, 2]), array([3, 4])]
    """
    count = -(-len(samples_N) // max_samples)
    if count <= 1:
        return [samples_N]
    starts = np.linspace(0, len(samples_N) - max_samples, count).astype(int)
    return [samples_N[start : start + max_samples] for start in starts]


@dataclass(frozen=True)
class LongTexts:
    """How many of `num_texts` have more tokens than `limit`, and how many the `longest` has."""

    num_texts: int
    num_cut: int
    longest: int
    limit: int


def count_long_texts(texts: Iterable[Any], tokenizer: PreTrainedTokenizerBase) -> LongTexts | None:
    """Counts the texts that the encoder will not see whole.

    Args:
        texts: Strings; None and others are passed over.
        tokenizer: The encoder's.

    Returns:
        The counts; None if the tokenizer has no limit.

    Example:
        >>> count_long_texts(["short", "long " * 600], processor.processors["text"])
        LongTexts(num_texts=2, num_cut=1, longest=602, limit=512)
    """
    limit = text_limit(tokenizer)
    if limit is None:
        return None
    num_texts = num_cut = longest = 0
    for text in texts:
        if not isinstance(text, str):
            continue
        num_texts += 1
        # a token is a byte at least, so that most texts need not be tokenized to know that they fit
        if len(text.encode("utf-8", "replace")) + tokenizer.num_special_tokens_to_add() < limit:
            continue
        num_tokens = count_tokens(text, tokenizer)
        if num_tokens > limit:
            num_cut, longest = num_cut + 1, max(longest, num_tokens)
    return LongTexts(num_texts, num_cut, longest, limit)


def count_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of a whole text, special ones included."""
    return len(tokenizer(text, truncation=False, verbose=False)["input_ids"])


def report_long_texts(splits: Mapping[str, Any], processor: Any) -> dict[str, LongTexts]:
    """Warns once, with counts over all splits, if texts are longer than an encoder can take.

    Args:
        splits: Split -> data set; of a stream the first 1000 rows are looked at.
        processor: A `CrossModalProcessor`.

    Returns:
        Modality -> counts, for those that have a limit.
    """
    found = {}
    for name in processor.modalities:
        if text_limit(processor.processors[name]) is None:
            continue
        texts = [text for split in splits.values() for text in _column(split, name)]
        counts = count_long_texts(texts, processor.processors[name])
        assert counts is not None
        found[name] = counts
        if counts.num_cut:
            is_part = any(isinstance(split, datasets.IterableDataset) for split in splits.values())
            seen = f"the first {counts.num_texts:,}" if is_part else f"{counts.num_texts:,}"
            logger.warning(
                f"{name}: {counts.num_cut:,} of {seen} texts have more than the {counts.limit} tokens that the "
                f"encoder can take; their ends are cut off. The longest has {counts.longest:,} tokens."
            )
    return found


def _column(split: Any, name: str) -> Iterable[Any]:
    if isinstance(split, datasets.IterableDataset):
        return [row.get(name) for row in islice(split, _STREAM_ROWS)]
    return split.select_columns(name)[name]
