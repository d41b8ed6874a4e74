from __future__ import annotations

import pytest
from torch import nn

from hf_dgl.method.modalities import Modality, resolve


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.text_model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.cls_token = nn.Parameter(nn.Linear(1, 1).weight.detach())
        self.head = nn.Linear(4, 2)


def test_three_spellings_mean_the_same():
    expected = Modality(encoder=["vision_model"])
    assert Modality.parse("vision_model") == Modality.parse(["vision_model"]) == expected
    assert Modality.parse({"encoder": "vision_model"}) == Modality.parse(expected) == expected


def test_patterns_move_parameters_between_groups():
    partition = resolve(
        Model(),
        {
            "image": {"encoder": ["vision_model.*"], "parameters": ["cls_"], "exclude": [r"vision_model\.1\.bias"]},
            "text": "text_model",
        },
    )
    assert set(partition.encoders["image"]) == {"vision_model.0", "vision_model.1"}
    assert "cls_token" in partition.parameter_names("image")
    assert "vision_model.1.bias" in partition.parameter_names("fusion")


def test_a_wrappers_prefix_need_not_be_written():
    wrapped = nn.ModuleDict({"base_model": nn.ModuleDict({"model": Model()})})
    partition = resolve(wrapped, {"image": "vision_model", "text": "text_model.*"})
    assert set(partition.encoders["image"]) == {"base_model.model.vision_model"}
    assert len(partition.encoders["text"]) == 2


def test_behind_a_prefix_the_outermost_module_of_that_name_is_meant():
    """An encoder may hold a model of its own whose encoder has the same path (Nemotron 3.5 Transcribe)."""
    model = Model()
    model.vision_model.append(nn.ModuleDict({"vision_model": nn.Linear(2, 2)}))
    wrapped = nn.ModuleDict({"base_model": nn.ModuleDict({"model": model})})
    partition = resolve(wrapped, {"image": "vision_model"})
    assert set(partition.encoders["image"]) == {"base_model.model.vision_model"}


def test_of_two_prefixes_side_by_side_neither_is_taken():
    with pytest.raises(ValueError, match="no module 'vision_model'"):
        resolve(nn.ModuleDict({"one": Model(), "other": Model()}), {"image": "vision_model"})


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"image": {"encodr": "vision_model"}}, "Unknown field 'encodr' of a modality: did you mean 'encoder'"),
        ({"image": {"encoder": []}}, "at least one module path"),
        ({"image": {"encoder": "vision_model", "absent": "none"}}, "`absent` must be"),
        ({"image": {"encoder": "vision_model", "absent": "omit"}}, "name them in `inputs`"),
        (["image", "text"], "expected a dict such as"),
        ({"image": "model.vision_model"}, "no module 'model.vision_model': did you mean 'vision_model'"),
        ({"image": {"encoder": "vision_model", "parameters": ["cls_tokn$"]}}, "no parameter matches 'cls_tokn\\$'"),
        ({"image": {"encoder": "vision_model", "exclude": ["head"]}}, "matches none of its parameters"),
    ],
)
def test_mistakes(declared, message):
    with pytest.raises(ValueError, match=message):
        resolve(Model(), declared)
