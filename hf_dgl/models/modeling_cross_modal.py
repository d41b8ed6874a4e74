"""[`CrossModalModel`]: pretrained encoders, one per modality, joined by a fusion over their tokens.

Shapes: B rows, T tokens, W fusion width, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple
from typing_extensions import Self

from .configuration_cross_modal import CrossModalConfig, encoder_width, nearest
from .encoders import EncoderDict, build_encoder, encode, load_encoder
from .fusion import FUSIONS, ModalityProjection, init_fusion_weights

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]


@dataclass
class CrossModalModelOutput(ModelOutput):
    """Output of [`CrossModalModel`].

    Args:
        pooler_output: `FloatTensor[B, F]`, the fused vector of each row. `F` depends on the fusion.
        present: `BoolTensor[B]`, whether any modality is there in the row.
        hidden_states: With `output_hidden_states=True`: `{modality: tuple of FloatTensor}` of the encoders.
    """

    pooler_output: Tensor | None = None
    present: Tensor | None = None
    hidden_states: dict[str, tuple[Tensor, ...]] | None = None


@dataclass
class CrossModalClassifierOutput(ModelOutput):
    """Output of [`CrossModalForSequenceClassification`], read like upstream's `SequenceClassifierOutput`.

    Args:
        loss: Scalar, with labels only: the mean over the rows that have a label and at least one modality.
        logits: `FloatTensor[B, C]`; for regression in the labels' units.
        hidden_states: With `output_hidden_states=True`: `{modality: tuple of FloatTensor}` of the encoders.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: dict[str, tuple[Tensor, ...]] | None = None


class CrossModalPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and the settings that both models share."""

    config: CrossModalConfig
    config_class = CrossModalConfig
    base_model_prefix = "cross_modal"
    main_input_name = "modalities"  # no single tensor: upstream's Trainer then leaves floating point operations at 0
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # losses are means over the batch: Trainer must divide them by accumulation steps
    _no_split_modules = ["FusionLayer", "ModalityProjection"]
    _supports_sdpa = True
    _supports_flash_attn = True  # for the encoders; see FusionAttention

    def __init__(self, config: CrossModalConfig, *inputs: Any, **kwargs: Any) -> None:
        if not config.encoders:
            raise ValueError(
                "Got a CrossModalConfig without encoders, expected at least one: "
                'CrossModalConfig(encoders={"image": ViTConfig(), "text": BertConfig()}).'
            )
        super().__init__(config, *inputs, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        init_fusion_weights(module, self.config.initializer_range)

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        encoders: Any = self.base_model.encoders
        for encoder in encoders.values():
            if not encoder.supports_gradient_checkpointing:  # CLAP, for one: upstream says that its layers cannot
                for module in encoder.modules():
                    if hasattr(module, "gradient_checkpointing"):
                        module.gradient_checkpointing = False

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Saves weights under the names that they have in the model.

        Upstream's default writes those of encoders (ViT, ...) under the names of older releases, and `Trainer` reads
        checkpoints without translating them back: a resumed run would start from encoders that were never trained.
        """
        # Where `trust_remote_code` finds the model with and without its head; upstream would name what is saved only.
        self.config.auto_map = {
            "AutoModel": "modeling_cross_modal.CrossModalModel",
            "AutoModelForSequenceClassification": "modeling_cross_modal.CrossModalForSequenceClassification",
        }
        super().save_pretrained(*args, **{"save_original_format": False, **kwargs})

    @classmethod
    def from_encoders(
        cls,
        encoders: Mapping[str, Any],
        *,
        token: str | bool | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        dtype: torch.dtype | str = torch.float32,
        **config_kwargs: Any,
    ) -> Self:
        r"""Builds a model around pretrained encoders; their weights are kept, the fusion's are new.

        Args:
            encoders: Per modality, in the order that the fusion will have: a Hub id or local path; a configuration
                (fresh weights); a model, which is taken over, not copied; or
                `{"checkpoint": id, "tower": "vision" | "text" | "audio", **from_pretrained_kwargs}`. Of a dual encoder
                (CLIP, SigLIP, CLAP, X-CLIP, ...) the tower that the modality's name implies is taken, of an
                encoder-decoder (Whisper, T5, ...) the encoder, of a model of ours that of the same modality. Poolers
                and projection heads are dropped.
            token: Hub token for private or gated checkpoints.
            revision: Branch, tag or commit of *all* checkpoints; for a single one write it in its dict.
            trust_remote_code: Whether code from the Hub may run. A model saved with such an encoder can be reloaded
                only where its classes are registered with `AutoConfig` and `AutoModel`.
            dtype: Of all weights. float32 is what training wants, whatever the checkpoints were saved in.
            **config_kwargs: Of [`CrossModalConfig`]: `num_labels`, `fusion_type`, `num_fusion_layers`, ...

        Raises:
            ValueError: No encoders, a tower that cannot be told, or a checkpoint without the encoder's weights.

        Example:

        >>> from transformers import BertConfig, ViTConfig
        >>> from hf_dgl.models import CrossModalForSequenceClassification
        >>> model = CrossModalForSequenceClassification.from_encoders(  # ids such as "google/vit-base-patch16-224" too
        ...     {"image": ViTConfig(num_hidden_layers=1), "text": BertConfig(num_hidden_layers=1)}, num_labels=10
        ... )
        >>> list(model.cross_modal.encoders)
        ['image', 'text']
        """
        if not encoders:
            raise ValueError('Got no encoders, expected at least one: from_encoders({"image": ..., "text": ...}).')
        dtype = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"Got dtype={dtype!r}, expected torch.float32, torch.bfloat16, ... or their names.")
        hub_kwargs = {"token": token, "trust_remote_code": trust_remote_code}
        if revision is not None:
            hub_kwargs["revision"] = revision
        loaded = {name: load_encoder(name, source, dtype, **hub_kwargs) for name, source in encoders.items()}
        if len({id(encoder) for encoder in loaded.values()}) < len(loaded):
            raise ValueError(
                f"Got one and the same model as encoder of two of {list(loaded)}, expected one for each, which is "
                "trained and saved by itself: copy.deepcopy(model)."
            )
        implementation = config_kwargs.pop("attn_implementation", None)
        config = CrossModalConfig(encoders={name: encoder.config for name, encoder in loaded.items()}, **config_kwargs)
        model = cls._from_config(config, encoders=loaded, dtype=dtype)
        if implementation is not None:
            model.set_attn_implementation(implementation)
        return model.eval()  # like `from_pretrained`


