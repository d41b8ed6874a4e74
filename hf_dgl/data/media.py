"""Image and audio files to what processors eat: PIL images in RGB, mono float32 arrays at a given rate.

Decoding is ours (Pillow, soundfile) and not `datasets`', whose Audio feature needs torchcodec and FFmpeg, and whose
errors do not say which file of which row is broken.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import soundfile
import soxr
from PIL import Image, ImageOps, UnidentifiedImageError

# what Pillow raises on damaged files: SyntaxError for PNG, EOFError for GIF, struct.error for TIFF, ...
_BROKEN_IMAGE: tuple[type[Exception], ...] = (UnidentifiedImageError, OSError, SyntaxError, TypeError, EOFError)
_BROKEN_IMAGE += (struct.error, zlib.error, IndexError, KeyError, OverflowError, ValueError)
_BROKEN_IMAGE += (Image.DecompressionBombError,)


class UnreadableMedia(ValueError):
    """A file that cannot be used; `reason` is its message without the advice, which is about rows of a data set."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(f"{reason} {advice}".strip())
        self.reason = reason


def describe_media(value: Any) -> str:
    """What to call a media value in a message: its file name if it has one.

    Example:
        >>> describe_media({"path": "cat.png", "bytes": None})
        "file 'cat.png'"
    """
    path = value.get("path") if isinstance(value, Mapping) else value
    if isinstance(path, (str, os.PathLike)):
        return f"file {os.fspath(path)!r}"
    if isinstance(value, Mapping) and value.get("bytes") is not None or isinstance(value, bytes):
        return "embedded file (stored in the data set, without a name)"
    return f"value of type {type(value).__name__}"


def load_image(value: Any) -> Image.Image:
    """Decodes an image.

    Args:
        value: PIL image, path, encoded bytes, `{"path": ..., "bytes": ...}` (an undecoded `datasets.Image`), or a
            uint8 array `[H, W]` or `[H, W, 3]`.

    Returns:
        PIL image in RGB, turned upright as its EXIF tag says.

    Raises:
        ValueError: the file is missing, empty or not an image, or has 16-bit or float pixels. Names the file.

    Example:
        >>> load_image(np.zeros((4, 6), dtype=np.uint8)).size
        (6, 4)
    """
    what = describe_media(value)
    try:
        if isinstance(value, Image.Image):
            image = value
        elif isinstance(value, np.ndarray):
            image = Image.fromarray(value)
        else:
            image = Image.open(_file_of(value))
        image = ImageOps.exif_transpose(image)
        image.load()  # decoding comes late in Pillow
    except FileNotFoundError:
        raise _missing("image", what) from None
    except _BROKEN_IMAGE as error:
        raise _unreadable("image", what, error) from error
    if image.mode.startswith(("I", "F")):  # `convert` would clip these to white without a word
        raise UnreadableMedia(
            f"The image in {what} has pixels of mode {image.mode!r}, expected 8 bit per channel. Scale it first, e.g. "
            "(pixels / pixels.max() * 255).astype('uint8').",
        )
    return image.convert("RGB")


def load_audio(value: Any, sampling_rate: int) -> np.ndarray:
    """Decodes audio, mixes it to mono and resamples it.

    Args:
        value: path, encoded bytes, `{"path": ..., "bytes": ...}` (an undecoded `datasets.Audio`), `{"array": ...,
            "sampling_rate": ...}` (array `[num_samples]` or `[num_channels, num_samples]`), a torchcodec
            `AudioDecoder` (a decoded `datasets.Audio`), or a bare 1-D array, taken to be at `sampling_rate` already.
        sampling_rate: of the result, in Hz.

    Returns:
        float32 `[num_samples]`; integer input is scaled to [-1, 1].

    Raises:
        ValueError: the file is missing, not audio, cut short, or holds no samples. Names the file.

    Example:
        >>> load_audio({"array": np.zeros((2, 8000)), "sampling_rate": 8000}, sampling_rate=16000).shape
        (16000,)
    """
    what = describe_media(value)
    try:
        if hasattr(value, "get_all_samples"):
            samples = value.get_all_samples()
            array_CN, rate = samples.data.numpy(), samples.sample_rate
        elif isinstance(value, Mapping) and value.get("array") is not None:
            array_CN, rate = np.asarray(value["array"]), value["sampling_rate"]
        elif isinstance(value, np.ndarray):
            array_CN, rate = value, sampling_rate
        else:
            array_CN, rate = _decode_audio(_file_of(value))
    except FileNotFoundError:
        raise _missing("audio", what) from None
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError) as error:
        raise _unreadable("audio", what, error) from error
    if np.issubdtype(array_CN.dtype, np.integer):
        array_CN = array_CN / np.iinfo(array_CN.dtype).max
    mono = np.atleast_2d(array_CN).mean(axis=0, dtype=np.float32)
    if mono.size == 0:
        raise UnreadableMedia(f"The audio in {what} holds no samples.", "Remove the row or set the value to null.")
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
    is_file = not hasattr(value, "get_all_samples") and not isinstance(value, np.ndarray)
    if is_file and not (isinstance(value, Mapping) and value.get("array") is not None):
        try:
            return float(soundfile.info(_file_of(value)).duration)
        except (soundfile.LibsndfileError, OSError, TypeError, ValueError):
            pass  # said better below
    return len(load_audio(value, sampling_rate)) / sampling_rate


def _decode_audio(file: str | io.BytesIO) -> tuple[np.ndarray, int]:
    """float32 `[num_channels, num_samples]` and their rate; refuses files that end before their header says."""
    with soundfile.SoundFile(file) as sound:
        array_NC = sound.read(dtype="float32", always_2d=True)
        # libsndfile reads what there is of a truncated wav, and notes the other size; huge sizes are streams' headers
        sizes = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, flags=re.MULTILINE)
        is_cut_wav = sizes is not None and int(sizes[2]) < int(sizes[1]) < 0x7FFF0000
        if is_cut_wav or 0 < len(array_NC) < sound.frames:
            raise OSError(f"the file ends too early, after {len(array_NC) / sound.samplerate:.2f} seconds")
        return array_NC.T, sound.samplerate


def _file_of(value: Any) -> str | io.BytesIO:
    """Path or open buffer of an encoded file."""
    if isinstance(value, Mapping):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return io.BytesIO(value)
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"expected a path, bytes, or a dictionary with 'path' or 'bytes', got {type(value).__name__}")
    if not os.path.exists(value):  # soundfile reports a missing file like a broken one
        raise FileNotFoundError(value)
    return os.fspath(value)


def _missing(kind: str, what: str) -> UnreadableMedia:
    return UnreadableMedia(
        f"Cannot find the {kind} {what}.",
        "Relative paths in csv, json and parquet files are relative to that file's folder. Correct the path, or set "
        "the value to null: a row may lack a modality.",
    )


def _unreadable(kind: str, what: str, error: Exception) -> UnreadableMedia:
    return UnreadableMedia(
        f"Cannot read the {kind} {what}: {error}.",
        "Replace the file, remove the row, or set the value to null: a row may lack a modality.",
    )
