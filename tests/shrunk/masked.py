"""Bidirectional encoders with a label in each of the text's places: ViLT, VisualBERT, LXMERT."""

from __future__ import annotations

from typing import Any

import torch

from .build import VOCAB, shrunk

ROWS, REGIONS = 3, 5
MASK_TOKEN = 4


def masked(length: int = 8) -> dict[str, torch.Tensor]:
    """`[CLS]`, words of which two are masked and asked for; row 1 is padded."""
    ids = torch.randint(5, VOCAB, (ROWS, length))
    labels = torch.full_like(ids, -100)
    labels[:, 2:4] = ids[:, 2:4]
    ids[:, 0], ids[:, 2:4] = 1, MASK_TOKEN
    mask = torch.ones_like(ids)
    ids[1, -2:], mask[1, -2:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _vilt() -> Any:
    return {"image_size": 16}, {"pixel_values": torch.randn(ROWS, 3, 16, 16)}


@shrunk("ViltForMaskedLM")
def _vilt_masked() -> Any:
    config, image = _vilt()
    return config, {**masked(), **image}


@shrunk("ViltForTokenClassification")
def _vilt_tokens() -> Any:
    config, image = _vilt()
    batch = masked()
    kinds = torch.randint(2, batch["labels"].shape)
    return config, {**batch, **image, "labels": torch.where(batch["attention_mask"].bool(), kinds, -100)}


@shrunk("VisualBertForPreTraining")
def _visual_bert() -> Any:
    batch = masked()
    no_word = torch.full((ROWS, REGIONS), -100)
    return {"visual_embedding_dim": 10}, {
        **batch,
        "labels": torch.cat([batch["labels"], no_word], 1),
        "sentence_image_labels": torch.tensor([0, 1, 1]),
        "visual_embeds": torch.randn(ROWS, REGIONS, 10),
        "visual_attention_mask": torch.tensor([[1] * 5, [1] * 5, [1] * 3 + [0] * 2]),
    }


@shrunk("LxmertForPreTraining")
def _lxmert() -> Any:
    """All four tasks: masked words, masked regions, whether the two match, a question."""
    tasks = {"l_layers": 2, "x_layers": 2, "r_layers": 2, "num_qa_labels": 4}
    heads = {"visual_feat_dim": 10, "num_object_labels": 6, "num_attr_labels": 3}
    sure = torch.rand(ROWS, REGIONS)
    return {**tasks, **heads}, {
        **masked(),
        "visual_feats": torch.randn(ROWS, REGIONS, 10),
        "visual_pos": torch.rand(ROWS, REGIONS, 4),
        "matched_label": torch.tensor([0, 1, 1]),
        "ans": torch.tensor([0, 3, 2]),
        "obj_labels": {
            "obj": (torch.randint(6, (ROWS, REGIONS)), sure),
            "attr": (torch.randint(3, (ROWS, REGIONS)), sure),
            "feat": (torch.randn(ROWS, REGIONS, 10), sure),
        },
    }
