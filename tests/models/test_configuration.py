"""CrossModalConfig: defaults, round trips, messages."""

import json

import pytest
import transformers
from transformers import AutoConfig, BertConfig, ViTConfig

from hf_dgl.models.configuration_cross_modal import CrossModalConfig, encoder_width
from tests.tiny import FAMILIES, tiny_config, tiny_encoder_config


def test_defaults_follow_the_widest_encoder():
    config = CrossModalConfig(encoders={"text": BertConfig(hidden_size=384), "image": ViTConfig()})
    assert config.modalities == ["text", "image"]
    assert (config.fusion_hidden_size, config.num_fusion_heads, config.fusion_intermediate_size) == (768, 12, 3072)
    assert config.fusion_type == "cross_attention" and config.num_fusion_layers == 2


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (384, 6), (64, 4), (16, 1), (100, 4), (17, 1)])
def test_default_heads_divide_the_width(width, heads):
    config = tiny_config(fusion_hidden_size=width)
    assert config.num_fusion_heads == heads and width % heads == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_rebuilds_the_right_class(family, tmp_path):
    modality = FAMILIES[family].modality
    config = CrossModalConfig(encoders={modality: tiny_encoder_config(family)}, num_labels=5)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is CrossModalConfig
    assert type(again.encoders[modality]) is type(config.encoders[modality])
    assert again.encoders[modality].to_diff_dict() == config.encoders[modality].to_diff_dict()
    assert again.to_diff_dict() == config.to_diff_dict()
    assert CrossModalConfig(**config.to_dict()).to_dict() == config.to_dict()


def test_order_survives_the_sorted_json(tmp_path):
    names = ["text", "image_2", "audio", "image_1"]
    tiny_config(names).save_pretrained(tmp_path)
    assert list(json.loads((tmp_path / "config.json").read_text())["encoders"]) == sorted(names)
    again = CrossModalConfig.from_pretrained(tmp_path)
    assert again.modalities == names and list(again.encoders) == names


def test_settings_survive(tmp_path):
    kwargs = {"fusion_type": "bilinear", "bilinear_size": 3, "fusion_dropout": 0.3, "problem_type": "regression"}
    config = CrossModalConfig(
        encoders={"text": tiny_encoder_config("bert")},
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
        **kwargs,
    )
    config.save_pretrained(tmp_path)
    again = CrossModalConfig.from_pretrained(tmp_path)
    assert again.id2label == {0: "no", 1: "yes"} and again.num_labels == 2
    assert {name: getattr(again, name) for name in kwargs} == kwargs


@pytest.mark.parametrize(
    ("fusion_type", "modalities", "read_out"),
    [
        ("cross_attention", ["image", "text"], "products"),
        ("merged_attention", ["image", "text"], "products"),
        ("cross_attention", ["text"], "means"),
        ("concat", ["image", "text"], "means"),
    ],
)
def test_the_read_out_is_written_down_and_old_files_keep_theirs(fusion_type, modalities, read_out, tmp_path):
    config = tiny_config(modalities, fusion_type=fusion_type)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert config.fusion_read_out == written.pop("fusion_read_out") == read_out
    assert CrossModalConfig.from_pretrained(tmp_path).fusion_read_out == read_out
    (tmp_path / "config.json").write_text(json.dumps(written))  # as before there was a choice
    assert CrossModalConfig.from_pretrained(tmp_path).fusion_read_out == "means"
    assert AutoConfig.from_pretrained(tmp_path).fusion_read_out == "means"


def test_attention_implementation_reaches_the_encoders_only_if_asked():
    bert = tiny_encoder_config("bert")
    bert._attn_implementation = "eager"
    assert CrossModalConfig(encoders={"text": bert}).encoders["text"]._attn_implementation == "eager"
    asked = CrossModalConfig(encoders={"text": bert}, attn_implementation="sdpa")
    assert asked._attn_implementation == "sdpa" and asked.text._attn_implementation == "sdpa"


def test_width_of_every_family_is_what_it_puts_out():
    assert encoder_width(transformers.ClapAudioConfig()) == 768
    assert encoder_width(transformers.AltCLIPTextConfig(project_dim=12)) == 12
    assert encoder_width(transformers.Wav2Vec2Config(add_adapter=True, output_hidden_size=99)) == 99
    assert encoder_width(transformers.ResNetConfig()) == 2048
    assert encoder_width(transformers.WhisperConfig(d_model=384)) == 384


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"fusion_type": "cross_atention"}, "Did you mean 'cross_attention'"),
        ({"fusion_type": "film"}, "expected one of"),
        ({"fusion_hidden_size": 30, "num_fusion_heads": 4}, "num_fusion_heads=1|divide"),
        ({"num_fusion_layers": 0}, "fusion_type='concat'"),
        ({"fusion_read_out": "product"}, "Did you mean 'products'"),
        ({"fusion_read_out": "products", "fusion_type": "sum"}, "expected an attention fusion"),
        ({"encoders": {"text": {"hidden_size": 3}}}, "model_type=None"),
        ({"encoders": {"text": {"model_type": "brt"}}}, "Did you mean 'bert'|Did you mean"),
        ({"encoders": {"text": "bert-base-uncased"}}, "from_encoders"),
        ({"encoders": {"dtype": {"model_type": "bert"}}}, "name of a modality"),
        ({"encoders": {"my text": {"model_type": "bert"}}}, "name of a modality"),
    ],
)
def test_messages(kwargs, message):
    kwargs = {"encoders": {"text": tiny_encoder_config("bert")}, **kwargs}
    with pytest.raises(ValueError, match=message):
        CrossModalConfig(**kwargs)
