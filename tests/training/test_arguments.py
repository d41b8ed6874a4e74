"""`DGLTrainingArguments` as upstream's example scripts make them: from a command line, a dictionary, YAML and JSON."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass

import pytest
import yaml
from transformers import HfArgumentParser, Trainer

from hf_dgl.training.arguments import DGLTrainingArguments
from hf_dgl.training.trainer import DGLTrainer

EACH = {"image": 2.0, "text": 1.0}
BY_NAME = {"^head": 1e-3}

CASES = [
    # words of a command line, what YAML and JSON hold, the settings
    ("", {}, {"alpha": 1.0, "multimodal_to_encoders": None, "encoder_learning_rate": None, "freeze": None}),
    ("--alpha 2", {"alpha": 2}, {"alpha": 2.0}),
    ("--alpha 1e-1", {"alpha": "1e-1"}, {"alpha": 0.1}),
    (["--alpha", '{"image": 2, "text": 1}'], {"alpha": {"image": 2, "text": 1}}, {"alpha": EACH}),
    (["--alpha", "image=2 text=1"], {"alpha": "image=2 text=1"}, {"alpha": EACH}),
    ("--alpha image=2,text=1", {"alpha": "image=2,text=1"}, {"alpha": EACH}),
    ("--multimodal_to_encoders 0.5", {"multimodal_to_encoders": 0.5}, {"multimodal_to_encoders": 0.5}),
    (
        "--multimodal_to_encoders text=.5",
        {"multimodal_to_encoders": {"text": "0.5"}},
        {"multimodal_to_encoders": {"text": 0.5}},
    ),
    ("--encoder-learning-rate 1e-5", {"encoder_learning_rate": "1e-5"}, {"encoder_learning_rate": 1e-5}),
    (
        ["--learning_rate_mapping", '{"^head": 1e-3}'],
        {"learning_rate_mapping": BY_NAME},
        {"learning_rate_mapping": BY_NAME},
    ),
    (
        ["--learning_rate_mapping", "^head=1e-3 a=b$=2"],
        {"learning_rate_mapping": {"^head": "1e-3", "a=b$": 2}},
        {"learning_rate_mapping": {**BY_NAME, "a=b$": 2.0}},
    ),
    ("--freeze image fusion", {"freeze": ["image", "fusion"]}, {"freeze": ["image", "fusion"]}),
    ("--method joint", {"method": "joint"}, {"method": "joint", "clip_by_group": False}),
    (
        "--clip_by_group false --log_gradients",
        {"clip_by_group": False, "log_gradients": True},
        {"clip_by_group": False, "log_gradients": True},
    ),
    ("--remove_unused_columns true", {"remove_unused_columns": True}, {"remove_unused_columns": True}),
]


def parser():
    return HfArgumentParser(DGLTrainingArguments)


@pytest.mark.parametrize(("words", "values", "expected"), CASES, ids=[str(case[0]) for case in CASES])
def test_all_ways_give_the_same(tmp_path, words, values, expected):
    words = words.split() if isinstance(words, str) else words
    everything = {"output_dir": str(tmp_path), "report_to": "none", **values}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(everything))
    (tmp_path / "a.json").write_text(json.dumps(everything))
    ways = {
        "command line": parser().parse_args_into_dataclasses(["--output_dir", str(tmp_path), *words])[0],
        "dict": parser().parse_dict(everything)[0],
        "yaml": parser().parse_yaml_file(str(tmp_path / "a.yaml"))[0],
        "json": parser().parse_json_file(str(tmp_path / "a.json"))[0],
        "python": DGLTrainingArguments(**everything),
    }
    for way, found in ways.items():
        for name, value in expected.items():
            got = getattr(found, name)
            got = found.learning_rates_by_pattern() if name == "learning_rate_mapping" else got
            assert got == value and type(got) is type(value), (way, name)
        found.to_json_string()


@dataclass
class ModelArguments:
    name: str = "x"


def test_beside_other_arguments_as_in_the_examples():
    model, training, rest = HfArgumentParser((ModelArguments, DGLTrainingArguments)).parse_args_into_dataclasses(
        ["--name", "y", "--output_dir", "out", "--alpha", "3", "--other"], return_remaining_strings=True
    )
    assert (model.name, training.alpha, rest) == ("y", 3.0, ["--other"])


@pytest.mark.parametrize("words", [["--alpha", "much"], ["--alpha", "image=much"], ["--encoder_learning_rate", "[1]"]])
def test_what_is_no_number(words):
    with pytest.raises(ValueError, match=f"{words[0][2:]}: expected a number, or one per modality, got '"):
        parser().parse_args_into_dataclasses(["--output_dir", "out", *words])


def test_upstreams_arguments_stand_in_the_signature():
    upstream, ours = inspect.signature(Trainer).parameters, inspect.signature(DGLTrainer).parameters
    assert list(ours) == [*upstream, "modalities"]
    for name, parameter in upstream.items():
        assert (ours[name].kind, ours[name].default) == (parameter.kind, parameter.default), name
    for name in (
        "train",
        "evaluate",
        "predict",
        "evaluation_loop",
        "prediction_step",
        "create_optimizer",
        "save_model",
    ):
        wanted, got = (inspect.signature(getattr(cls, name)).parameters for cls in (Trainer, DGLTrainer))
        assert list(got) == list(wanted), name
