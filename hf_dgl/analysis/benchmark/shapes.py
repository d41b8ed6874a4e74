"""What is measured: a model and a batch, of any shape (random inputs) or as a recipe says (its data).

Fake tensors have shapes and no values, so that models of any size can be built and counted on any machine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import ASTConfig, BertConfig, PreTrainedConfig, ViTConfig
from transformers.initialization import no_init_weights

from hf_dgl.data import CrossModalCollator, LabelSpec
from hf_dgl.method.outputs import map_tensors
from hf_dgl.models import CrossModalConfig, CrossModalForSequenceClassification
from hf_dgl.models.encoder_specs import resolve_encoder
from hf_dgl.models.native import NativeProcessor
from hf_dgl.recipe.assembly import build_model, build_processor, load_splits
from hf_dgl.recipe.recipe import Recipe, make_recipe

_PATCH = 16
_NUM_MEL_BINS = 128


_RECIPE_KEYS = {
    "fusion_type": "fusion_type",
    "fusion_layers": "num_fusion_layers",
    "hidden_size": "fusion_hidden_size",
    "num_heads": "num_fusion_heads",
    "dropout": "fusion_dropout",
    "batch_size": "per_device_train_batch_size",
}
"""Field of [`Shape`] -> key of a recipe, where there is one."""


@dataclass
class Shape:
    """The sizes of a model and its batch: ViT for images, BERT for text, AST for audio, and our fusion.

    Args:
        image_layers, text_layers, audio_layers: Depth of each encoder; 0: the model has no such modality.
        fusion_type: One of `FUSION_TYPES`.
        fusion_layers: Depth of an attention fusion.
        hidden_size: Width of encoders and fusion.
        num_heads: Attention heads. Default: heads of 64.
        batch_size: Rows.
        image_size: Pixels in height and width, a multiple of 16 (the patches).
        text_length: Tokens.
        audio_length: Spectrogram frames, a multiple of 16.
        dropout: Everywhere. Default: what the architectures have.

    Raises:
        ValueError: sizes that do not divide.

    Example:

        >>> shape = Shape(image_layers=2, text_layers=2, hidden_size=64)
        >>> with build(shape.config(), shape.batch()) as (model, batch):
        ...     model(**batch).loss.backward()
    """

    image_layers: int = 12
    text_layers: int = 12
    audio_layers: int = 0
    fusion_type: str = "cross_attention"
    fusion_layers: int = 2
    hidden_size: int = 768
    num_heads: int | None = None
    batch_size: int = 4
    image_size: int = 224
    text_length: int = 64
    audio_length: int = 512
    dropout: float | None = None

    def __post_init__(self) -> None:
        if self.num_heads is None:
            self.num_heads = _num_heads(self.hidden_size)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"Got hidden_size={self.hidden_size} and num_heads={self.num_heads}, expected heads that divide the "
                f"width. Leave num_heads out, or choose hidden_size={64 * self.num_heads}."
            )
        for name in ("image_size", "audio_length"):
            if getattr(self, name) % _PATCH or getattr(self, name) < _PATCH:
                raise ValueError(f"Got {name}={getattr(self, name)}, expected a multiple of {_PATCH}.")

    def config(self) -> CrossModalConfig:
        """The model's configuration; three classes."""
        encoders: dict[str, PreTrainedConfig] = {}
        if self.image_layers:
            encoders["image"] = ViTConfig(
                image_size=self.image_size, patch_size=_PATCH, **self._fields(self.image_layers)
            )
        if self.text_layers:
            positions = max(512, self.text_length)
            encoders["text"] = BertConfig(max_position_embeddings=positions, **self._fields(self.text_layers))
        if self.audio_layers:
            encoders["audio"] = ASTConfig(
                max_length=self.audio_length,
                num_mel_bins=_NUM_MEL_BINS,
                patch_size=_PATCH,
                time_stride=_PATCH,
                frequency_stride=_PATCH,
                **self._fields(self.audio_layers),
            )
        settings: dict[str, Any] = {"num_labels": 3, "problem_type": "single_label_classification"}
        if self.dropout is not None:
            settings["fusion_dropout"] = self.dropout
        return CrossModalConfig(
            encoders=encoders,
            fusion_type=self.fusion_type,
            num_fusion_layers=self.fusion_layers,
            num_fusion_heads=self.num_heads or 1,
            **settings,
        )

    def _fields(self, num_layers: int) -> dict[str, Any]:
        return _encoder_fields({**vars(self), "layers": num_layers})

    def batch(self) -> dict[str, Any]:
        """Random inputs without padding, for the modalities that the shape has, and labels."""
        rows = self.batch_size
        batch: dict[str, Any] = {"labels": torch.arange(rows) % 3}
        if self.image_layers:
            batch["image"] = {"pixel_values": torch.randn(rows, 3, self.image_size, self.image_size)}
        if self.text_layers:
            ids = torch.randint(1, BertConfig().vocab_size, (rows, self.text_length))
            batch["text"] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.audio_layers:
            batch["audio"] = {"input_values": torch.randn(rows, self.audio_length, _NUM_MEL_BINS)}
        return batch


def _num_heads(width: int) -> int:
    return width // 64 if width % 64 == 0 else 1


