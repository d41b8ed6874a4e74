"""Numbers that no run could have meant are refused when they are read."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from hf_dgl.recipe.arguments import DataArguments, ModelArguments
from hf_dgl.recipe.recipe import build_parser, load_recipe, make_recipe
from hf_dgl.training.arguments import DGLTrainingArguments
from hf_dgl.training.ranges import Range, check_range
from tests.recipes import TINY_ENCODERS


@pytest.mark.parametrize(
    ("notation", "inside", "outside", "words"),
    [
        ("[0, 1)", [0, 0.5], [-0.1, 1, 2], "from 0 to below 1"),
        ("(0, 1]", [0.5, 1], [0, 1.1], "above 0 to 1"),
        ("[1, inf)", [1, 1e300], [0, math.inf, math.nan], "1 or more"),
        ("(0, inf)", [1e-300], [0, -math.inf], "above 0"),
        ("-1 or [1, 9]", [-1, 1, 9], [-5, 0, -0.5, 10], "-1 or from 1 to 9"),
        ("[0, 4294967295]", [4294967295], [4294967296], "from 0 to 4294967295"),
    ],
)
def test_notation(notation: str, inside: list[float], outside: list[float], words: str) -> None:
    assert all(number in Range.of(notation) for number in inside)
    assert not any(number in Range.of(notation) for number in outside)
    assert str(Range.of(notation)) == words


def test_what_holds_numbers_is_looked_into() -> None:
    check_range("alpha", {"image": 1, "text": "2.5"}, "[0, 9]")
    check_range("alpha", None, "[0, 9]")
    check_range("alpha", True, "[2, 9]")  # a switch
    check_range("alpha", "auto", "[0, 9]")
    for value in ({"image": -1}, [1, [10]], "nan", 10**400):
        with pytest.raises(ValueError, match="alpha.*: expected a number from 0 to 9, got"):
            check_range("alpha", value, "[0, 9]")


MINIMAL: dict[str, Any] = {"encoders": TINY_ENCODERS, "dataset_name": "sample:image_audio_text", "use_cpu": True}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"label_smoothing_factor": 5}, "label_smoothing_factor: expected a number from 0 to below 1, got 5"),
        ({"max_steps": -5}, "max_steps: expected a number -1 or from 1 to 1000000000, got -5"),
        ({"max_steps": 0}, "max_steps"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: expected a number from 1"),
        ({"num_train_epochs": -1}, "num_train_epochs: expected a number above 0"),
        ({"learning_rate": "nan"}, "learning_rate: expected a number from 0 to 100, got nan"),
        ({"learning_rate": "inf"}, "learning_rate"),
        ({"alpha": {"image": -1}}, "alpha: image: expected a number from 0"),
        ({"multimodal_to_encoders": 1.5}, "multimodal_to_encoders: expected a number from 0 to 1, got 1.5"),
        ({"encoder_learning_rate": {"text": "nan"}}, "encoder_learning_rate: text"),
        ({"learning_rate_mapping": {"a": -1}}, "learning_rate_mapping: a"),
        ({"adam_beta1": 1}, "adam_beta1: expected a number from 0 to below 1"),
        ({"seed": -1}, "seed: expected a number from 0 to 4294967295, got -1"),
        ({"dataset_seed": 2**32}, "dataset_seed"),
        ({"num_fusion_heads": 0}, "num_fusion_heads: expected a number from 1 to 1024, got 0"),
        ({"fusion_dropout": 1}, "fusion_dropout"),
        ({"max_train_samples": 0}, "max_train_samples: expected a number from 1 to 1000000000000, got 0"),
        ({"peft": {"r": 0}}, "peft: r: expected a number from 1 to 10000, got 0"),
        ({"peft": {"lora_dropout": 2}}, "peft: lora_dropout: expected a number from 0 to below 1"),
        ({"lr_scheduler_kwargs": "x"}, "lr_scheduler_kwargs"),
        ({"lr_scheduler_kwargs": {"power": math.nan}}, "lr_scheduler_kwargs: power"),
        ({"bf16": True, "use_cpu": False}, "bf16: true needs a GPU .*`--use_cpu true` to compute in bfloat16"),
        ({"fp16": True}, "fp16: true needs a GPU.*--bf16 true --use_cpu true"),
        ({"tf32": True}, "tf32: true needs a GPU .*--tf32 false"),
        ({"token": ["hf_secret"]}, "token: expected a text, got a list .which is not shown"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_recipes(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make_recipe({**MINIMAL, **values})
    assert "secret'" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        ("hidden_size", 0, "encoders: image: hidden_size: expected a number from 1 to 1000000, got 0"),
        ("hidden_size", "wide", "encoders: image: hidden_size: expected a whole number, got 'wide'"),
        ("num_attention_heads", -2, "num_attention_heads: expected a number from 1"),
        ("num_hidden_layers", 2.5, "num_hidden_layers: expected a whole number"),
        ("intermediate_size", 10**12, "intermediate_size"),
        ("patch_size", math.nan, "patch_size"),
        ("hidden_dropout_prob", 1.5, "hidden_dropout_prob: expected a number from 0 to below 1"),
        ("layer_norm_eps", 0, "layer_norm_eps: expected a number above 0"),
        ("initializer_range", math.inf, "initializer_range"),
        ("text_config", {"hidden_size": 0}, "encoders: image: text_config: hidden_size"),
        ("depths", [1, 0], "depths"),
    ],
)
def test_numbers_of_an_encoder(entry: str, value: Any, words: str) -> None:
    encoders = {**TINY_ENCODERS, "image": {**TINY_ENCODERS["image"], entry: value}}
    with pytest.raises(ValueError, match=words):
        make_recipe({**MINIMAL, "encoders": encoders})


def test_numbers_of_a_command_line_are_words() -> None:
    words = ["--data=a.csv", "--encoders", "image={model_type: vit}", "--peft", "r=8", "lora_alpha=16"]
    assert load_recipe(None, words).model.peft == {"r": "8", "lora_alpha": "16"}
    with pytest.raises(ValueError, match="peft: r: expected a number from 1 to 10000, got '0'"):
        load_recipe(None, [*words[:-2], "r=0"])


def test_defaults_are_in_their_ranges_and_the_help_tells_them() -> None:
    make_recipe(MINIMAL)
    DGLTrainingArguments("out", use_cpu=True)
    text = " ".join(build_parser().format_help().split())
    assert "(from 0 to 1)" in text and "(1 or more)" in text
    for owner in (DGLTrainingArguments, ModelArguments, DataArguments):
        assert set(owner.RANGES) <= {field.name for field in dataclasses.fields(owner)}
