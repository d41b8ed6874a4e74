"""The refused rows: each says why and what to do instead, and what it says is true."""

from __future__ import annotations

import re

import pytest
import torch
import transformers

import hf_dgl.models
from hf_dgl.architectures.attach import disentangle
from hf_dgl.architectures.lookup import ARCHITECTURES, architecture_of, modalities_of
from hf_dgl.architectures.refused import ROWS
from tests.architectures_tiny import TINY

MODEL_NAME = re.compile(r"\b[A-Z]\w*(?:For[A-Z]\w+|Model|Trainer)\b")


def known(name):
    return hasattr(transformers, name) or hasattr(hf_dgl.models, name)


@pytest.mark.parametrize("name", ROWS)
def test_each_names_a_real_class_a_reason_and_a_way_out(name):
    row = ARCHITECTURES[name]
    assert known(name), "renamed upstream?"
    assert row.refused.endswith(".")
    assert not row.partitions
    assert re.search(r"\b(Use|Train)\b", row.refused)
    named = set(MODEL_NAME.findall(row.refused)) - {name}
    assert named, "no class to use instead"
    for other in named:
        assert known(other), other
        assert not ARCHITECTURES[other].refused if other in ARCHITECTURES else other.endswith("Trainer"), other


@pytest.mark.parametrize("name", [name for name in TINY if name in ROWS])
def test_a_model_is_refused_with_those_words(name):
    model, _ = TINY[name]()
    with pytest.raises(ValueError, match=f"^{name}: ") as error:
        modalities_of(model)
    assert ROWS[name].refused in str(error.value)


def test_a_class_derived_from_a_refused_one_may_have_its_own_row():
    model, _ = TINY["BlipForImageTextMatching"]()
    assert architecture_of(model) is ARCHITECTURES["BlipForImageTextMatching"]
    plain = transformers.BlipForImageTextRetrieval(model.config)
    with pytest.raises(ValueError, match="BlipForImageTextMatching on the same checkpoint"):
        architecture_of(plain)


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel"])
def test_a_contrastive_loss_is_undefined_for_one_modality(name):
    model, batch = TINY[name]()
    for projection in ("text_projection", "visual_projection"):  # CLIP's have no bias; SigLIP has none of them
        if hasattr(model, projection):
            assert getattr(model, projection).bias is None
    towers = {"image": {"encoder": ["vision_model"]}, "text": {"encoder": ["text_model"]}}
    with disentangle(model, towers):
        model.training = True
        losses = model(**batch)["losses"]
    assert bool(torch.isfinite(losses["multimodal"]))
    assert not torch.isfinite(losses["image"])
    assert not torch.isfinite(losses["text"])


def test_text_is_no_input_of_a_speech_recogniser():
    model, batch = TINY["WhisperForConditionalGeneration"]()
    assert set(batch) == {"input_features", "labels"}
    with pytest.raises(ValueError, match="one input modality"):
        modalities_of(model)


def test_choices_that_differ_in_their_text_score_alike_without_it():
    """What the refusal of VisualBertForMultipleChoice says: no gradient would ever reach the image alone."""
    model, batch = TINY["VisualBertForMultipleChoice"]()
    without_text = {**batch, "input_ids": torch.ones_like(batch["input_ids"])}
    loss = model(**without_text)["loss"]
    torch.testing.assert_close(loss, torch.tensor(2.0).log())
    loss.backward()
    seen = model.visual_bert.embeddings.visual_projection.weight.grad
    assert float(seen.abs().max()) < 1e-6
