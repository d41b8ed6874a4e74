"""Exact gradients are not enough: every tier-A model learns a small task with its row's default, fused and alone.

A wrong idea of "absent" passes the gradient and leak checks, and ruins training: with the image's read-out left open,
BridgeTower's unimodal image loss was 1.45 where chance is 0.69; with it closed, 0.38.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hf_dgl.architectures.attach import disentangle
from hf_dgl.architectures.lookup import architecture_of, modalities_of
from hf_dgl.method.methods import METHODS
from tests.architectures_tiny import TINY
from tests.devices import put
from tests.tiers import slow_but

pytestmark = pytest.mark.device

TIER_A = [
    "CrossModalForSequenceClassification",
    "FlavaForSequenceClassification",
    "BridgeTowerForImageAndTextRetrieval",
    "LxmertForQuestionAnswering",
    "ModernVBertForSequenceClassification",
    "UltraVBertForSequenceClassification",
    "Gemma3ForSequenceClassification",
    "T5Gemma2ForSequenceClassification",
]
STEPS, ROWS, LEARNING_RATE = 150, 32, 3e-3
FIRST_WORD = 5  # the token of class 0; classes follow


def task(template: dict[str, Any], num_classes: int, rows: int, seed: int) -> dict[str, Any]:
    """Rows of a task in the form of `template`: either modality tells the class, with some noise, by itself."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (rows,), generator=draw)
    batch = {key: _like(key, value, labels, num_classes, draw) for key, value in template.items()}
    return put({**batch, "labels": labels})


def _like(key: str, value: Any, labels: torch.Tensor, num_classes: int, draw: torch.Generator) -> Any:
    if isinstance(value, dict):  # our own model's inputs, grouped by modality
        return {name: _like(name, entry, labels, num_classes, draw) for name, entry in value.items()}
    row = value[:1].cpu().expand(len(labels), *value.shape[1:]).clone()
    if key in ("pixel_values", "visual_feats"):
        patterns = torch.randn(num_classes, *value.shape[1:], generator=torch.Generator().manual_seed(7))
        strength = 4 / math.sqrt(value[0].numel())
        return strength * patterns[labels] + torch.randn(row.shape, generator=draw)
    if key == "input_ids":
        words = (row > 4) & (row < 50)  # no special tokens, no places of the image
        words[:, 0] = False  # `[CLS]`
        row[:, 0] = 1
        row[words] = torch.randint(FIRST_WORD + num_classes, 50, (int(words.sum()),), generator=draw)
        wrong = torch.rand(len(labels), generator=draw) < 0.2
        told = torch.where(wrong, torch.randint(num_classes, labels.shape, generator=draw), labels)
        row[:, -1] = FIRST_WORD + told
    return row


def num_classes_of(model: Any) -> int:
    config = model.config
    return config.num_qa_labels if config.model_type == "lxmert" else config.num_labels


def train(name: str, method: str | None) -> dict[str, tuple[float, float]]:
    """Loss over chance level, and accuracy, on fresh rows: `multimodal` and each modality alone."""
    torch.manual_seed(0)
    model, template = TINY[name]()
    model.config.problem_type = "single_label_classification"
    num_classes = num_classes_of(model)
    chosen = METHODS[method or architecture_of(model).method]
    handle = disentangle(
        model,
        modalities_of(model),
        alpha=1.0 if chosen.alpha is None else chosen.alpha,
        multimodal_to_encoders=chosen.multimodal_to_encoders,
        unimodal_to_fusion=chosen.unimodal_to_fusion,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    model.train()
    for step in range(STEPS):
        model(**task(template, num_classes, ROWS, seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    batch = task(template, num_classes, 256, seed=10_000)
    with torch.no_grad(), handle.unimodal_outputs():
        output = model(**batch)
    found = {"multimodal": output, **output["unimodal"]}
    return {key: _score(entry, batch["labels"], num_classes) for key, entry in found.items()}


def _score(output: Any, labels: torch.Tensor, num_classes: int) -> tuple[float, float]:
    logits = output["question_answering_score"] if "question_answering_score" in output else output["logits"]
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return float(loss) / math.log(num_classes), float((logits.argmax(-1) == labels).float().mean())


@pytest.mark.parametrize("name", slow_but("FlavaForSequenceClassification", of=TIER_A))
def test_learns_fused_and_alone(name: str) -> None:
    joint, default = train(name, "joint"), train(name, None)
    for modality, (loss, _) in default.items():
        assert loss < 0.95, f"{modality} stays at chance: {default}"
    assert default["multimodal"][1] > joint["multimodal"][1] - 0.06, (joint, default)
    alone = [modality for modality in default if modality != "multimodal"]
    gain = sum(default[modality][1] - joint[modality][1] for modality in alone)
    assert gain > -0.05, (joint, default)  # one seed of a small task: a point or two is noise
