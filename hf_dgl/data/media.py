"""Media files: opened only if they are files, images decoded to what processors eat (PIL in RGB). Audio: `audio.py`.

Decoding is ours (Pillow, soundfile) and not `datasets`', whose Audio feature needs torchcodec and FFmpeg, and whose
errors do not say which file of which row is broken.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

WHITE = "white"
"""What shines through transparent pictures, where nothing else is asked for."""

IMAGE_FORMATS = tuple("AVIF BMP DIB GIF ICO JPEG JPEG2000 MPO PCX PNG PPM QOI SGI TIFF WEBP".split())
"""Raster formats, by Pillow's names. EPS and its like would be handed to other programs."""

# what Pillow raises on damaged files: SyntaxError for PNG, EOFError for GIF, struct.error for TIFF, ...
_BROKEN_IMAGE: tuple[type[Exception], ...] = (UnidentifiedImageError, OSError, SyntaxError, TypeError, EOFError)
_BROKEN_IMAGE += (struct.error, zlib.error, IndexError, KeyError, OverflowError, ValueError, MemoryError)
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


def load_image(value: Any, background: str = WHITE) -> Image.Image:
    """Decodes an image.

    Args:
        value: PIL image, path, encoded bytes, `{"path": ..., "bytes": ...}` (an undecoded `datasets.Image`), or a
            array of 0 to 255, `[H, W]`, `[H, W, 1]`, `[H, W, 3]` or (with alpha) `[H, W, 4]`.
        background: colour behind transparent pixels, as Pillow knows colours: `white`, `#808080`.

    Returns:
        PIL image in RGB, turned upright as its EXIF tag says; of animations and pages the first.

    Raises:
        ValueError: the file is missing, empty or not an image (of one of `IMAGE_FORMATS`), or has 16-bit or float
            pixels; several images. Names the file.

    Example:
        >>> load_image(np.zeros((4, 6), dtype=np.uint8)).size
        (6, 4)
        >>> load_image(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0))  # black ink, none of it
        (255, 255, 255)
    """
    value = _only_one(value)
    what = describe_media(value)
    try:
        image = ImageOps.exif_transpose(_open(value))
        image.load()  # decoding comes late in Pillow
    except FileNotFoundError:
        raise missing_file("image", what) from None
    except _BROKEN_IMAGE as error:
        raise unreadable_file("image", what, error) from error
    if image.mode.startswith(("I", "F")):  # `convert` would clip these to white without a word
        raise UnreadableMedia(
            f"The image in {what} has pixels of mode {image.mode!r}, expected 8 bit per channel. Scale it first, e.g. "
            "(pixels / pixels.max() * 255).astype('uint8').",
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")


def is_transparent(value: Any) -> bool:
    """Whether an image has an alpha channel, or a colour that stands for nothing. Reads no more than its header.

    Example:
        >>> is_transparent(Image.new("RGBA", (1, 1))), is_transparent(Image.new("RGB", (1, 1)))
        (True, False)
    """
    try:
        return bool(_open(_only_one(value)).has_transparency_data)
    except _BROKEN_IMAGE:
        return False


def has_frames(value: Any) -> bool:
    """Whether an image file holds several (animations, pages), of which [`load_image`] reads the first.

    Example:
        >>> has_frames(Image.new("RGB", (1, 1)))
        False
    """
    try:
        image = _open(_only_one(value))
        return getattr(image, "n_frames", 1) > 1 and image.format != "MPO"  # a phone's picture, with its preview
    except _BROKEN_IMAGE:
        return False


def _only_one(value: Any) -> Any:
    """A list of one image is that image, a list of numbers an array; several images are refused."""
    if not isinstance(value, (list, tuple)):
        return value
    if value and all(isinstance(entry, (list, tuple, int)) for entry in value):
        return np.asarray(value)
    if len(value) == 1:
        return value[0]
    raise UnreadableMedia(
        f"Expected one image, got a list of {len(value)}.",
        "Each picture of a row needs a column, and each column is a modality of its own: column_mapping={'image': "
        "'front', 'back_image': 'back'}, with an encoder for each.",
    )


def _open(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, np.ndarray):
        return Image.fromarray(_pixels(value))
    Image.init()
    return Image.open(file_of(value), formats=[name for name in IMAGE_FORMATS if name in Image.OPEN])


def _pixels(array: np.ndarray) -> np.ndarray:
    """`[H, W]`, or with channels last; int64, as which lists come, as uint8 where it fits."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(f"expected pixels [H, W], [H, W, 3] or [H, W, 4], got an array of shape {list(array.shape)}")
    fits = array.dtype == np.int64 and array.min() >= 0 and array.max() <= 255
    return array.astype(np.uint8) if fits else array


# ------------------------------------------------------------------------------------------------- files of any kind


def file_of(value: Any) -> str | io.BytesIO:
    """Path or open buffer of an encoded file.

    Raises:
        FileNotFoundError: there is none.
        OSError: what is there is no regular file: a pipe would be waited for, for ever.
        TypeError: the value names no file.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return io.BytesIO(value)
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"expected a path, bytes, or a dictionary with 'path' or 'bytes', got {type(value).__name__}")
    if not os.path.exists(value):  # soundfile reports a missing file like a broken one
        raise FileNotFoundError(value)
    if not stat.S_ISREG(os.stat(value).st_mode):
        raise OSError("it is a folder" if os.path.isdir(value) else "it is a pipe or device, no regular file")
    return os.fspath(value)


def missing_file(kind: str, what: str) -> UnreadableMedia:
    """There is no such file."""
    hint = "Backslashes separate folders on Windows only: write '/'. " if "\\" in what and os.sep == "/" else ""
    return UnreadableMedia(
        f"Cannot find the {kind} {what}.",
        f"{hint}Relative paths in csv, json and parquet files are relative to that file's folder. Correct the path, "
        "or set the value to null: a row may lack a modality.",
    )


def unreadable_file(kind: str, what: str, error: Exception) -> UnreadableMedia:
    """There is one, and it is not what it should be."""
    return UnreadableMedia(
        f"Cannot read the {kind} {what}: {error or type(error).__name__}.",
        "Replace the file, remove the row, or set the value to null: a row may lack a modality.",
    )
