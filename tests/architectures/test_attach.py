"""`disentangle(model)`: what a user need not say, and what is said to a user who said something wrong."""

from __future__ import annotations

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_dgl import disentangle
from hf_dgl.architectures.attach import found_by_data_flow
from hf_dgl.architectures.lookup import modalities_of
from hf_dgl.models import CrossModalForSequenceClassification
from tests.architectures.test_matrix import quietly_training
from tests.architectures_tiny import TINY
from tests.oracle import Concat, gradients, make_toy, max_difference, toy_batch


@pytest.mark.parametrize(
    "name", ["CrossModalForSequenceClassification", "FlavaForSequenceClassification", "LxmertForQuestionAnswering"]
)
def test_a_known_class_needs_no_declaration(name):
    found = {}
    for modalities in (None, "table"):
        model, batch = TINY[name]()
        with disentangle(model, modalities and modalities_of(model)) as handle:
            quietly_training(model)(**batch)["loss"].backward()
            found[modalities] = handle.partition.owners
    assert found[None] == found["table"]


def test_what_suits_a_known_class_is_done_and_told(caplog):
    """As in `DGLTrainer`, whose default method of LXMERT is `multimodal_truncation`."""
    model, batch = TINY["LxmertForQuestionAnswering"]()
    with caplog.at_level(logging.WARNING, "hf_dgl"), disentangle(model) as handle:
        assert handle.unimodal_to_fusion
    assert "LxmertForQuestionAnswering: `unimodal_to_fusion=True`, which suits it" in caplog.text
    with disentangle(model, unimodal_to_fusion=False) as handle:
        assert not handle.unimodal_to_fusion
    with disentangle(model, modalities_of(model)) as handle:
        assert not handle.unimodal_to_fusion
    flava, _ = TINY["FlavaForSequenceClassification"]()
    with disentangle(flava) as handle:
        assert not handle.unimodal_to_fusion


def test_a_class_of_ones_own_derived_from_ours_is_known(image_text_batch):
    class Mine(CrossModalForSequenceClassification):
        pass

    model, batch = TINY["CrossModalForSequenceClassification"]()
    with disentangle(Mine(model.config)) as handle:
        assert handle.check(batch).passed


def test_an_unknown_class_is_told_what_to_type():
    model = make_toy(Concat)
    with pytest.raises(ValueError, match=r"disentangle\(model, 'auto', example_batch=batch\)"):
        disentangle(model)
    with disentangle(model, "auto", example_batch=toy_batch(model)) as handle:
        assert set(handle.partition.modalities) == {"image", "text"}


@pytest.mark.parametrize("name", ["CLIPModel", "VisualBertForMultipleChoice"])
def test_what_the_table_refuses_is_refused_to_auto_too(name):
    """VisualBERT's choices differ in their text alone: the image's gradient is 1e-19, which looks exact."""
    model, batch = TINY[name]()
    for modalities in (None, "auto"):
        with pytest.raises(ValueError, match=f"^{name}: .*Use "):
            disentangle(model, modalities, example_batch=batch)


def test_a_forward_of_ones_own_is_not_refused_with_its_base():
    model, batch = TINY["CLIPModel"]()

    class WithHead(type(model)):
        def forward(self, labels=None, **inputs):
            out = super().forward(**inputs)
            features = torch.cat([out.text_model_output[1], out.vision_model_output[1]], -1)
            return {"loss": nn.functional.cross_entropy(features[:, :3] + features[:, -3:], labels)}

    del batch["return_loss"]
    found = found_by_data_flow(WithHead(model.config), {**batch, "labels": torch.tensor([0, 1, 2])})
    assert found["image"].encoder == ("vision_model",)


# ---- short names ----


@pytest.mark.parametrize("lora", [False, True])
def test_names_of_the_table_stand_for_paths(lora):
    model, batch = TINY["CrossModalForSequenceClassification"]()
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]))
    with disentangle(model, {"image": "image", "words": "text"}) as handle:
        assert list(handle.partition.modalities) == ["image", "words"]
        assert set(handle.check(batch).leak) == {"image", "words"}
        owners = handle.partition.owners
        quietly_training(model)(**batch)["loss"].backward()
        short = gradients(model)
    model.zero_grad()
    with disentangle(model) as handle:
        assert {name: {"words": "text"}.get(next(iter(of)), "image") for name, of in owners.items() if of} == {
            name: next(iter(of)) for name, of in handle.partition.owners.items() if of
        }
        model(**batch)["loss"].backward()
    assert max_difference(short, gradients(model)) == 0


def test_a_path_goes_before_a_name():
    class Model(Concat):
        def build(self):
            super().build()
            self.image = nn.Linear(6, 6)

    with disentangle(make_toy(Model), {"image": "image"}) as handle:
        assert list(handle.partition.encoders["image"]) == ["image"]


def test_a_wrong_name_gets_the_nearest_path():
    model, _ = TINY["CrossModalForSequenceClassification"]()
    with pytest.raises(ValueError, match="no module 'encoders.imag': did you mean 'cross_modal.encoders.image'"):
        disentangle(model, {"image": "encoders.imag"})


# ---- encoders that are never called ----


def test_a_container_is_refused_at_once():
    model, _ = TINY["CrossModalForSequenceClassification"]()
    with pytest.raises(ValueError, match=r"is a \w+, which has no forward .*'cross_modal.encoders.image'"):
        disentangle(model, {"image": "cross_modal.encoders"})
    bridge, _ = TINY["BridgeTowerForImageAndTextRetrieval"]()
    with pytest.raises(ValueError, match=r"is a ModuleList, .*\['bridgetower.text_model.encoder.layer.\*'\]"):
        disentangle(bridge, {"text": "bridgetower.text_model.encoder.layer"})


def test_an_encoder_that_is_never_called_is_told_with_those_that_are():
    """At once where there is a batch to look at, else at the first step."""
    model, batch = TINY["BridgeTowerForImageAndTextRetrieval"]()
    towers = {"image": "vision_model", "text": "text_model"}
    told = r"vision_model', an encoder.*is never called.*visual.embeddings', .*visual.transformer.resblocks.\*'"
    with pytest.raises(ValueError, match=told):
        disentangle(model, towers, example_batch=batch)
    assert not model._forward_hooks
    with disentangle(model, towers), pytest.raises(ValueError, match=told):
        quietly_training(model)(**batch)
    assert not any(module._forward_hooks for module in model.modules())


def test_an_encoder_with_nothing_called_below_it():
    class Spare(Concat):
        def build(self):
            super().build()
            self.enc_spare = nn.Linear(5, 6)

    model = make_toy(Spare)
    with pytest.raises(ValueError, match=r"Nor is anything below it.*calls \['enc_image', 'enc_text', 'head'\]"):
        disentangle(model, {"image": "enc_spare", "text": "enc_text"}, example_batch=toy_batch(model))


def test_a_batch_to_look_at_leaves_no_trace():
    model = make_toy(Concat)
    state = torch.get_rng_state()
    with disentangle(model, model.declared(), example_batch=toy_batch(model)) as handle:
        assert "encoder output reused" in handle.explain()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
