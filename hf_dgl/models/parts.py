"""One modality's processor (tokenizer, image processor or feature extractor), and rows through it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    FeatureExtractionMixin,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_utils import BaseImageProcessor

# What saves and loads a part, by its kind.
AUTO_CLASSES: dict[str, Any] = {
    "tokenizer": AutoTokenizer,
    "image_processor": AutoImageProcessor,
    "feature_extractor": AutoFeatureExtractor,
}


def kind_of(processor: Any) -> str:
    """The key of `AUTO_CLASSES` for a processor; raises ValueError for anything else."""
    if isinstance(processor, PreTrainedTokenizerBase):
        return "tokenizer"
    if isinstance(processor, BaseImageProcessor):
        return "image_processor"
    if isinstance(processor, FeatureExtractionMixin):
        return "feature_extractor"
    raise ValueError(
        f"Got {type(processor).__name__} as a processor, expected a tokenizer, an image processor or a feature "
        "extractor. For Hub ids call CrossModalProcessor.from_encoders."
    )


def check_vocabulary(modality: str, processor: Any) -> None:
    """Refuses a tokenizer without words, to which every text is alike: upstream makes one for a checkpoint that was
    saved without its tokenizer, and says nothing.

    Raises:
        ValueError: says what to save.
    """
    if not isinstance(processor, PreTrainedTokenizerBase):
        return
    if len(processor) - len(processor.all_special_tokens) < 3:
        raise ValueError(
            f"The tokenizer of {modality!r}, a {type(processor).__name__}, knows no words: was the checkpoint saved "
            "without it? Save it beside the model, `tokenizer.save_pretrained(folder)`, or copy its files there."
        )


def remember_shortest_audio(processor: Any, config: PreTrainedConfig) -> Any:
    """Notes in a feature extractor the fewest samples that its encoder reads (`min_audio_samples`); returns it.

    That is the receptive field of the convolutions over the waveform (wav2vec2 and kin: 400), or what the extractor
    needs for one spectrogram frame (AST: 25 ms), for a deviation over frames two of them (W2V-BERT: 35 ms). Whisper
    and CLAP pad whatever comes.
    """
    if not isinstance(processor, FeatureExtractionMixin) or getattr(processor, "min_audio_samples", None):
        return processor
    rate = int(getattr(processor, "sampling_rate", 0))
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    least = {"audio-spectrogram-transformer": rate // 40, "wav2vec2-bert": rate * 35 // 1000}.get(config.model_type)
    if isinstance(kernels, (list, tuple)) and isinstance(strides, (list, tuple)):
        least, step = 1, 1
        for kernel, stride in zip(kernels, strides, strict=True):
            least, step = least + (kernel - 1) * step, step * stride
    if least:
        setattr(processor, "min_audio_samples", least)  # noqa: B010  # ours, unknown to upstream's class
    return processor


def as_list(rows: Any) -> list[Any]:
    """A column of rows; a single string, image or waveform becomes a column of one."""
    is_single = isinstance(rows, (str, Image.Image)) or (isinstance(rows, np.ndarray) and rows.ndim == 1)
    return [rows] if is_single or not isinstance(rows, Iterable) else list(rows)


def process(processor: Any, rows: list[Any]) -> dict[str, Tensor]:
    """Rows that all have the modality -> its encoder's inputs, `Tensor[B, ...]` each, floats in float32."""
    kind = kind_of(processor)
    if kind == "tokenizer":
        # SigLIP's and kin emit no mask: their encoders are trained on texts of one length, padding included.
        has_mask = "attention_mask" in processor.model_input_names
        output = processor(rows, padding="longest" if has_mask else "max_length", truncation=True, return_tensors="pt")
    elif kind == "image_processor":
        output = processor([_in_colour(row, processor) for row in rows], return_tensors="pt")
    else:
        output = processor(
            [np.asarray(row, dtype=np.float32) for row in rows],
            sampling_rate=processor.sampling_rate,
            return_tensors="pt",
            **_audio_kwargs(processor),
        )
    return {key: value.float() if value.is_floating_point() else value for key, value in output.items()}


def _in_colour(image: Any, processor: Any) -> Any:
    if isinstance(image, (list, tuple)):  # the frames of a video
        return [_in_colour(frame, processor) for frame in image]
    if isinstance(image, Image.Image):
        is_grey = len(getattr(processor, "image_mean", None) or [0, 0, 0]) == 1
        return image.convert("L" if is_grey else "RGB")
    return image


def _audio_kwargs(processor: Any) -> dict[str, Any]:
    parameters = inspect.signature(processor.__call__).parameters
    kwargs: dict[str, Any] = {}
    if "padding" in parameters and parameters["padding"].default is False:
        kwargs["padding"] = True  # wav2vec2 and kin; the others pad on their own, some to a fixed length
    if "return_attention_mask" in parameters:
        kwargs["return_attention_mask"] = True  # also where the encoder takes none: the fusion leaves padding out
    return kwargs


_DAMAGE = (
    SafetensorError,
    UnpicklingError,
    RuntimeError,
    TypeError,
    AttributeError,
    LookupError,
    EOFError,
    UserWarning,
)
"""What Transformers, torch and PEFT raise, beside ValueError and OSError, at files that were cut short or edited."""


@contextmanager
def named(what: str, source: str | os.PathLike[str]) -> Iterator[None]:
    """Says whose files could not be loaded, which upstream's errors leave out: the Hub cannot be reached, or the files
    are damaged.

    Args:
        what: For the message: `encoders: 'image'`.
        source: What is loaded inside.

    Raises:
        OSError: in place of upstream's, with its first line.
        ValueError: in place of what damaged files lead to.

    Example:

        >>> with named("encoders: 'image'", "google/vit-base-patch16-224"):
        ...     AutoModel.from_pretrained("google/vit-base-patch16-224")
    """
    try:
        yield
    except OSError as error:
        if f"{what}: " in str(error):
            raise
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"{what}: cannot load {os.fspath(source)!r}, which is no folder here, from the Hub or its cache: {reason}"
            if not os.path.isdir(source)
            else f"{what}: cannot load {os.fspath(source)!r}: {reason}"
        ) from error
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(
            f"{what}: cannot load {os.fspath(source)!r} ({reason}). Its files are damaged or do not "
            "belong together: copy or download all of them again."
        ) from error
