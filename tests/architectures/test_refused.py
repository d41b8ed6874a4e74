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
from tests.shrunk import SHRUNK
from tests.shrunk.build import IMAGE, VOCAB, asked, shrunk_config
from tests.shrunk.qwen_vl import MROPE

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


def glm_image():
    codes = {"embed_dim": 8, "num_embeddings": 32, "latent_channels": 16}
    sizes = {"vq_config": codes, "text_config": {**MROPE, "vision_vocab_size": VOCAB}}
    kind = transformers.GlmImageForConditionalGeneration
    vision = {"patch_size": 4, "spatial_merge_size": 1, "image_size": 16}
    model = kind(shrunk_config(kind.config_class, {**sizes, "vision_config": vision}))
    grids = {"image_grid_thw": torch.tensor([[1, 2, 2], [1, 4, 4]]), "images_per_sample": torch.tensor([2])}
    return model, {**asked([(IMAGE, 4)]), **grids, "pixel_values": torch.randn(4, 3 * 4 * 4)}


@pytest.mark.slow
def test_no_gradient_passes_through_codes():
    model, batch = glm_image()
    model(**batch).loss.backward()
    assert model.model.language_model.embed_tokens.weight.grad.any()
    assert all(p.grad is None for part in (model.model.visual, model.model.vqmodel) for p in part.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("left_out", ["input_ids", "input_features"])
def test_a_stream_of_sound_and_text_goes_together(left_out):
    kind = transformers.VoxtralRealtimeForConditionalGeneration
    model = kind(shrunk_config(kind.config_class, {"downsample_factor": 2}))
    ids = torch.randint(5, 50, (2, 4))
    batch = {"input_ids": ids, "input_features": torch.randn(2, 8, 16), "labels": ids}
    assert model(**batch).loss.isfinite()
    del batch[left_out]
    with pytest.raises(ValueError, match="exactly one of"):
        model(**batch)


@pytest.mark.slow
def test_the_base_model_of_ovis2_takes_labels_and_gives_no_loss():
    model, batch = SHRUNK["Ovis2ForConditionalGeneration"]()
    assert "labels" in batch and "loss" not in model.model(**batch)


@pytest.mark.slow
def test_phrases_point_to_nothing_without_regions():
    model, batch = SHRUNK["VisualBertForPreTraining"]()
    model = transformers.VisualBertForRegionToPhraseAlignment(model.config)
    rows, regions = batch["visual_attention_mask"].shape
    del batch["sentence_image_labels"]
    batch |= {
        "region_to_phrase_position": torch.full((rows, 1), 3),
        "labels": torch.rand(rows, 1, regions).softmax(-1),
    }
    assert model(**batch).loss > 0
    cut = ("visual_embeds", "visual_attention_mask")
    alone = {**batch, **{name: batch[name][:, :0] for name in cut}, "labels": batch["labels"][..., :0]}
    assert model(**alone).loss == 0
