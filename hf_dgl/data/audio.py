"""Audio files and arrays to what feature extractors eat: mono float32 in [-1, 1] at a given rate.

Shapes: N samples, C channels.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import soundfile
import soxr
from transformers.utils import logging

from .media import UnreadableMedia, describe_media, file_of, missing_file, unreadable_file

logger = logging.get_logger(__name__)

MAX_SAMPLES = 2**29
"""Longest audio that is read, in samples per channel: 9 hours at 16 kHz, 2 GiB in memory."""

MAX_PEAK = 4.0
"""Loudest sample of audio in [-1, 1]: encoders of files overshoot by less, audio on another scale by far more."""

_MAX_CHANNELS = 32
_LOWEST_RATE = 200  # Hz; below are rates that were meant in kHz
_BLOCK = 2**20  # samples that are read at once


def load_audio(value: Any, sampling_rate: int) -> np.ndarray:
    """Decodes audio, mixes it to mono and resamples it.

    Args:
        value: path, encoded bytes, `{"path": ..., "bytes": ...}` (an undecoded `datasets.Audio`), `{"array": ...,
            "sampling_rate": ...}` (array `[N]`, or `[C, N]` or `[N, C]`: the shorter axis is the channels'), a
            torchcodec `AudioDecoder` (a decoded `datasets.Audio`), or a bare numpy array, taken to be at
            `sampling_rate` already.
        sampling_rate: of the result, in Hz.

    Returns:
        float32 `[N]`. Integers (also as floats) are scaled to [-1, 1] by their type; by their range where their type
        says nothing: up to 2^15, 2^23 or 2^31; 0 to 255, 65535 or 2^32 - 1 is unsigned.

    Raises:
        ValueError: the file is missing, not audio, cut short, longer than `MAX_SAMPLES`; no samples, or some that are
            not finite or above `MAX_PEAK`; an array whose rate or channels cannot be told. Names the file.

    Example:
        >>> load_audio({"array": np.zeros((2, 8000)), "sampling_rate": 8000}, sampling_rate=16000).shape
        (16000,)
    """
    value = _only_one(value)
    what = describe_media(value)
    try:
        array_CN, rate = _read(value, sampling_rate)
    except FileNotFoundError:
        raise missing_file("audio", what) from None
    except UnreadableMedia:
        raise
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError, MemoryError) as error:
        raise unreadable_file("audio", what, error) from error
    if array_CN.size == 0:
        raise UnreadableMedia(f"The audio in {what} holds no samples.", "Remove the row or set the value to null.")
    mono = np.atleast_2d(_scaled(array_CN, what)).mean(axis=0, dtype=np.float32)
    if rate != sampling_rate:
        mono = soxr.resample(mono, rate, sampling_rate)
    return np.ascontiguousarray(mono, dtype=np.float32)


def audio_seconds(value: Any, sampling_rate: int) -> float:
    """How long audio is; of a file only the header is read.

    Args:
        value, sampling_rate: As in [`load_audio`].

    Example:
        >>> audio_seconds(np.zeros(8000, dtype=np.float32), sampling_rate=16000)
        0.5
    """
    value = _only_one(value)
    is_file = not hasattr(value, "get_all_samples") and not isinstance(value, np.ndarray)
    if is_file and not (isinstance(value, Mapping) and value.get("array") is not None):
        try:
            return float(soundfile.info(file_of(value)).duration)
        except (soundfile.LibsndfileError, OSError, TypeError, ValueError):
            pass  # said better below
    return len(load_audio(value, sampling_rate)) / sampling_rate


def _only_one(value: Any) -> Any:
    """A list of one file is that file."""
    is_one = isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, bytes, Mapping))
    return value[0] if is_one else value


def _read(value: Any, sampling_rate: int) -> tuple[np.ndarray, float]:
    """`[N]` or `[C, N]`, and the rate."""
    if hasattr(value, "get_all_samples"):
        samples = value.get_all_samples()
        return samples.data.numpy(), samples.sample_rate
    if isinstance(value, np.ndarray):
        return _channels_first(value), sampling_rate
    if isinstance(value, Mapping) and value.get("array") is not None:
        rate = value.get("sampling_rate")
        if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or not _LOWEST_RATE <= rate < 1e7:
            raise ValueError(
                f"the array comes with sampling_rate={rate!r}, expected its rate in Hz beside it: "
                '{"array": [...], "sampling_rate": 16000}'
            )
        return _channels_first(np.asarray(value["array"])), float(rate)
    if isinstance(value, (list, tuple)):
        raise ValueError(
            "it is a list, which does not say its rate. Give the rate in Hz beside it: "
            '{"array": [...], "sampling_rate": 16000}, or store files'
        )
    return _decode(file_of(value))


def _channels_first(array: np.ndarray) -> np.ndarray:
    """`[N]` or `[C, N]`. soundfile reads `[N, C]`, torchaudio `[C, N]`; there are fewer channels than samples."""
    if array.dtype.kind not in "iufb":
        raise ValueError(f"expected an array of numbers, got one of {array.dtype}")
    if array.ndim == 1 or array.size == 0:
        return array
    if array.ndim != 2 or min(array.shape) > _MAX_CHANNELS or 1 < array.shape[0] == array.shape[1]:
        raise ValueError(
            f"expected samples [N], or channels and samples [C, N] or [N, C] with at most {_MAX_CHANNELS} channels, "
            f"got an array of shape {list(array.shape)}"
        )
    return array if array.shape[0] < array.shape[1] else array.T


def _scaled(array: np.ndarray, what: str) -> np.ndarray:
    """Floats in [-1, 1].

    Raises:
        UnreadableMedia: not finite, or on no scale that audio has.
    """
    if array.dtype.kind != "f":
        return _scaled_integers(array, what)
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise UnreadableMedia(
            f"The audio in {what} has {count:,} of {array.size:,} samples that are NaN or infinite.",
            "Replace the file, remove the row, or set the value to null.",
        )
    peak = float(np.abs(array).max())
    if peak <= MAX_PEAK:
        return array
    if not (array == np.round(array)).all():
        raise UnreadableMedia(
            f"The audio in {what} has samples up to {peak:,.5g}, expected fractions between -1 and 1, or whole "
            "numbers.",
            "Divide by the full scale, e.g. by 32768 for 16 bits.",
        )
    return _scaled_integers(array.astype(np.float64), what)


def _scaled_integers(array: np.ndarray, what: str) -> np.ndarray:
    kind = array.dtype
    if kind == np.bool_:
        raise UnreadableMedia(f"The audio in {what} is true or false in place of numbers.")
    if kind in (np.int8, np.int16):
        return array / -float(np.iinfo(kind).min)
    low, high = float(array.min()), float(array.max())
    for bits, unsigned in ((7, np.uint8), (15, np.uint16), (31, np.uint32)):
        if kind == unsigned or low >= 0 and 2**bits <= high < 2 ** (bits + 1):
            return array / 2.0**bits - 1.0
    if 0 < max(-low, high) <= 2**7:
        _tell_of_small_numbers()
    for bits in (15, 23, 31):
        if max(-low, high) <= 2.0**bits:
            return array / 2.0**bits
    raise UnreadableMedia(
        f"The audio in {what} has samples from {low:,.5g} to {high:,.5g}: more than 32 bits.",
        "Divide by the full scale, so that they lie between -1 and 1.",
    )


@functools.cache
def _tell_of_small_numbers() -> None:
    """Lists, and columns of `datasets`, do not keep the type of their numbers. Once in a process."""
    logger.warning(
        "Audio in whole numbers of at most 128 is read as very quiet 16-bit samples. If they are 8-bit samples, "
        "divide them by 128, or give numpy arrays of int8."
    )


def _decode(file: str | io.BytesIO) -> tuple[np.ndarray, int]:
    """float32 `[C, N]` and the rate; refuses files that end before their header says.

    Read block by block: memory follows what is there, not what the header claims.
    """
    with soundfile.SoundFile(file) as sound:
        blocks, count = [], 0
        while len(block_NC := sound.read(_BLOCK, dtype="float32", always_2d=True)):
            blocks.append(block_NC)
            count += len(block_NC)
            if count > MAX_SAMPLES:
                raise OSError(f"it is longer than {MAX_SAMPLES:,} samples ({MAX_SAMPLES / sound.samplerate:,.0f} s)")
        if _is_cut(sound.extra_info) or 0 < count < sound.frames < 2**62:  # the largest number of all means "unknown"
            raise OSError(f"the file ends too early, after {count / sound.samplerate:.2f} seconds")
        array_NC = np.concatenate(blocks) if blocks else np.zeros((0, sound.channels), dtype=np.float32)
        return array_NC.T, sound.samplerate


def _is_cut(log: str) -> bool:
    """Whether libsndfile, which reads what there is of a truncated wav, w64, rf64, aiff, au or voc, noted it.

    Sizes just below 2^31 and 2^32 are those of streams, whose writer could not go back to fill them in.
    """
    length = re.search(r"^Length : (\d+)", log, flags=re.MULTILINE)
    names = "data|Data size|SSND"
    claimed = [
        int(size) for size in re.findall(rf"^\s*(?:{names})\s*: (\d+)", log, flags=re.MULTILINE | re.IGNORECASE)
    ]
    if "Seems to be a truncated file" in log:  # voc
        return True
    return length is not None and any(
        int(length[1]) < size < 2**62 and not 0x7FFF0000 <= size < 2**32 for size in claimed
    )
