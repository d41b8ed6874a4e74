"""[`CrossModalProcessor`]: every modality's own processor, from raw images, sentences and waveforms to a batch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoConfig,
    FeatureExtractionMixin,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.image_processing_utils import BaseImageProcessor
from typing_extensions import Self

from .configuration_cross_modal import CrossModalConfig, nearest
from .encoders import TOWER_WORDS, encoder_class, own_modality, tower_config
from .parts import AUTO_CLASSES, as_list, check_vocabulary, kind_of, named, process, remember_shortest_audio

KIND_OF_INPUT = {
    "input_ids": "tokenizer",
    "pixel_values": "image_processor",
    "input_values": "feature_extractor",
    "input_features": "feature_extractor",
}
# These count positions from `pad_token_id + 1`, so their tables hold that many fewer tokens.
POSITIONS_AFTER_PADDING = {"roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "data2vec-text", "mpnet"}
UNLIMITED = int(1e9)  # upstream writes 1e30 where a tokenizer states no maximal length


class CrossModalProcessor(ProcessorMixin):
    r"""
    Holds one processor per modality and turns raw rows into the batch that a `CrossModalModel` reads.

    Args:
        processors: `{modality: tokenizer | image processor | feature extractor | combined processor}`. Of a combined
            one (`CLIPProcessor`, `WhisperProcessor`, ...) the part that the modality's name implies is kept.

    Raises:
        ValueError: No processors, one of a kind that is not known, or a tokenizer without words.

    Example:

    >>> from PIL import Image
    >>> from transformers import ViTConfig
    >>> from hf_dgl.models import CrossModalProcessor, default_processor, train_tokenizer
    >>> processor = CrossModalProcessor(
    ...     {"image": default_processor(ViTConfig(image_size=32)), "text": train_tokenizer(["an even digit"])}
    ... )
    >>> batch = processor(image=[Image.new("RGB", (40, 30)), None], text=["an even digit", "even"])
    >>> batch["image"]["pixel_values"].shape, batch["image"]["present"]
    (torch.Size([2, 3, 32, 32]), tensor([ True, False]))
    """

    allow_urls = False  # whether values that are http(s) addresses may be fetched; not saved

    def __init__(self, processors: Mapping[str, Any]) -> None:
        if not processors:
            raise ValueError('Got no processors, expected one per modality: CrossModalProcessor({"text": tokenizer}).')
        self.processors = {name: _part(name, processor) for name, processor in processors.items()}
        for name, part in self.processors.items():
            check_vocabulary(name, part)
        self.chat_template = None  # read by ProcessorMixin

    @property
    def modalities(self) -> list[str]:
        """Names, in order."""
        return list(self.processors)

    @property
    def model_input_names(self) -> list[str]:
        """The keys of a batch."""
        return self.modalities

    @property
    def tokenizer(self) -> SimpleNamespace:
        """States no special tokens. The tokenizers themselves are in `processors`.

        `Trainer` would write those of `processor.tokenizer` into the model's top-level config, but each encoder has
        its own, in its own config.
        """
        return SimpleNamespace(eos_token_id=None, bos_token_id=None, pad_token_id=None)

    def sampling_rate(self, modality: str) -> int | None:
        """Rate in Hz that a modality's waveforms must have, or None if it is no audio."""
        return getattr(self.processors[modality], "sampling_rate", None)

    @classmethod
    def from_encoders(
        cls,
        encoders: Mapping[str, Any],
        *,
        token: str | bool | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        r"""Loads the processors that belong to encoders, given as to `CrossModalModel.from_encoders`.

        Args:
            encoders: Per modality a Hub id or local path, `{"checkpoint": id, "tower": ...}`, a configuration (image
                and audio only: a default processor that fits it), or a processor.
            token, revision, trust_remote_code: As in `CrossModalModel.from_encoders`.

        Raises:
            ValueError: Something else, or a text configuration: no tokenizer follows from that.
        """
        hub_kwargs = {"token": token, "trust_remote_code": trust_remote_code}
        if revision is not None:
            hub_kwargs["revision"] = revision
        return cls({name: _load_part(name, source, **hub_kwargs) for name, source in encoders.items()})

    def __call__(self, sampling_rate: int | None = None, **modalities: Any) -> dict[str, dict[str, Tensor]]:
        r"""Processes raw rows.

        Args:
            sampling_rate: Rate in Hz of the waveforms; checked, nothing is resampled here.
            **modalities: Per modality a list with one entry per row: PIL images, strings, 1-D float waveforms. None in
                a list: that row lacks the modality. A list of None only, or no list: the whole batch lacks it.

        Returns:
            `{modality: {input name: Tensor[B, ...]}}`; with `"present": BoolTensor[B]` where rows lack the modality
            (they repeat another row's inputs, which the model does not read). Text is truncated to the encoder's
            maximal length and padded to the longest row.

        Raises:
            ValueError: An unknown modality, lists of different length, or another sampling rate.
        """
        modalities = {name: as_list(rows) for name, rows in modalities.items() if rows is not None}
        for name in modalities:
            if name not in self.processors:
                known = self.modalities
                raise ValueError(f"Got modality {name!r}, this processor has {known}.{nearest(name, known)}")
            expected = self.sampling_rate(name)
            if sampling_rate is not None and expected is not None and sampling_rate != expected:
                raise ValueError(
                    f"Got {name!r} sampled at {sampling_rate} Hz, expected {expected} Hz. Resample it first: "
                    f"soxr.resample(waveform, {sampling_rate}, {expected})."
                )
        num_rows = {name: len(rows) for name, rows in modalities.items()}
        if len(set(num_rows.values())) > 1:
            raise ValueError(f"Got {num_rows} rows, expected as many of every modality, None where a row lacks it.")
        batch: dict[str, dict[str, Tensor]] = {}
        for name in self.modalities:
            rows = modalities.get(name, [])
            there = [row for row in rows if row is not None]
            if not there:
                continue
            inputs = process(self.processors[name], there)
            if len(there) < len(rows):
                present = torch.tensor([row is not None for row in rows])
                # Rows without the modality repeat the first that has it: inputs that any encoder accepts.
                index = (present.cumsum(0) - 1).clamp(min=0) * present
                inputs = {key: value[index] for key, value in inputs.items()}
                inputs["present"] = present
            batch[name] = inputs
        return batch

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds: the modalities in order, and of what kind each one's processor is."""
        values = {
            "processor_class": type(self).__name__,
            "modalities": self.modalities,
            "kinds": {name: kind_of(processor) for name, processor in self.processors.items()},
        }
        auto_map = getattr(self, "auto_map", None)  # set by `save_pretrained`: where the class is, beside the file
        return values if auto_map is None else {**values, "auto_map": auto_map}

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Saves every modality's processor to a subfolder of its name, and `processor_config.json`."""
        for name, processor in self.processors.items():
            processor.save_pretrained(os.path.join(save_directory, name))
        files = super().save_pretrained(save_directory)
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", os.path.basename(os.path.normpath(save_directory)))
            self.push_to_hub(repo_id, **kwargs)
        return files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:  # type: ignore[override]
        """Loads what `save_pretrained` saved, from a folder or the Hub; takes upstream's `token`, `revision`, ..."""
        config, _ = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "kinds" not in config:
            raise ValueError(
                f"{str(pretrained_model_name_or_path)!r} holds no CrossModalProcessor: its processor_config.json is "
                "missing or of another class. Load an encoder's processor with CrossModalProcessor.from_encoders."
            )
        kwargs.pop("_from_auto", None)
        folder = kwargs.pop("subfolder", "")
        parts = {}
        for name in config["modalities"]:
            place = os.path.join(folder, name)
            with named(f"processor of {name!r}", os.path.join(pretrained_model_name_or_path, place)), _quiet():
                try:
                    parts[name] = AUTO_CLASSES[config["kinds"][name]].from_pretrained(
                        pretrained_model_name_or_path, subfolder=place, **kwargs
                    )
                except ValueError as error:  # a tokenizer without its file
                    raise OSError(" ".join(str(error).split())) from error
        return cls(parts)


# ---------------------------------------------------------------------------------------------------- making the parts


def default_processor(config: PreTrainedConfig) -> BaseImageProcessor | FeatureExtractionMixin:
    """A processor that fits an image or audio encoder which has no checkpoint to bring its own.

    Args:
        config: Configuration of the encoder. Images are resized to its `image_size` (224 if it states none) and
            normalised to [-1, 1]; audio is 16 kHz (CLAP 48 kHz).

    Raises:
        ValueError: A text encoder (train a tokenizer with `train_tokenizer`), or none that we know.
    """
    return remember_shortest_audio(_default_processor(config), config)


def _default_processor(config: PreTrainedConfig) -> BaseImageProcessor | FeatureExtractionMixin:
    main_input = encoder_class(config).main_input_name
    if main_input == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        half = [0.5] * getattr(config, "num_channels", 3)
        # The form that needs no torchvision, named so that upstream does not warn about that.
        return transformers.ViTImageProcessorPil(
            size={"height": height, "width": width}, image_mean=half, image_std=half
        )
    model_type = config.model_type
    if model_type == "audio-spectrogram-transformer":
        return transformers.ASTFeatureExtractor(num_mel_bins=config.num_mel_bins, max_length=config.max_length)
    if model_type == "whisper":
        num_frames = 2 * config.max_source_positions  # Whisper's own: 3000 of 10 ms, 30 s
        seconds = max(1, num_frames // 100)
        return transformers.WhisperFeatureExtractor(
            feature_size=config.num_mel_bins, chunk_length=seconds, hop_length=16000 * seconds // num_frames
        )
    if model_type == "clap_audio_model":
        num_frames = config.spec_size**2 // config.num_mel_bins  # CLAP's own: 1024 of 10 ms
        return transformers.ClapFeatureExtractor(
            feature_size=config.num_mel_bins, truncation="rand_trunc", max_length_s=max(1, (num_frames - 1) // 100)
        )
    if model_type == "wav2vec2-bert":
        bins = config.feature_projection_input_dim // 2
        return transformers.SeamlessM4TFeatureExtractor(feature_size=bins, num_mel_bins=bins, stride=2)
    if main_input == "input_values":
        return transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    raise ValueError(
        f"Cannot make a processor from a {model_type!r} configuration, expected an image or audio encoder's. For "
        "text, train a tokenizer: hf_dgl.models.train_tokenizer(texts); else pass the processor itself."
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int = 8000, max_length: int = 512) -> PreTrainedTokenizerFast:
    """Makes a lower-casing tokenizer, for a text encoder without checkpoint.

    Its vocabulary is every character, then the most frequent words; other words are spelled. (The trainers of the
    `tokenizers` library number their entries differently from run to run, which would change a seeded training.)

    Args:
        texts: Sentences of the *training* split.
        vocab_size: At most this many entries. The encoder's `vocab_size` must not be smaller than `len(tokenizer)`.
        max_length: Longer texts are truncated. The encoder's `max_position_embeddings` must not be smaller.

    Returns:
        A fast tokenizer that writes `[CLS] ... [SEP]` and pads with id 0.
    """
    normalizer, pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    characters = sorted(set().union(*counts))
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    entries = special + characters + [f"##{character}" for character in characters] + words
    vocab = {entry: index for index, entry in enumerate(entries[:vocab_size])}

    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_length, **dict(zip(names, special, strict=True))
    )


class _quiet:
    """Keeps upstream from warning, once per image processor, that torchvision is missing: its PIL form does all."""

    def __enter__(self) -> None:
        self.verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()

    def __exit__(self, *error: object) -> None:
        transformers.logging.set_verbosity(self.verbosity)


def _load_part(modality: str, source: Any, **hub_kwargs: Any) -> Any:
    tower = None
    if isinstance(source, Mapping) and "checkpoint" in source:
        hub_kwargs = {**hub_kwargs, **source}
        source, tower = hub_kwargs.pop("checkpoint"), hub_kwargs.pop("tower", None)
    if isinstance(source, PreTrainedConfig):
        return default_processor(tower_config(modality, source, tower))
    if isinstance(source, Mapping):
        raise ValueError(
            f"Got the mapping {dict(source)!r} for modality {modality!r}, which is how a recipe writes an encoder "
            "from scratch. In Python give a configuration, such as ViTConfig(hidden_size=64); for text its tokenizer."
        )
    if not (isinstance(source, str) or hasattr(source, "__fspath__")):
        return source
    with named(f"encoders: {modality!r}", source):
        return _processor_of(modality, source, tower, **hub_kwargs)


def _processor_of(modality: str, source: Any, tower: str | None, **hub_kwargs: Any) -> Any:
    """That of a checkpoint."""
    whole = AutoConfig.from_pretrained(source, **hub_kwargs)
    if isinstance(whole, CrossModalConfig):
        parts = CrossModalProcessor.from_pretrained(source, **hub_kwargs).processors
        return parts[own_modality(modality, whole, tower)]
    config = tower_config(modality, whole, tower)
    main_input = encoder_class(config).main_input_name
    with _quiet():
        processor = AUTO_CLASSES[KIND_OF_INPUT[main_input]].from_pretrained(source, **hub_kwargs)
    remember_shortest_audio(processor, config)
    if isinstance(processor, PreTrainedTokenizerBase):
        if processor.pad_token is None:
            processor.pad_token = processor.eos_token
        positions = getattr(config, "max_position_embeddings", None)
        if processor.model_max_length > UNLIMITED and isinstance(positions, int) and positions > 0:
            offset = config.pad_token_id + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0
            processor.model_max_length = positions - offset
    return processor


def _part(modality: str, processor: Any) -> Any:
    """The part of a combined processor that reads this modality; any other processor as it is."""
    if isinstance(processor, ProcessorMixin):
        parts = [part for part in (getattr(processor, kind, None) for kind in AUTO_CLASSES) if part is not None]
        words = dict(
            zip(AUTO_CLASSES, (TOWER_WORDS["text"], TOWER_WORDS["vision"], TOWER_WORDS["audio"]), strict=True)
        )
        fitting = [part for part in parts if any(word in modality.lower() for word in words[kind_of(part)])]
        if len(fitting) != 1:
            raise ValueError(
                f"Got a {type(processor).__name__} for modality {modality!r}, expected one of its parts: pass "
                f"{[f'processor.{kind_of(part)}' for part in parts]}."
            )
        return fitting[0]
    kind_of(processor)  # raises for anything that is not a processor
    return processor