def _encoder_fields(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an encoder's configuration, as BERT, ViT and most others spell them."""
    fields: dict[str, Any] = {}
    if sizes.get("layers") is not None:
        fields["num_hidden_layers"] = sizes["layers"]
    if sizes.get("hidden_size") is not None:
        fields["hidden_size"], fields["intermediate_size"] = sizes["hidden_size"], 4 * sizes["hidden_size"]
    if sizes.get("num_heads") is not None:
        fields["num_attention_heads"] = sizes["num_heads"]
    if sizes.get("dropout") is not None:
        fields["hidden_dropout_prob"] = fields["attention_probs_dropout_prob"] = sizes["dropout"]
    return fields


def reshaped(recipe: Recipe, sizes: Mapping[str, Any]) -> Recipe:
    """A recipe with other sizes.

    Args:
        recipe: Its encoders are built from scratch.
        sizes: Some of the fields of [`Shape`]. Lengths of text and audio are the data's, and cannot be given.

    Raises:
        ValueError: an encoder that is a checkpoint, or that the recipe does not have.
    """
    for name in ("text_length", "audio_length"):
        if name in sizes:
            raise ValueError(f"--{name}: the recipe's data have lengths of their own. Leave it, or the recipe, out.")
    values = copy.deepcopy(recipe.values)
    encoders = values.get("encoders") or {}
    if "hidden_size" in sizes and "num_heads" not in sizes:
        sizes = {**sizes, "num_heads": _num_heads(sizes["hidden_size"])}
    for name in ("image", "text", "audio"):
        if f"{name}_layers" in sizes and name not in encoders:
            raise ValueError(f"--{name}_layers: the recipe has the encoders {list(encoders)}.")
    for name, encoder in encoders.items():
        fields = _encoder_fields({**sizes, "layers": sizes.get(f"{name}_layers")})
        if name == "image" and "image_size" in sizes:
            fields["image_size"] = sizes["image_size"]
        if fields and not (isinstance(encoder, Mapping) and "model_type" in encoder):
            raise ValueError(f"The {name} encoder {encoder!r} is a checkpoint, whose shape is fixed ({list(fields)}).")
        if fields:
            encoders[name] = {**encoder, **fields}
    values.update({key: sizes[name] for name, key in _RECIPE_KEYS.items() if name in sizes})
    return make_recipe(values)


def smaller(
    config: CrossModalConfig, batch: Mapping[str, Any], modalities: Sequence[str], fusion_layers: int
) -> tuple[CrossModalConfig, dict[str, Any]]:
    """The same model and batch with fewer modalities and another depth of the fusion."""
    config = copy.deepcopy(config)
    config.modalities = list(modalities)
    config.encoders = {name: config.encoders[name] for name in modalities}
    config.num_fusion_layers = fusion_layers
    return config, {name: batch[name] for name in [*modalities, "labels"] if name in batch}


def from_recipe(
    recipe: Recipe, device: torch.device | str = "cpu"
) -> tuple[CrossModalForSequenceClassification, dict[str, Any], Callable[[], dict[str, Any]]]:
    """The model of a recipe, a batch of its training data (as many rows as `per_device_train_batch_size`), and what
    fetches that batch anew: reads the rows, and collates them on the CPU."""
    encoders = {
        name: resolve_encoder(name, value) for name, value in dict(recipe.values.get("encoders") or {}).items()
    }
    modalities = list(encoders) or build_processor(recipe, {}, Dataset.from_dict({})).modalities
    splits = load_splits(recipe, modalities)
    labels = LabelSpec.from_dataset(splits["train"], recipe.model.problem_type, class_names=recipe.data.class_names)
    processor = build_processor(recipe, encoders, splits["train"])
    if isinstance(processor, NativeProcessor):
        raise ValueError(
            f"benchmark measures models that are built from `encoders`, not {processor.model_class.__name__}."
        )
    model: Any = build_model(recipe, encoders, labels)
    num_rows = min(recipe.training.per_device_train_batch_size, len(splits["train"]))
    rows = labels.encode(splits["train"].select(range(num_rows)), "train")
    collate = CrossModalCollator(processor, labels)

    def fetch() -> dict[str, Any]:
        return collate([rows[index] for index in range(num_rows)])

    return model.to(device), map_tensors(lambda tensor: tensor.to(device), fetch()), fetch


@contextmanager
def build(
    config: CrossModalConfig, batch: Mapping[str, Any], device: torch.device | str = "cpu", fake: bool = False
) -> Iterator[tuple[CrossModalForSequenceClassification, dict[str, Any]]]:
    """A model with random weights and the batch, on a device.

    Args:
        config: Of the model.
        batch: Arguments of its forward.
        device: Where to.
        fake: On fake tensors: no memory, no computation.
    """
    with ExitStack() as stack:
        if fake:
            mode = stack.enter_context(FakeTensorMode())
            stack.enter_context(no_init_weights())
            batch = map_tensors(mode.from_tensor, dict(batch))
        with torch.device(device):
            model = CrossModalForSequenceClassification(copy.deepcopy(config))
        yield model, map_tensors(lambda tensor: tensor.to(device), dict(batch))
