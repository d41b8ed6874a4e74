"""Encoders: which module of which checkpoint encodes a modality, and how its output becomes tokens and a mask.

Shapes: B rows, T tokens, D channels of the encoder.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .configuration_cross_modal import CrossModalConfig, nearest
from .parts import named

logger = logging.get_logger(__name__)

# What a modality's name says about its input, for the choice of a tower.
TOWER_WORDS = {
    "vision": ("image", "vision", "video", "photo", "picture", "frame"),
    "text": ("text", "caption", "question", "title", "sentence", "transcript"),
    "audio": ("audio", "speech", "sound", "voice", "music"),
}
# Modules whose output `last_hidden_state` does not contain. Left in, their parameters would never get a gradient,
# which stops DistributedDataParallel. CLIP normalises the pooled class token only, and upstream's own image classifier
# (CLIPForImageClassification) reads the tokens before `post_layernorm`, as we do; `ModalityProjection` normalises them
# instead. SigLIP normalises all tokens: its `post_layernorm` stays.
POOLING_MODULES = {
    **dict.fromkeys(
        (
            *("clip_vision_model", "chinese_clip_vision_model", "altclip_vision_model", "xclip_vision_model"),
            *("metaclip_2_vision_model", "owlvit_vision_model", "owlv2_vision_model", "clipseg_vision_model"),
        ),
        ("pooler", "post_layernorm"),
    ),
    **dict.fromkeys(("siglip_vision_model", "siglip_text_model", "siglip2_vision_model"), ("head",)),
    **dict.fromkeys(("siglip2_text_model", "aimv2_vision_model"), ("head",)),
    **dict.fromkeys(("convnext", "convnextv2"), ("layernorm",)),  # of the average that upstream's classifier reads
}
# An encoder's own name for "which inputs are real".
MASK_NAMES = ("attention_mask", "pixel_attention_mask")


class PassThrough(nn.Module):
    """Stands where a pooling module was: returns its first input."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


class EncoderDict(nn.ModuleDict):
    """`nn.ModuleDict` that passes on what `PreTrainedModel.post_init` collects from *direct* children only.

    Without it the encoders' tied weights, modules kept in float32 and no-split modules were lost to the whole model.
    """

    def __init__(self, encoders: Mapping[str, PreTrainedModel]) -> None:
        super().__init__(encoders)
        self.all_tied_weights_keys = {
            f"{name}.{target}": f"{name}.{source}"
            for name, encoder in encoders.items()
            for target, source in encoder.all_tied_weights_keys.items()
        }
        self._keys_to_ignore_on_save = {
            f"{name}.{key}" for name, encoder in encoders.items() for key in encoder._keys_to_ignore_on_save or ()
        }
        for attribute in (
            "_keep_in_fp32_modules",
            "_keep_in_fp32_modules_strict",
            "_no_split_modules",
            "_skip_keys_device_placement",
            "_keys_to_ignore_on_load_unexpected",
            "_keys_to_ignore_on_load_missing",
        ):
            found = [getattr(encoder, attribute, None) or () for encoder in encoders.values()]
            setattr(self, attribute, set().union(*found))


# ------------------------------------------------------------------------------------------- which module encodes it


def tower_config(modality: str, config: PreTrainedConfig, tower: str | None = None) -> PreTrainedConfig:
    """Reduces a dual encoder's configuration (CLIP, SigLIP, CLAP, ...) to that of the tower for `modality`.

    Args:
        modality: Name of the modality; words such as "image", "text", "speech" in it choose the tower.
        config: Any configuration; one without towers is returned as it is.
        tower: `"vision"`, `"text"` or `"audio"` (also `"vision_model"`, ...): chooses instead of the name. Of a model
            of ours, the modality whose encoder it is.

    Raises:
        ValueError: The name does not say which tower, or there is no such tower.
    """
    if isinstance(config, CrossModalConfig):
        return config.encoders[own_modality(modality, config, tower)]
    if isinstance(encoder := getattr(config, "encoder", None), PreTrainedConfig):  # VisionEncoderDecoder and kin
        return encoder
    towers = {
        kind: getattr(config, f"{kind}_config")
        for kind in TOWER_WORDS
        if isinstance(getattr(config, f"{kind}_config", None), PreTrainedConfig)
    }
    if not towers:
        return config
    if tower is None:
        wanted = [kind for kind in towers if any(word in modality.lower() for word in TOWER_WORDS[kind])]
    else:
        wanted = [kind for kind in towers if kind == tower.removesuffix("_config").removesuffix("_model")]
    if len(wanted) != 1:
        raise ValueError(
            f"Got a {config.model_type!r} model with towers {list(towers)} as the encoder of modality {modality!r}, "
            f"expected a name or a tower that says which one. Write {{{modality!r}: {{'checkpoint': ..., "
            f"'tower': {next(iter(towers))!r}}}}} or a name with one of the words "
            f"{[word for kind in towers for word in TOWER_WORDS[kind]]} in it."
        )
    return towers[wanted[0]]


