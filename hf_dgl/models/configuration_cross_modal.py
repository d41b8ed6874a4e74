"""Configuration of [`CrossModalModel`]: any encoders, one per modality, and a fusion over their tokens."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import field
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

FUSION_TYPES = ("cross_attention", "merged_attention", "concat", "sum", "gated", "bilinear")
READ_OUTS = ("products", "means")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `" Did you mean 'x'?"` for the known name nearest to `name`, or an empty string."""
    match = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.4)
    return f" Did you mean {match[0]!r}?" if match else ""


class CrossModalConfig(PreTrainedConfig):
    r"""
    One encoder configuration per modality, plus the settings of the fusion that joins them.

    Args:
        encoders (`dict[str, PreTrainedConfig | dict]`):
            Encoder configuration per modality, at least one. Names are free (`image`, `text`, `front_image`, ...);
            their order is the order of the fusion's inputs. A dict needs its `model_type`.
        fusion_type (`str`, defaults to `"cross_attention"`):
            `cross_attention` | `merged_attention` (over token sequences), or `concat` | `sum` | `gated` | `bilinear`
            (over mean-pooled tokens). See `hf_dgl.models.fusion`.
        num_fusion_layers (`int`, defaults to 2): Layers of an attention fusion; pooled fusions have none.
        fusion_hidden_size (`int`, *optional*): Width of the fusion. Default: the widest encoder's.
        num_fusion_heads (`int`, *optional*): Default: heads of 64, smaller ones below a width of 256.
        fusion_intermediate_size (`int`, *optional*): Default: 4 x `fusion_hidden_size`.
        fusion_activation (`str`, defaults to `"gelu"`): Activation of the fusion's feed-forward layers.
        fusion_dropout (`float`, defaults to 0.1): In the fusion's layers, its attention, and before the classifier.
        fusion_read_out (`str`, *optional*):
            What the classifier reads of an attention fusion: `means` of each modality's tokens, or `products`, which
            are these means and beside them what `bilinear` makes of the tokens before the first layer, so that an
            interplay of modalities is learned in hundreds of steps, not thousands. Default: `products` where there are
            two modalities to attend to one another, else `means`. A `config.json` without it is of a model saved
            before there was a choice: `means`.
        bilinear_size (`int`, *optional*):
            Width `k` of the projections whose outer products `bilinear` and the read-out `products` hold. Default: 64
            for `bilinear`; 16 beside the means, which wider products push aside: of a jointly trained model they then
            tell less about one modality alone.
        layer_norm_eps (`float`, defaults to 1e-5): Of the fusion's layer norms.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the fusion's initial weights.
        label_mean, label_std (`list[float]`, *optional*):
            For regression: mean and standard deviation of each quantity in the training data. The head then learns
            standardised labels, and `logits` are in the labels' units. Default: it learns labels as they are.
        modalities (`list[str]`, *optional*):
            The order of `encoders`. Set for you; it exists because `config.json` is written with sorted keys.
        **kwargs: What every `PreTrainedConfig` takes: `num_labels`, `id2label`, `label2id`, `problem_type`, ...

    Raises:
        ValueError: No encoders, an unknown `fusion_type` or `model_type`, heads that do not divide the width.

    Example:

    >>> from transformers import BertConfig, ViTConfig
    >>> from hf_dgl.models import CrossModalConfig
    >>> config = CrossModalConfig(encoders={"image": ViTConfig(), "text": BertConfig()}, num_labels=10)
    >>> config.modalities, config.fusion_hidden_size, config.num_fusion_heads
    (['image', 'text'], 768, 12)
    """

    model_type = "cross_modal"

    encoders: dict[str, PreTrainedConfig] = field(default_factory=dict)
    modalities: list[str] = field(default_factory=list)
    fusion_type: str = "cross_attention"
    num_fusion_layers: int = 2
    fusion_hidden_size: int = None  # type: ignore[assignment]  # what is None here is set in `__post_init__`
    num_fusion_heads: int = None  # type: ignore[assignment]
    fusion_intermediate_size: int = None  # type: ignore[assignment]
    fusion_read_out: str = None  # type: ignore[assignment]
    fusion_activation: str = "gelu"
    fusion_dropout: float = 0.1
    bilinear_size: int = None  # type: ignore[assignment]
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    label_mean: list[float] | None = None
    label_std: list[float] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # Upstream writes `attn_implementation` (None by default) over every sub-configuration it can see. Hidden from
        # it here, so that an encoder that is already built keeps its own unless the user asks for one.
        encoders, self.encoders = self.encoders or {}, {}
        super().__post_init__(**kwargs)
        order = [name for name in self.modalities or [] if name in encoders]
        order += [name for name in encoders if name not in order]
        self.encoders = {name: _sub_config(name, encoders[name]) for name in order}
        self.modalities = order
        if kwargs.get("attn_implementation") is not None:
            self._attn_implementation = kwargs["attn_implementation"]
        # `PreTrainedConfig()` without arguments is how upstream asks for defaults, so an empty one must exist.
        # `CrossModalModel` refuses it.
        if self.encoders:
            self._set_widths()
            if self.fusion_read_out is None:
                can_meet = self.fusion_type.endswith("_attention") and len(self.encoders) > 1
                self.fusion_read_out = "products" if can_meet else "means"
            if self.bilinear_size is None:
                self.bilinear_size = 16 if self.fusion_read_out == "products" else 64
        self._validate_fusion()
        self._validate_labels()

    def _set_widths(self) -> None:
        if self.fusion_hidden_size is None:
            self.fusion_hidden_size = max(encoder_width(config) for config in self.encoders.values())
        if self.num_fusion_heads is None:
            self.num_fusion_heads = _default_num_heads(self.fusion_hidden_size)
        if self.fusion_intermediate_size is None:
            self.fusion_intermediate_size = 4 * self.fusion_hidden_size

    def _validate_fusion(self) -> None:
        if self.fusion_type not in FUSION_TYPES:
            raise ValueError(
                f"Got fusion_type={self.fusion_type!r}, expected one of {list(FUSION_TYPES)}."
                f"{nearest(self.fusion_type, FUSION_TYPES)}"
            )
        if self.fusion_read_out not in (None, *READ_OUTS):
            raise ValueError(
                f"Got fusion_read_out={self.fusion_read_out!r}, expected one of {list(READ_OUTS)}."
                f"{nearest(self.fusion_read_out, READ_OUTS)}"
            )
        if self.fusion_read_out == "products" and not self.fusion_type.endswith("_attention"):
            raise ValueError(
                f"Got fusion_read_out='products' and fusion_type={self.fusion_type!r}, expected an attention fusion, "
                "whose read-out it is. Leave fusion_read_out out, or set fusion_type='cross_attention'."
            )
        width, heads = self.fusion_hidden_size, self.num_fusion_heads
        if width and heads and width % heads != 0:
            raise ValueError(
                f"Got fusion_hidden_size={width} and num_fusion_heads={heads}, expected heads that divide the "
                f"width. Leave num_fusion_heads out, or set num_fusion_heads={_default_num_heads(width)}."
            )
        if self.fusion_type.endswith("_attention") and self.num_fusion_layers < 1:
            raise ValueError(
                f"Got num_fusion_layers={self.num_fusion_layers}, expected at least 1 for {self.fusion_type!r}. "
                "For a fusion without layers set fusion_type='concat'."
            )

    def _validate_labels(self) -> None:
        mean, std = self.label_mean, self.label_std
        if mean is None and std is None:
            return
        if mean is None or std is None or not len(mean) == len(std) == self.num_labels or not min(std) > 0:
            raise ValueError(
                f"Got label_mean={mean} and label_std={std}, expected both, with a number for each of the "
                f"{self.num_labels} outputs, deviations above 0. LabelSpec.to_config() gives them."
            )

    @property
    def sub_configs(self) -> dict[str, type[PreTrainedConfig]]:
        """Modality -> configuration class: what upstream walks to pass down dtype and attention implementation."""
        encoders = self.__dict__.get("encoders") or {}
        return {name: type(config) for name, config in encoders.items() if isinstance(config, PreTrainedConfig)}

    def __getattr__(self, name: str) -> Any:
        # Upstream reads a sub-configuration as an attribute: `config.image` is `config.encoders["image"]`.
        encoders = self.__dict__.get("encoders") or {}
        if name in encoders:
            return encoders[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As upstream's; what was saved before `fusion_read_out` existed keeps the read-out it was trained with."""
        return super().from_dict({"fusion_read_out": "means", **config_dict}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Serializes to plain Python types, the encoders' configurations included."""
        output = super().to_dict()
        output["encoders"] = {name: _sub_config_to_dict(config) for name, config in self.encoders.items()}
        return output


def _sub_config(name: str, config: PreTrainedConfig | dict) -> PreTrainedConfig:
    """Rebuilds one encoder's configuration in its own class, found by its `model_type`."""
    if not isinstance(name, str) or not name.isidentifier() or hasattr(PreTrainedConfig(), name):
        raise ValueError(
            f"Got {name!r} as the name of a modality, expected an identifier that is no setting of a configuration, "
            'for example "image", "text", "audio" or "front_image".'
        )
    if isinstance(config, PreTrainedConfig):
        return config
    if not isinstance(config, dict):
        raise ValueError(
            f"Got {type(config).__name__} as the encoder of modality {name!r}, expected a configuration or its dict. "
            "To start from a checkpoint call CrossModalForSequenceClassification.from_encoders(...)."
        )
    settings = dict(config)
    model_type = settings.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"Got model_type={model_type!r} for the encoder of modality {name!r}, expected one that transformers "
            f"knows.{nearest(str(model_type), CONFIG_MAPPING.keys())} An encoder with code of its own has to be "
            "registered (AutoConfig.register, AutoModel.register) before it is loaded."
        )
    return CONFIG_MAPPING[model_type](**settings)


def _sub_config_to_dict(config: PreTrainedConfig) -> dict[str, Any]:
    output = config.to_diff_dict()
    output["model_type"] = config.model_type
    output.pop("transformers_version", None)
    return output


def _default_num_heads(width: int) -> int:
    # Heads of 64 as in ViT and BERT; four heads of at least 16 in models too narrow for that.
    heads = max(1, width // 64, min(4, width // 16))
    while width % heads != 0:
        heads -= 1
    return heads


def encoder_width(config: PreTrainedConfig) -> int:
    """Number of channels of the tokens that an encoder with this configuration puts out.

    Args:
        config: Configuration of one encoder or tower.

    Raises:
        ValueError: The configuration states no width.
    """
    model_type = config.model_type
    if model_type == "clap_audio_model":  # its `hidden_size` is not what its Swin stages end with
        return int(config.patch_embeds_hidden_size * 2 ** (len(config.depths) - 1))
    if model_type == "altclip_text_model":
        return int(config.project_dim)
    if getattr(config, "add_adapter", False) and hasattr(config, "output_hidden_size"):  # wav2vec2 and kin
        return int(config.output_hidden_size)
    for attribute in ("neck_hidden_sizes", "hidden_sizes", "embed_dims"):  # convolutional: one width per stage
        if isinstance(sizes := getattr(config, attribute, None), (list, tuple)):
            return int(sizes[-1])
    for attribute in ("hidden_size", "d_model", "hidden_dim", "embed_dim"):
        if isinstance(size := getattr(config, attribute, None), int):
            return size
    raise ValueError(
        f"Cannot tell the width of a {model_type!r} encoder: its configuration has no hidden_size, d_model or "
        "hidden_sizes. Set `hidden_size` on that configuration to the number of channels of its last_hidden_state."
    )