class CrossModalModel(CrossModalPreTrainedModel):
    r"""Encoders and fusion, without a head.

    Each encoder sits at `encoders.<modality>` and is called once per forward, if its modality is there; everything
    after its output (projection, fusion) is shared between modalities or meets them.

    Args:
        config: What to build.
        encoders: Encoders that exist already, one per modality of `config`. Default: built from `config`.
    """

    def __init__(self, config: CrossModalConfig, encoders: Mapping[str, PreTrainedModel] | None = None) -> None:
        super().__init__(config)
        if encoders is None:
            encoders = {name: build_encoder(sub_config) for name, sub_config in config.encoders.items()}
        else:  # their weights are as wanted: `post_init` must not initialise them again
            for encoder in encoders.values():
                for module in encoder.modules():
                    setattr(module, "_is_hf_initialized", True)  # noqa: B010  # upstream's flag, unknown to nn.Module
        self.encoders: Any = EncoderDict(encoders)
        self.projections = nn.ModuleDict(
            {name: ModalityProjection(config, encoder_width(sub)) for name, sub in config.encoders.items()}
        )
        self.fusion = FUSIONS[config.fusion_type](config)
        self.output_size: int = self.fusion.output_size  # type: ignore[assignment]  # width F of `pooler_output`
        self.post_init()

    @can_return_tuple
    def forward(self, output_hidden_states: bool | None = None, **modalities: Any) -> CrossModalModelOutput:
        r"""
        Args:
            output_hidden_states: Whether to return those of the encoders.
            **modalities: Per modality what its processor returns, for example
                `image={"pixel_values": FloatTensor[B, 3, H, W]}`. Absent from the batch: left out or None. Absent from
                single rows: `"present": BoolTensor[B]` beside the other inputs; what else these rows hold is not read.

        Raises:
            ValueError: An unknown modality, none at all, numbers of rows that differ, or an encoder's main input
                missing.
        """
        given = self._check(modalities)
        tokens: dict[str, Tensor] = {}
        masks: dict[str, Tensor] = {}
        hidden_states: dict[str, Any] = {}
        for name, inputs in given.items():
            inputs = dict(inputs)
            present = inputs.pop("present", None)
            encoded, mask, hidden_states[name] = encode(
                name, self.encoders[name], inputs, bool(output_hidden_states or self.config.output_hidden_states)
            )
            masks[name] = mask if present is None else mask & present.bool()[:, None]
            tokens[name] = self.projections[name](encoded)
        num_rows = {name: mask.shape[0] for name, mask in masks.items()}
        if any(number != next(iter(num_rows.values())) for number in num_rows.values()):
            raise ValueError(
                f"Got {num_rows} rows, expected as many of every modality. Where a row lacks a modality, keep the row "
                "and say so with 'present'."
            )
        present = torch.stack([mask.any(dim=1) for mask in masks.values()]).any(dim=0)
        has_hidden_states = any(states is not None for states in hidden_states.values())
        return CrossModalModelOutput(
            pooler_output=self.fusion(tokens, masks),
            present=present,
            hidden_states=hidden_states if has_hidden_states else None,
        )

    def _check(self, modalities: Mapping[str, Any]) -> dict[str, Mapping[str, Tensor]]:
        """The modalities that are there, in the model's order."""
        known = self.config.modalities
        # None is tolerated under any name: PEFT's task models pass `input_ids=None` and the like.
        given = {name: value for name, value in modalities.items() if value is not None}
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"Got modality {name!r}, this model has {known}.{nearest(name, known)}")
            if not isinstance(value, Mapping):
                raise ValueError(
                    f"Got {type(value).__name__} for modality {name!r}, expected a dict of its encoder's inputs: "
                    f"{name}={{{getattr(self.encoders[name], 'main_input_name', 'input')!r}: ...}}."
                )
        if not given:
            raise ValueError(f"Got no modality, expected at least one of {known}, for example {known[0]}={{...}}.")
        return {name: given[name] for name in known if name in given}