def own_modality(modality: str, config: CrossModalConfig, tower: str | None = None) -> str:
    """The modality of a model of ours whose encoder is wanted for `modality`: the one of that name, or `tower`.

    Raises:
        ValueError: It has none of that name.
    """
    wanted = modality if tower is None else tower
    if wanted not in config.encoders:
        raise ValueError(
            f"Got a model with the modalities {config.modalities} for the encoder of {modality!r}: it has no "
            f"{wanted!r}.{nearest(wanted, config.modalities)} Write {{{modality!r}: {{'checkpoint': ..., 'tower': "
            f"{config.modalities[0]!r}}}}} to take the encoder of another modality."
        )
    return wanted


def encoder_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that encodes with this configuration: AutoModel's, a tower's, or the encoder of an encoder-decoder.

    It is looked up in the package that defines the configuration, never in code from the Hub.

    Raises:
        ValueError: No such class.
    """
    prefix = type(config).__name__.removesuffix("Config")
    encoder_names = (f"{prefix}Encoder", f"{prefix}Stack")
    stored = (config.architectures or [""])[0]  # the encoder of an encoder-decoder does not look like one by itself
    if config.is_encoder_decoder or stored in encoder_names:
        module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
        candidates = [getattr(module, name, None) for name in encoder_names]
    else:
        candidates = [_model_class(config)]
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, PreTrainedModel) and candidate is not PreTrainedModel:
            return candidate
    raise ValueError(
        f"Found no encoder for a configuration of type {type(config).__name__} (model_type {config.model_type!r}). "
        "Expected one that AutoModel loads; code of your own is registered with AutoModel.register(config, model)."
    )


def _model_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    if type(config) in MODEL_MAPPING:
        mapped = MODEL_MAPPING[type(config)]
        return mapped[0] if isinstance(mapped, tuple) else mapped
    # SigLIP's text tower and CLAP's towers, among others, are not known to AutoModel, but all are named alike.
    return getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """Builds an encoder with fresh weights, without the parts that `last_hidden_state` does not need."""
    cls = encoder_class(config)
    if cls.__name__.endswith("Stack"):  # T5 and kin: the stack is told that it is the encoder
        config.is_decoder, config.use_cache = False, False
    implementation = config._attn_implementation
    if isinstance(implementation, str) and (
        (implementation == "sdpa" and not cls._supports_sdpa)
        or ("flash" in implementation and not cls._supports_flash_attn)
    ):
        config._attn_implementation = None  # the encoder's own default, where it cannot do as the model was asked to
    return _trim(cls(config))


def load_encoder(modality: str, source: Any, dtype: torch.dtype, **hub_kwargs: Any) -> PreTrainedModel:
    """Loads the encoder of one modality.

    Args:
        modality: Its name, for the choice of a tower and for messages.
        source: Hub id or local path, `{"checkpoint": id or path, "tower": ..., **from_pretrained_kwargs}`, a
            configuration (fresh weights), or a model instance, which is taken over, not copied.
        dtype: Of the weights.
        **hub_kwargs: `token`, `revision`, `trust_remote_code`.

    Raises:
        ValueError: `source` is none of these, or weights of the encoder are missing from the checkpoint.
    """
    tower = None
    if isinstance(source, Mapping) and "checkpoint" in source:
        hub_kwargs = {**hub_kwargs, **source}
        source, tower = hub_kwargs.pop("checkpoint"), hub_kwargs.pop("tower", None)
        if {"dtype", "torch_dtype"} & hub_kwargs.keys():
            raise ValueError(f"encoders: {modality!r} names a dtype of its own; it is one for all weights.")
    if isinstance(source, PreTrainedConfig):
        return _to_dtype(build_encoder(tower_config(modality, source, tower)), dtype)
    missing: set[str] = set()
    if isinstance(source, PreTrainedModel):
        model = source
    elif isinstance(source, str) or hasattr(source, "__fspath__"):
        with named(f"encoders: {modality!r}", source):
            model, missing = _load_checkpoint(source, dtype, **hub_kwargs)
    else:
        raise ValueError(
            f"Got {source!r:.80} as the encoder of modality {modality!r}, expected a Hub id, a path, "
            "{'checkpoint': id, 'tower': ...}, a configuration or a model."
        )
    path, encoder = "", model
    if isinstance(model.config, CrossModalConfig):
        name = own_modality(modality, model.config, tower)
        encoders: Any = model.base_model.encoders
        path, encoder = f"encoders.{name}", encoders[name]
    elif not model.is_remote_code():  # of code from the Hub we know nothing but what AutoModel made of it
        cls = encoder_class(tower_config(modality, model.config, tower))
        found = [(path, part) for path, part in model.named_modules() if type(part) is cls]
        if not found:
            raise ValueError(
                f"Got a {type(model).__name__} as the encoder of modality {modality!r}, expected a {cls.__name__} or "
                f"a model with one inside. Pass the {cls.__name__} itself."
            )
        path, encoder = found[0]
    encoder = _trim(encoder)
    encoder.config.architectures = [type(encoder).__name__]
    lost = sorted(set(dict(encoder.named_parameters())) & {key.removeprefix(f"{path}.") for key in missing})
    if lost:
        raise ValueError(
            f"Checkpoint {source!r} has no weights for {len(lost)} parameters of the {modality!r} encoder "
            f"{type(encoder).__name__}, for example {lost[:3]}. Is it a checkpoint of another architecture?"
        )
    return _to_dtype(encoder, dtype)


def _to_dtype(encoder: Any, dtype: torch.dtype) -> PreTrainedModel:
    if getattr(encoder, "quantization_method", None) is not None:
        return encoder  # its weights are integers, and upstream refuses to cast them
    return encoder.to(dtype)  # upstream's decorator hides the signature of `to`


def _load_checkpoint(source: Any, dtype: torch.dtype, **hub_kwargs: Any) -> tuple[PreTrainedModel, set[str]]:
    # A pretraining head that we drop, or a pooler that the checkpoint never had, is no news for the user: upstream's
    # report on them is kept quiet, and `load_encoder` checks for itself that nothing it needs is missing.
    config = AutoConfig.from_pretrained(source, **hub_kwargs)
    has_remote_code = "AutoModel" in (getattr(config, "auto_map", None) or {})
    loader: Any = AutoModel if has_remote_code else _model_class(config) or AutoModel
    if loader is not AutoModel:
        hub_kwargs.pop("trust_remote_code", None)
    in_config = {*config.to_dict(), *config.attribute_map} - {"quantization_config"}  # `AutoConfig` has set those
    hub_kwargs = {key: value for key, value in hub_kwargs.items() if key not in in_config}
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        model, info = loader.from_pretrained(
            source, config=config, dtype=dtype, output_loading_info=True, **hub_kwargs
        )
    except TypeError as error:
        for key in hub_kwargs:
            if f"unexpected keyword argument {key!r}" in str(error):
                hint = nearest(key, ["tower", "subfolder", "revision", *in_config])
                raise ValueError(f"Checkpoint {str(source)!r}: there is no option {key!r}.{hint}") from error
        raise
    finally:
        transformers.logging.set_verbosity(verbosity)
    return model, set(info["missing_keys"])


def _trim(encoder: PreTrainedModel) -> PreTrainedModel:
    for name in POOLING_MODULES.get(encoder.config.model_type, ("pooler",)):
        module = getattr(encoder, name, None)
        if isinstance(module, nn.Module) and any(True for _ in module.parameters()):
            setattr(encoder, name, PassThrough())
    for name, parameter in encoder.named_parameters():
        if name.endswith("mask_token"):  # of masked pretraining (DINOv2, BEiT): never an input here
            parameter.requires_grad_(False)
    if encoder.config.model_type == "vit_mae":  # else it reads a quarter of the patches, drawn at random, in eval too
        encoder.config.mask_ratio = 0.0
    return encoder


# -------------------------------------------------------------------------------------------- from inputs to tokens


def encode(
    modality: str, encoder: PreTrainedModel, inputs: Mapping[str, Tensor], output_hidden_states: bool = False
) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:
    """Runs an encoder and brings what it returns to one form.

    Args:
        modality: Name, for messages.
        encoder: A `PreTrainedModel`, called once.
        inputs: What the modality's processor returns, without `present`.
        output_hidden_states: Whether to ask the encoder for those of all its layers.

    Returns:
        Tokens `[B, T, D]`, mask `BoolTensor[B, T]` (True: a real token), hidden states or None.

    Raises:
        ValueError: The encoder's main input is missing.
    """
    inputs = dict(inputs)
    main_name = encoder.main_input_name
    if main_name not in inputs:
        raise ValueError(
            f"Modality {modality!r} got inputs {sorted(inputs)}, expected {main_name!r}.{nearest(main_name, inputs)} "
            "Build the inputs with CrossModalProcessor, or with the encoder's own processor."
        )
    mask_name = next((name for name in MASK_NAMES if inputs.get(name) is not None), None)
    input_mask = inputs[mask_name].bool() if mask_name else None
    if mask_name is not None and input_mask is not None:
        # A row without any real input would be softmax over nothing in the encoder. It sees its padding instead; its
        # tokens are masked below.
        seen = input_mask | ~input_mask.any(dim=1, keepdim=True)
        inputs[mask_name] = seen.to(inputs[mask_name].dtype)
        if getattr(encoder.config, "feat_extract_norm", "") == "group":
            # wav2vec2-base and kin were pretrained without mask (their feature extractors have
            # return_attention_mask=False), so the encoder gets none. The fusion still leaves padded frames out.
            del inputs[mask_name]
    num_rows = inputs[main_name].shape[0]  # `len` would fix the batch size of an exported graph
    if inputs[main_name].ndim == 5 and _reads_frames(encoder.config):
        inputs[main_name] = inputs[main_name].flatten(0, 1)  # [B, frames, C, H, W] -> [B * frames, C, H, W]

    kwargs: dict[str, Any] = {"output_hidden_states": True} if output_hidden_states else {}
    kwargs |= _without_time_masks(encoder, inputs[main_name])
    kwargs |= _patches_in_order(encoder, inputs[main_name])
    output = encoder(**inputs, **kwargs)
    hidden = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
    if hidden is None:
        raise ValueError(
            f"The encoder of modality {modality!r}, a {type(encoder).__name__}, gives {list(output)} and no "
            "last_hidden_state, so there are no tokens to fuse. Choose an encoder that gives them (BERT, ViT, ...)."
        )
    if hidden.ndim == 4:  # feature map [B, D, height, width]
        hidden = hidden.flatten(2).transpose(1, 2)
    if hidden.shape[0] != num_rows:
        hidden = hidden.reshape(num_rows, -1, hidden.shape[-1])  # the frames' tokens, one after the other
    if input_mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    else:
        mask = _token_mask(encoder, input_mask, hidden.shape[1])
    return hidden, mask, getattr(output, "hidden_states", None)


def _without_time_masks(encoder: PreTrainedModel, audio: Tensor) -> dict[str, Tensor]:
    """No SpecAugment for a batch that is shorter than one of its masks (0.2 s), where upstream raises."""
    config: Any = encoder.config
    output_lengths: Any = getattr(encoder, "_get_feat_extract_output_lengths", None)
    masks = encoder.training and bool(getattr(config, "mask_time_prob", 0))
    if not masks or output_lengths is None or "mask_time_indices" not in signature(encoder.forward).parameters:
        return {}
    num_frames = int(output_lengths(audio.shape[1]))
    if num_frames >= config.mask_time_length:
        return {}
    return {"mask_time_indices": torch.zeros((audio.shape[0], num_frames), dtype=torch.bool, device=audio.device)}


def _patches_in_order(encoder: PreTrainedModel, pixels: Tensor) -> dict[str, Tensor]:
    """ViT-MAE shuffles its patches by noise, which it draws unless it is given some: then they stay in their order."""
    if encoder.config.model_type != "vit_mae":
        return {}
    num_patches = (pixels.shape[-2] // encoder.config.patch_size) * (pixels.shape[-1] // encoder.config.patch_size)
    return {"noise": torch.arange(num_patches, device=pixels.device).expand(pixels.shape[0], -1)}


def _reads_frames(config: PreTrainedConfig) -> bool:
    """Whether the encoder takes single images: then a video is its frames. X-CLIP wants its frames flattened too."""
    is_video_model = any(hasattr(config, name) for name in ("num_frames", "frames_per_clip", "tubelet_size"))
    return not is_video_model or config.model_type == "xclip_vision_model"


def _token_mask(encoder: PreTrainedModel, input_mask: Tensor, num_tokens: int) -> Tensor:
    """Brings a mask `[B, input length]` over samples or spectrogram frames to the encoder's tokens `[B, T]`."""
    if input_mask.shape[1] == num_tokens:
        return input_mask
    positions = torch.arange(num_tokens, device=input_mask.device)
    output_lengths: Any = getattr(encoder, "_get_feat_extract_output_lengths", None)
    if output_lengths is not None:  # wav2vec2, HuBERT, WavLM, W2V-BERT, Whisper, ...
        lengths = output_lengths(input_mask.sum(dim=1)).to(torch.long)
        # Audio shorter than one frame still has one. A row without any sample has none.
        return (positions < lengths.clamp(min=1)[:, None]) & input_mask.any(dim=1, keepdim=True)
    # Any other subsampling: a token is real if the input at its place is.
    return input_mask[:, positions * input_mask.shape[1] // num_tokens]
