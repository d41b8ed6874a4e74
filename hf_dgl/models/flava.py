"""FLAVA with a classification head: upstream has the pretrained fusion, but no supervised loss on top of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import FlavaConfig, FlavaModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.flava.modeling_flava import FlavaPreTrainedModel

from .modeling_cross_modal import infer_problem_type, sequence_classification_loss


class FlavaForSequenceClassification(FlavaPreTrainedModel):
    r"""FLAVA's encoders and multimodal encoder (arXiv 2112.04482) with a linear head on the multimodal `[CLS]`.

    A missing modality is left out: the multimodal encoder then reads the other's tokens alone.

    Args:
        config: `num_labels` and `problem_type` say what is predicted. The head's dropout is
            `multimodal_config.hidden_dropout_prob`.

    Example:

    >>> import torch
    >>> from transformers import FlavaConfig
    >>> small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    >>> config = FlavaConfig(
    ...     text_config={**small, "vocab_size": 50},
    ...     image_config={**small, "image_size": 16, "patch_size": 8},
    ...     multimodal_config=small,
    ...     num_labels=3,
    ... )
    >>> model = FlavaForSequenceClassification(config)
    >>> model(input_ids=torch.ones(2, 4, dtype=torch.long)).logits.shape
    torch.Size([2, 3])
    """

    # Heads of pretraining, and parts of the towers that the fusion does not read.
    _keys_to_ignore_on_load_unexpected = [
        r"^(image_codebook|mim_head|mlm_head|itm_head|mmm_\w+_head)\.",
        r"_model\.(layernorm|pooler)\.",
        r"(image|text)_projection\.",
    ]

    def __init__(self, config: FlavaConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 2
        self.flava = FlavaModel(config)
        towers: list[Any] = [self.flava.image_model, self.flava.text_model]
        for tower in towers:
            tower.layernorm = nn.Identity()  # the multimodal encoder was trained on the states before it
            tower.pooler = None
        self.flava.multimodal_model.pooler = None
        del self.flava.image_projection, self.flava.text_projection  # of the contrastive loss
        # Likewise; DDP would wait for their gradients.
        self.flava.logit_scale.requires_grad_(False)
        if self.flava.image_model.embeddings.mask_token is not None:
            self.flava.image_model.embeddings.mask_token.requires_grad_(False)
        fusion: Any = config.multimodal_config
        self.dropout = nn.Dropout(fusion.hidden_dropout_prob)
        self.classifier = nn.Linear(fusion.hidden_size, self.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        r"""
        Args:
            input_ids, attention_mask, token_type_ids: Text, `LongTensor[B, L]` each; None: no text.
            pixel_values: Images, `FloatTensor[B, 3, H, W]`; None: no image.
            labels: Classes `LongTensor[B]`, multi-hot `FloatTensor[B, C]`, or quantities `FloatTensor[B]`.

        Raises:
            ValueError: if there is neither text nor image.
        """
        parts, masks = [], []
        if pixel_values is not None:
            image_BLD = self.flava.image_model(pixel_values=pixel_values, return_dict=True).last_hidden_state
            parts.append(self.flava.image_to_mm_projection(image_BLD))
            masks.append(torch.ones(image_BLD.shape[:2], dtype=torch.long, device=image_BLD.device))
        if input_ids is not None:
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            text = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
            text_BLD = self.flava.text_model(**text, return_dict=True).last_hidden_state
            parts.append(self.flava.text_to_mm_projection(text_BLD))
            masks.append(attention_mask)
        if not parts:
            raise ValueError("Got neither `pixel_values` nor `input_ids`, expected at least one of them.")
        fusion = self.flava.multimodal_model
        if fusion.use_cls_token:
            masks.insert(0, torch.ones_like(masks[0][:, :1]))
        fused_BLD = fusion(torch.cat(parts, 1), attention_mask=torch.cat(masks, 1), return_dict=True).last_hidden_state
        logits = self.classifier(self.dropout(fused_BLD[:, 0]))
        loss = None
        if labels is not None:
            problem_type = self.config.problem_type or infer_problem_type(self.num_labels, labels)
            self.config.problem_type = problem_type
            everyone = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
            loss = sequence_classification_loss(logits, labels, problem_type, everyone)
        return SequenceClassifierOutput(loss=loss, logits=logits)