class CrossModalForSequenceClassification(CrossModalPreTrainedModel):
    r"""[`CrossModalModel`] with a linear classification or regression head.

    `config.problem_type` chooses the loss: `single_label_classification` (cross-entropy, labels `LongTensor[B]`),
    `multi_label_classification` (binary cross-entropy, labels `FloatTensor[B, C]`) or `regression` (mean squared
    error of labels standardised by `config.label_mean` and `label_std`, labels `FloatTensor[B]`, or `[B, C]`). Unset,
    it is inferred from the first labels as upstream does.

    Args:
        config: What to build.
        encoders: Encoders that exist already, one per modality of `config`. Default: built from `config`.

    Example:

    >>> import torch
    >>> from transformers import BertConfig, ViTConfig
    >>> from hf_dgl.models import CrossModalConfig, CrossModalForSequenceClassification
    >>> small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    >>> encoders = {"image": ViTConfig(image_size=16, patch_size=8, **small), "text": BertConfig(**small)}
    >>> config = CrossModalConfig(encoders=encoders, num_labels=3)
    >>> model = CrossModalForSequenceClassification(config)
    >>> text = {"input_ids": torch.ones(2, 5, dtype=torch.long)}
    >>> model(image={"pixel_values": torch.randn(2, 3, 16, 16)}, text=text).logits.shape
    torch.Size([2, 3])
    >>> model(text=text, labels=torch.tensor([0, 2])).loss.shape  # a missing modality is simply left out
    torch.Size([])
    """

    def __init__(self, config: CrossModalConfig, encoders: Mapping[str, PreTrainedModel] | None = None) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 2
        self.cross_modal = CrossModalModel(config, encoders)
        self.dropout = nn.Dropout(config.fusion_dropout)
        self.classifier = nn.Linear(self.cross_modal.output_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, labels: Tensor | None = None, output_hidden_states: bool | None = None, **modalities: Any
    ) -> CrossModalClassifierOutput:
        r"""
        Args:
            labels: See the class. Rows labelled -100 (single label) or without any modality do not count.
            output_hidden_states: Whether to return those of the encoders.
            **modalities: As in [`CrossModalModel`].

        Raises:
            ValueError: As in [`CrossModalModel`].
        """
        outputs = self.cross_modal(output_hidden_states=output_hidden_states, return_dict=True, **modalities)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        scale = self.label_scale(logits)
        loss = None
        if labels is not None:
            problem_type = self.config.problem_type or infer_problem_type(self.num_labels, labels)
            self.config.problem_type = problem_type
            if scale is not None:
                labels = (labels.to(scale[0]).view_as(logits) - scale[0]) / scale[1]
            loss = sequence_classification_loss(logits, labels, problem_type, outputs.present)
        if scale is not None:  # whoever reads them, reads labels' units
            logits = logits.to(scale[0]) * scale[1] + scale[0]
        return CrossModalClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)

    def label_scale(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation `[C]` by which a regression's labels are standardised; None where they are not.

        Args:
            like: On its device; in its dtype, but no less than float32.
        """
        if self.config.label_mean is None:
            return None
        dtype = torch.promote_types(like.dtype, torch.float32)
        scale = torch.tensor([self.config.label_mean, self.config.label_std], dtype=dtype, device=like.device)
        return scale[0], scale[1]


def infer_problem_type(num_labels: int, labels: Tensor) -> ProblemType:
    """Upstream's rule: one output is regression, whole-number labels are classes, else several labels per row."""
    if num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def sequence_classification_loss(logits: Tensor, labels: Tensor, problem_type: str, present: Tensor) -> Tensor:
    """Mean loss over the rows that count, zero (with a graph) if there is none. Computed in float32 or wider.

    Args:
        logits: `[B, C]`.
        labels: As described at [`CrossModalForSequenceClassification`].
        problem_type: One of upstream's three.
        present: `BoolTensor[B]`, False for rows without any modality.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.to(logits.device)
    if problem_type == "single_label_classification":
        labels = labels.view(-1)
        row_losses = nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
        present = present & (labels != -100)
    else:
        labels = labels.to(logits.dtype).view_as(logits)
        elementwise = nn.functional.mse_loss if problem_type == "regression" else _bce
        row_losses = elementwise(logits, labels, reduction="none").mean(dim=-1)
    return row_losses.masked_fill(~present, 0.0).sum() / present.sum().clamp(min=1)


_bce = nn.functional.binary_cross_entropy_with_logits
