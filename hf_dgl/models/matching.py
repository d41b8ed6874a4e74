"""BLIP and BLIP-2 with the loss of image-text matching: upstream has the pretrained head, but takes no labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval, BlipForImageTextRetrieval
from transformers.modeling_outputs import SequenceClassifierOutput


class BlipForImageTextMatching(BlipForImageTextRetrieval):
    r"""BLIP (arXiv 2201.12086): does the text belong to the image? Checkpoints of `BlipForImageTextRetrieval` load as
    they are, their matching head included.

    The contrastive projections are no part of this loss and are frozen.

    Example:

    >>> import torch
    >>> from transformers import BlipConfig
    >>> small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    >>> config = BlipConfig(
    ...     text_config={**small, "vocab_size": 50, "encoder_hidden_size": 16},
    ...     vision_config={**small, "image_size": 16, "patch_size": 8},
    ... )
    >>> model = BlipForImageTextMatching(config)
    >>> inputs = {"input_ids": torch.ones(2, 4, dtype=torch.long), "pixel_values": torch.ones(2, 3, 16, 16)}
    >>> model(**inputs, labels=torch.tensor([0, 1])).logits.shape
    torch.Size([2, 2])
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        _freeze(self.vision_proj, self.text_proj)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        r"""
        Args:
            input_ids, attention_mask: Text, `LongTensor[B, L]` each.
            pixel_values: Images, `FloatTensor[B, 3, H, W]`.
            labels: 1 where the text belongs to the image, else 0, `LongTensor[B]`.

        Returns:
            `logits` `FloatTensor[B, 2]`, and `loss` (cross-entropy) if there are labels.
        """
        image_BLD = self.vision_model(
            pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding
        ).last_hidden_state
        fused_BLD = self.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image_BLD,
            # Upstream builds this mask without a device, so its forward raises on a GPU.
            encoder_attention_mask=torch.ones(image_BLD.shape[:2], dtype=torch.long, device=image_BLD.device),
        ).last_hidden_state
        return _with_loss(self.itm_head(fused_BLD[:, 0]), labels)


class Blip2ForImageTextMatching(Blip2ForImageTextRetrieval):
    r"""BLIP-2 (arXiv 2301.12597): does the text belong to the image? Checkpoints of `Blip2ForImageTextRetrieval` load
    as they are, their matching head included.

    The contrastive projections are no part of this loss and are frozen.

    Example:

    >>> model = Blip2ForImageTextMatching.from_pretrained("Salesforce/blip2-itm-vit-g")  # doctest: +SKIP
    >>> model(input_ids=..., attention_mask=..., pixel_values=..., labels=torch.tensor([0, 1]))  # doctest: +SKIP
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        _freeze(self.vision_projection, self.text_projection)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        r"""
        Args:
            pixel_values: Images, `FloatTensor[B, 3, H, W]`.
            input_ids, attention_mask: Text, `LongTensor[B, L]` each, as `Blip2Processor` gives them (in newer
                checkpoints with one placeholder per query token in front).
            labels: 1 where the text belongs to the image, else 0, `LongTensor[B]`.

        Returns:
            `logits` `FloatTensor[B, 2]`, and `loss` (cross-entropy) if there are labels.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        output = super().forward(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_image_text_matching_head=True,
            return_dict=True,
        )
        return _with_loss(output.logits_per_image, labels)


def _freeze(*modules: torch.nn.Module) -> None:
    """DDP would wait for their gradients."""
    for module in modules:
        module.requires_grad_(False)


def _with_loss(logits: Tensor, labels: Tensor | None) -> SequenceClassifierOutput:
    loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
    return SequenceClassifierOutput(loss=loss, logits=logits)
