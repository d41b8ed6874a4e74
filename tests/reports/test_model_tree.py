from __future__ import annotations

import json

import pytest
import torch

from hf_dgl.analysis.inspection import example_batch, inspect_source, model_of_class
from hf_dgl.architectures import ARCHITECTURES, modalities_of
from hf_dgl.architectures.attach import disentangle
from hf_dgl.reports.model_picture import draw_model
from hf_dgl.reports.model_tree import inspect_model
from tests.architectures_tiny import TINY
from tests.oracle import TiedToHead, make_toy, toy_batch
from tests.recipes import tiny_recipe
from tests.tiny import tiny_model, tiny_processor


def nodes(node):
    yield node
    for part in node.parts:
        yield from nodes(part)


def test_numbers_add_up_and_nothing_is_counted_twice():
    model = TINY["BridgeTowerForImageAndTextRetrieval"]()[0]
    with disentangle(model, modalities_of(model)) as handle:
        found = inspect_model(handle)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert sum(group.parameters for group in found.groups.values()) == total
    assert sum(found.tree.sizes.values()) == total
    assert sum(group.share for group in found.groups.values()) == pytest.approx(1)
    for node in nodes(found.tree):
        if node.parts:
            for group in node.sizes:
                assert sum(part.sizes.get(group, 0) for part in node.parts) == node.sizes[group], node.path


def test_alike_layers_are_one_line_and_cuts_are_marked():
    model = TINY["LxmertForQuestionAnswering"]()[0]
    with disentangle(model, modalities_of(model)) as handle:
        found = inspect_model(handle)
    layers = next(node for node in nodes(found.tree) if node.path == "lxmert.encoder.layer.0")
    assert (layers.label, layers.repeats, layers.cut, layers.group) == ("0-1", 2, "text", "text")
    assert found.groups["image"].encoder == ["lxmert.encoder.visn_fc", "lxmert.encoder.r_layers.*"]


def test_tied_and_frozen_weights():
    model = make_toy(TiedToHead)
    model.enc_image.requires_grad_(False)
    with disentangle(model, model.declared()) as handle:
        found = inspect_model(handle)
    assert found.tied == [["enc_text.2.weight", "mixer.weight"]]
    assert found.groups["image"].trainable == 0 < found.groups["image"].parameters


def test_the_checks_and_the_reason_of_a_re_run():
    model = make_toy(TiedToHead)
    with disentangle(model, model.declared()) as handle:
        found = inspect_model(handle, toy_batch(model))
    assert found.passed and "no leak" in found.checks
    assert found.groups["image"].cut == "output reused"
    assert found.groups["text"].cut.startswith("runs again in its own pass: parameter")
    json.dumps(found.to_dict())


def test_a_leak_is_reported_not_raised():
    model = make_toy(TiedToHead)
    declared = model.declared()
    declared["text"]["encoder"] = ["enc_text.2"]  # what is before it reads the text, too
    declared["image"]["absent"] = lambda output: output * 2
    with disentangle(model, declared) as handle:
        found = inspect_model(handle, toy_batch(model))
    assert found.passed is False and "LEAK" in found.checks


@pytest.mark.parametrize("name", ["LxmertForQuestionAnswering", "ViltForQuestionAnswering"])
def test_a_class_is_inspected_without_weights(name):
    assert next(model_of_class(name).parameters()).is_meta
    found = inspect_source(name)
    assert found.model_class == name and found.groups["fusion"].parameters > 1_000_000
    assert found.method == ARCHITECTURES[name].method


def test_a_recipe_and_its_settings(tmp_path):
    import yaml

    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "out", freeze=["text"])))
    found = inspect_source(str(path), check=True)
    assert found.passed and found.groups["text"].trainable == 0


def test_a_saved_model_with_a_generated_batch(tmp_path):
    model, processor = tiny_model(("image", "text", "audio")), tiny_processor(("image", "text", "audio"))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert torch.isfinite(model(**example_batch(model, processor)).loss)
    assert inspect_source(str(tmp_path), check=True).passed


@pytest.mark.parametrize(
    ("source", "kwargs", "message"),
    [
        ("LxmertForQuestionAnswerin", {}, "did you mean 'LxmertForQuestionAnswering'"),
        ("LxmertForQuestionAnswering", {"check": True}, "needs weights"),
        ("LxmertForQuestionAnswering", {"partition": "by_names"}, "has no partition 'by_names'"),
        ("CLIPModel", {}, "CLIPModel: "),
        ("LxmertForQuestionAnswering", {"overrides": ["--seed", "1"]}, "Did not understand '--seed 1'"),
    ],
)
def test_mistakes(source, kwargs, message):
    with pytest.raises(ValueError, match=message):
        inspect_source(source, **kwargs)


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_picture(tmp_path, ending):
    pytest.importorskip("matplotlib")
    draw_model(inspect_source("LxmertForQuestionAnswering"), tmp_path / f"model.{ending}")
    assert (tmp_path / f"model.{ending}").stat().st_size > 5_000
