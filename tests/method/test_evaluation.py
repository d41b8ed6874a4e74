"""Scores of each modality alone cost a pass of the fusion each: every encoder runs once."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch

from hf_dgl import disentangle
from hf_dgl.inference import CrossModalPipeline
from hf_dgl.models.fusion import FUSIONS
from tests.oracle import Concat, TiedToHead, make_toy, toy_batch
from tests.tiny import tiny_batch, tiny_model, tiny_processor, tiny_rows

NAMES = ("image", "text")


def count_runs(model: Any, encoders: dict[str, Any]) -> collections.Counter[str]:
    """Counts how often the insides of each encoder run (an encoder that answers from memory does not run them)."""
    runs: collections.Counter[str] = collections.Counter()
    for name, encoder in encoders.items():
        inner = next(module for module in encoder.modules() if isinstance(module, torch.nn.Linear))
        inner.register_forward_hook(lambda *_, name=name: runs.update([name]))
    return runs


@pytest.mark.parametrize("fusion_type", FUSIONS)
def test_each_encoder_runs_once_before_any_training(fusion_type: str) -> None:
    model, batch = tiny_model(NAMES, fusion_type=fusion_type).eval(), tiny_batch(NAMES)
    alone = {name: model(**{name: batch[name]}).logits for name in NAMES}
    with disentangle(model) as handle, torch.no_grad(), handle.unimodal_outputs():
        model(**batch)  # the first batch decides
        runs = count_runs(model, dict(model.cross_modal.encoders))
        output = model(**batch)
    assert runs == {"image": 1, "text": 1}
    for name in NAMES:
        torch.testing.assert_close(output.unimodal[name].logits, alone[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "again"), [(Concat, 1), (TiedToHead, 2)])
def test_an_encoder_that_cannot_be_reused_runs_again(kind: Any, again: int) -> None:
    model = make_toy(kind).eval()
    batch = toy_batch(model)
    with disentangle(model, model.declared()) as handle, torch.no_grad(), handle.unimodal_outputs():
        first = model(**batch)
        runs: collections.Counter[str] = collections.Counter()
        model.enc_text.register_forward_hook(lambda *_: None)
        inner = next(module for module in model.enc_text.modules() if not list(module.children()))
        inner.register_forward_hook(lambda *_: runs.update(["text"]))
        second = model(**batch)
    assert runs["text"] == again
    for name in ("image", "text"):
        torch.testing.assert_close(
            first["unimodal"][name]["loss"], second["unimodal"][name]["loss"], rtol=0, atol=1e-12
        )


def test_frozen_encoders_and_inference_mode() -> None:
    model, batch = tiny_model(NAMES).eval(), tiny_batch(NAMES)
    expected = model(image=batch["image"]).logits.detach()
    model.requires_grad_(False)
    for context in (torch.no_grad, torch.inference_mode):
        with disentangle(model) as handle, context(), handle.unimodal_outputs():
            for _ in range(2):
                torch.testing.assert_close(model(**batch).unimodal["image"].logits, expected, rtol=0, atol=1e-6)


def test_a_pipeline_of_a_model_in_training() -> None:
    model = tiny_model(NAMES)
    pipeline = CrossModalPipeline(model, tiny_processor(NAMES))
    row = {name: tiny_rows(NAMES, 1)[0][name] for name in NAMES}
    before = pipeline(row)
    with disentangle(model):
        assert pipeline(row) == before
    assert not model._forward_hooks
