"""A row per supported kind of encoder, and the ways to name one."""

import json
import logging

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import save_file

from hf_dgl.models.configuration_cross_modal import CrossModalConfig
from hf_dgl.models.encoders import build_encoder, encode, encoder_class, tower_config
from hf_dgl.models.modeling_cross_modal import CrossModalForSequenceClassification
from hf_dgl.models.parts import process
from hf_dgl.models.processing_cross_modal import default_processor
from tests.devices import put
from tests.tiny import FAMILIES, SMALL, TEXT, tiny_encoder_config

pytestmark = pytest.mark.device

FREEDOM = "ignore:Support for mismatched key_padding_mask"  # torch's own, about WavLM upstream


def build(family, **kwargs):
    torch.manual_seed(0)
    encoders = {FAMILIES[family].modality: tiny_encoder_config(family)}
    settings = {"num_labels": 3, "fusion_type": "merged_attention", "fusion_dropout": 0.0, **kwargs}
    return put(CrossModalForSequenceClassification(CrossModalConfig(encoders=encoders, **settings)))


# -------------------------------------------------------------------------------------------------------- every family


@pytest.mark.filterwarnings(FREEDOM)
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_backward_save_load(family, tmp_path):
    row = FAMILIES[family]
    model = build(family).train()
    batch = put({row.modality: row.inputs(3)})
    model(**batch, labels=put(torch.tensor([0, 1, 2]))).loss.backward()
    # DistributedDataParallel stops at trainable parameters without a gradient: no poolers, no unused heads.
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    model.eval()
    logits = model(**batch).logits
    assert logits.isfinite().all()
    model.save_pretrained(tmp_path)
    again, info = CrossModalForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(put(again)(**batch).logits, logits)


@pytest.mark.filterwarnings(FREEDOM)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_mask(family):
    row = FAMILIES[family]
    base = build(family).eval().cross_modal
    inputs = put(row.inputs(3))
    tokens, mask, _ = encode(row.modality, base.encoders[row.modality], inputs)
    assert tokens.ndim == 3 and tokens.shape[0] == 3 and mask.shape == tokens.shape[:2] and mask.dtype == torch.bool
    padded = inputs.get("attention_mask", inputs.get("pixel_attention_mask"))
    if padded is None:
        assert mask.all()
    else:  # the full row keeps all its tokens, the shorter ones lose some and keep some
        assert mask[0].all() and 0 < mask[2].sum() < mask[1].sum() < mask[0].sum()
        assert (mask.int().diff(dim=1) <= 0).all()


@pytest.mark.filterwarnings(FREEDOM)
@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm", "w2v_bert"])
def test_frame_mask_is_the_one_the_encoder_uses(family):
    row = FAMILIES[family]
    encoder = build(family).eval().cross_modal.encoders["audio"]
    inputs = put(row.inputs(3))
    tokens, mask, _ = encode("audio", encoder, inputs)
    if family == "w2v_bert":
        expected = inputs["attention_mask"].bool()
    else:
        expected = encoder._get_feature_vector_attention_mask(tokens.shape[1], inputs["attention_mask"])
    assert torch.equal(mask, expected.bool())


def test_whisper_mask_is_halved_like_its_frames():
    encoder = build("whisper").eval().cross_modal.encoders["audio"]
    inputs = put(FAMILIES["whisper"].inputs(3))
    _, mask, _ = encode("audio", encoder, inputs)
    assert torch.equal(mask.sum(1), (inputs["attention_mask"].sum(1) + 1) // 2)


def test_audio_shorter_than_a_frame_has_one_frame_and_an_empty_row_none():
    encoder = build("wav2vec2").eval().cross_modal.encoders["audio"]
    mask = put(torch.zeros(3, 400, dtype=torch.long))
    mask[0], mask[1, :2] = 1, 1
    tokens, frames, _ = encode("audio", encoder, {"input_values": put(torch.randn(3, 400)), "attention_mask": mask})
    assert tokens.isfinite().all() and frames.sum(1).tolist() == [frames.shape[1], 1, 0]


def test_group_norm_encoders_get_no_mask_but_the_fusion_does():
    model = build("wav2vec2_group_norm").eval()
    seen = []
    encoder = model.cross_modal.encoders["audio"]
    encoder.register_forward_pre_hook(lambda module, args, kwargs: seen.append(sorted(kwargs)), with_kwargs=True)
    _, mask, _ = encode("audio", encoder, put(FAMILIES["wav2vec2_group_norm"].inputs(3)))
    assert seen == [["input_values"]] and not mask.all()


def test_no_encoder_sees_a_row_without_any_input():
    encoder = build("bert").eval().cross_modal.encoders["text"]
    seen = []
    encoder.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    given = put(torch.tensor([[1, 1, 0], [0, 0, 0]]))
    _, mask, _ = encode("text", encoder, {"input_ids": torch.ones_like(given), "attention_mask": given})
    assert seen[0]["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert torch.equal(mask, given.bool())  # what it made of that row is masked


def test_frames_of_a_video_become_tokens_one_after_the_other():
    model = build("vit_frames").eval()
    encoder, video = model.cross_modal.encoders["video"], put(FAMILIES["vit_frames"].inputs(2)["pixel_values"])
    tokens, _, _ = encode("video", encoder, {"pixel_values": video})
    second = encoder(pixel_values=video[:, 1]).last_hidden_state
    torch.testing.assert_close(tokens[:, tokens.shape[1] // 2 :], second)


def test_vit_mae_reads_the_whole_picture_in_order(tmp_path):
    """Upstream masks three patches of four in evaluation, too."""
    torch.manual_seed(0)
    pretrained = tf.ViTMAEForPreTraining(tiny_encoder_config("vit_mae")).eval()
    pretrained.save_pretrained(tmp_path)
    model = CrossModalForSequenceClassification.from_encoders({"image": str(tmp_path)})
    encoder, pixels = model.cross_modal.encoders["image"], FAMILIES["vit_mae"].inputs(2)["pixel_values"]
    before = torch.get_rng_state()
    tokens, _, _ = encode("image", encoder, {"pixel_values": pixels})
    assert torch.equal(torch.get_rng_state(), before)
    whole = pretrained.vit
    whole.config.mask_ratio = 0.0
    expected = whole(pixels, noise=torch.arange(4.0).expand(2, -1)).last_hidden_state
    assert tokens.shape == (2, 1 + 4, 16)
    torch.testing.assert_close(tokens, expected)


def test_an_encoder_without_tokens_is_told():
    encoder = tf.DPRQuestionEncoder(tf.DPRConfig(**SMALL, **TEXT))
    with pytest.raises(ValueError, match=r"'text', a DPRQuestionEncoder, gives \['pooler_output'\] and no last_hid"):
        encode("text", encoder, FAMILIES["bert"].inputs(2))


def test_feature_maps_keep_their_positions():
    encoder = build("resnet").eval().cross_modal.encoders["image"]
    inputs = put(FAMILIES["resnet"].inputs(2))
    tokens, _, _ = encode("image", encoder, inputs)
    feature_map = encoder(**inputs).last_hidden_state
    torch.testing.assert_close(tokens[:, 1], feature_map[:, :, 0, 1])


# ------------------------------------------------------------------------------------------------------- from_encoders


def dual_encoders():
    c = tiny_encoder_config

    def towers(image, text, **extra):
        return {"vision_config": c(image).to_dict(), "text_config": {**c(text).to_dict(), **extra}}

    siglip = towers("siglip_vision", "siglip_text", projection_size=16)
    return {
        "clip": (tf.CLIPModel(tf.CLIPConfig(**towers("clip_vision", "clip_text"))), "image"),
        "siglip": (tf.SiglipModel(tf.SiglipConfig(**siglip)), "front_image"),
        "altclip": (tf.AltCLIPModel(tf.AltCLIPConfig(**towers("altclip_vision", "altclip_text"))), "photo"),
        "xclip": (
            tf.XCLIPModel(tf.XCLIPConfig(**towers("xclip_vision", "xclip_text"), projection_dim=16)),
            "video",
        ),
        "clap": (
            tf.ClapModel(tf.ClapConfig(audio_config=c("clap_audio").to_dict(), text_config=c("clap_text").to_dict())),
            "audio",
        ),
        "vision-text-dual-encoder": (
            tf.VisionTextDualEncoderModel(
                tf.VisionTextDualEncoderConfig(vision_config=c("vit"), text_config=c("bert"))
            ),
            "image_2",
        ),
    }


@pytest.mark.parametrize("source", ["path", "instance"])
@pytest.mark.parametrize("kind", ["clip", "siglip", "altclip", "xclip", "clap", "vision-text-dual-encoder"])
def test_towers_of_dual_encoders(kind, source, tmp_path):
    dual, modality = dual_encoders()[kind]
    tower = "audio_model" if kind == "clap" else "vision_model"
    weights = {name: value.clone() for name, value in dual.state_dict().items()}
    if source == "path":
        dual.save_pretrained(tmp_path)
    names = (modality, "caption")
    model = CrossModalForSequenceClassification.from_encoders(
        dict.fromkeys(names, str(tmp_path) if source == "path" else dual), num_labels=3
    )
    for name, prefix in zip(names, (tower, "text_model"), strict=True):
        kept = model.cross_modal.encoders[name].state_dict()
        assert kept and all(torch.equal(value, weights[f"{prefix}.{key}"]) for key, value in kept.items())
    image_family = {"clap": "clap_audio", "vision-text-dual-encoder": "vit"}.get(kind, f"{kind}_vision")
    text_family = {"vision-text-dual-encoder": "bert"}.get(kind, f"{kind}_text")
    batch = {modality: FAMILIES[image_family].inputs(2), "caption": FAMILIES[text_family].inputs(2)}
    logits = model(**batch).logits
    model.save_pretrained(tmp_path / "saved")
    again = CrossModalForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(**batch).logits, logits)


def heads():
    c = tiny_encoder_config
    speech = tf.SpeechEncoderDecoderModel(
        encoder=tf.Wav2Vec2Model(c("wav2vec2")),
        decoder=tf.BertLMHeadModel(tf.BertConfig(**SMALL, **TEXT, is_decoder=True, add_cross_attention=True)),
    )
    return {
        "bert": (tf.BertForMaskedLM(c("bert")), "bert."),
        "vit": (tf.ViTForImageClassification(c("vit")), "vit."),
        "wav2vec2": (tf.Wav2Vec2ForCTC(c("wav2vec2")), "wav2vec2."),
        "whisper": (tf.WhisperForConditionalGeneration(c("whisper")), "model.encoder."),
        "t5": (tf.T5ForConditionalGeneration(c("t5")), "encoder."),
        "bart": (tf.BartForConditionalGeneration(c("bart")), "model.encoder."),
        "speech": (speech, "encoder."),
        "clap_audio": (tf.ClapAudioModel(c("clap_audio")), ""),
        "siglip_text": (tf.SiglipTextModel(c("siglip_text")), ""),
    }


@pytest.mark.parametrize("source", ["path", "instance"])
@pytest.mark.parametrize(
    "kind", ["bert", "vit", "wav2vec2", "whisper", "t5", "bart", "speech", "clap_audio", "siglip_text"]
)
def test_weights_of_checkpoints_with_a_head_are_kept(kind, source, tmp_path, caplog):
    model, prefix = heads()[kind]
    family = {"speech": "wav2vec2"}.get(kind, kind)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    logging.getLogger("transformers").propagate = True
    try:
        with caplog.at_level(logging.WARNING, logger="transformers"):
            built = CrossModalForSequenceClassification.from_encoders(
                {"some_input": str(tmp_path) if source == "path" else model}, num_labels=3, fusion_type="sum"
            )
    finally:
        logging.getLogger("transformers").propagate = False
    assert not caplog.records  # no report on heads that are dropped
    kept = built.cross_modal.encoders["some_input"].state_dict()
    assert all(torch.equal(value, weights[prefix + key]) for key, value in kept.items())
    batch = {"some_input": FAMILIES[family].inputs(2)}
    logits = built(**batch).logits
    built.save_pretrained(tmp_path / "saved")
    again = CrossModalForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(**batch).logits, logits)


def test_tower_by_name_and_from_configurations(tmp_path):
    dual, _ = dual_encoders()["clip"]
    dual.save_pretrained(tmp_path)
    model = CrossModalForSequenceClassification.from_encoders(
        {
            "front": {"checkpoint": tmp_path, "tower": "vision_model"},
            "note": {"checkpoint": str(tmp_path), "tower": "text"},
        }
    )
    assert [type(e).__name__ for e in model.cross_modal.encoders.values()] == ["CLIPVisionModel", "CLIPTextModel"]
    model = CrossModalForSequenceClassification.from_encoders(
        {"image": dual.config, "speech": tiny_encoder_config("whisper")}
    )
    assert [type(e).__name__ for e in model.cross_modal.encoders.values()] == ["CLIPVisionModel", "WhisperEncoder"]


def test_encoders_of_a_model_of_ours(tmp_path):
    """Encoders that were trained alone, or with others, are taken up again; also where two are of one class."""
    torch.manual_seed(0)
    configs = {name: tiny_encoder_config("bert") for name in ("title", "body")}
    trained = CrossModalForSequenceClassification(CrossModalConfig(encoders=configs, fusion_type="concat"))
    trained.save_pretrained(tmp_path)
    sources = {"body": str(tmp_path), "question": {"checkpoint": str(tmp_path), "tower": "title"}}
    model = CrossModalForSequenceClassification.from_encoders(sources)
    for name, origin in {"body": "body", "question": "title"}.items():
        expected = trained.cross_modal.encoders[origin].state_dict()
        found = model.cross_modal.encoders[name].state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    with pytest.raises(ValueError, match=r"has no 'titel'. Did you mean 'title'.*'tower': 'title'"):
        CrossModalForSequenceClassification.from_encoders({"titel": str(tmp_path)})


def test_dtype_is_one_for_all(tmp_path):
    tf.BertModel(tiny_encoder_config("bert")).half().save_pretrained(tmp_path)
    encoders = {"text": str(tmp_path), "image": tf.ViTModel(tiny_encoder_config("vit")).bfloat16()}
    model = CrossModalForSequenceClassification.from_encoders(encoders)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and model.config.dtype == torch.float32
    model = CrossModalForSequenceClassification.from_encoders({"text": str(tmp_path)}, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_attention_implementation_is_passed_down():
    configs = {"text": tiny_encoder_config("bert"), "audio": tiny_encoder_config("clap_audio")}
    model = CrossModalForSequenceClassification.from_encoders(configs, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert model.cross_modal.encoders["text"].config._attn_implementation == "eager"
    config = CrossModalConfig(encoders=configs, attn_implementation="sdpa")
    model = CrossModalForSequenceClassification(config)  # CLAP's audio tower has no SDPA: it keeps what it can do
    assert model.cross_modal.encoders["text"].config._attn_implementation == "sdpa"
    assert model.cross_modal.encoders["audio"].config._attn_implementation == "eager"


def test_encoder_classes():
    for family, expected in {
        "clap_audio": "ClapAudioModel",
        "t5": "T5Stack",
        "siglip_text": "SiglipTextModel",
    }.items():
        assert encoder_class(tiny_encoder_config(family)).__name__ == expected


class UnknownConfig(tf.PreTrainedConfig):
    model_type = "unknown"


def test_messages(tmp_path):
    clip = dual_encoders()["clip"][0].config
    with pytest.raises(ValueError, match=r"towers \['vision', 'text'\].*'tower': 'vision'"):
        tower_config("front", clip)
    with pytest.raises(ValueError, match=r"towers"):
        tower_config("audio", clip)
    with pytest.raises(ValueError, match=r"Got 3 as the encoder of modality 'text'"):
        CrossModalForSequenceClassification.from_encoders({"text": 3})
    with pytest.raises(ValueError, match=r"Found no encoder.*AutoModel.register"):
        encoder_class(UnknownConfig())
    bert = tf.BertModel(tiny_encoder_config("bert"))
    state = {name: value for name, value in bert.state_dict().items() if "layer.1" not in name}
    bert.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"no weights for \d+ parameters of the 'text' encoder BertModel"):
        CrossModalForSequenceClassification.from_encoders({"text": str(tmp_path)})


def test_options_of_one_encoder(tmp_path):
    tf.BertModel(tiny_encoder_config("bert")).save_pretrained(tmp_path)

    def build(**options):
        return CrossModalForSequenceClassification.from_encoders({"text": {"checkpoint": str(tmp_path), **options}})

    model = build(hidden_dropout_prob=0.5, attn_implementation="eager")
    config = model.config.encoders["text"]
    assert config.hidden_dropout_prob == 0.5 and config._attn_implementation == "eager"
    assert model.cross_modal.encoders["text"].embeddings.dropout.p == 0.5
    with pytest.raises(ValueError, match="there is no option 'towr'. Did you mean 'tower'"):
        build(towr="text")
    with pytest.raises(ValueError, match="'text' names a dtype of its own; it is one for all"):
        build(dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="Got dtype='bfloat61', expected torch.float32"):
        CrossModalForSequenceClassification.from_encoders({"text": str(tmp_path)}, dtype="bfloat61")


def test_one_model_is_no_encoder_of_two():
    """It could not be saved."""
    bert = tf.BertModel(tiny_encoder_config("bert"))
    with pytest.raises(ValueError, match=r"one and the same model as encoder of two of \['title', 'body'\]"):
        CrossModalForSequenceClassification.from_encoders({"title": bert, "body": bert})


def test_hub_arguments_are_passed_on(monkeypatch):
    calls = []

    def config(source, **kwargs):
        calls.append(("config", source, kwargs))
        return tiny_encoder_config("bert")

    def model(source, config, dtype, output_loading_info, **kwargs):
        calls.append(("model", source, kwargs))
        return tf.BertModel(config), {"missing_keys": set()}

    monkeypatch.setattr("hf_dgl.models.encoders.AutoConfig.from_pretrained", config)
    monkeypatch.setattr("transformers.BertModel.from_pretrained", model)
    sources = {"text": "me/private", "title": {"checkpoint": "you/other", "revision": "v2", "subfolder": "bert"}}
    CrossModalForSequenceClassification.from_encoders(sources, token="secret", revision="v1", trust_remote_code=True)
    first, second = {"token": "secret", "revision": "v1"}, {"token": "secret", "revision": "v2", "subfolder": "bert"}
    assert calls == [
        ("config", "me/private", {**first, "trust_remote_code": True}),
        ("model", "me/private", first),
        ("config", "you/other", {**second, "trust_remote_code": True}),
        ("model", "you/other", second),
    ]


REMOTE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

class OwnConfig(PreTrainedConfig):
    model_type = "own_bag"
    hidden_size: int = 16

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.embedding = torch.nn.Embedding(64, config.hidden_size)
        self.post_init()
    def forward(self, input_ids, attention_mask=None, **kwargs):
        return BaseModelOutput(last_hidden_state=self.embedding(input_ids))
"""


def test_code_from_the_hub_only_if_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "own"
    source.mkdir()
    (source / "own.py").write_text(REMOTE)
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (source / "config.json").write_text(json.dumps({"model_type": "own_bag", "hidden_size": 16, "auto_map": auto_map}))
    weight = torch.randn(64, 16)
    save_file({"embedding.weight": weight}, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="trust_remote_code"):
        CrossModalForSequenceClassification.from_encoders({"text": str(source)})
    model = CrossModalForSequenceClassification.from_encoders({"text": str(source)}, trust_remote_code=True)
    assert torch.equal(model.cross_modal.encoders["text"].embedding.weight, weight)
    assert model(text=FAMILIES["bert"].inputs(2)).logits.isfinite().all()
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="has to be registered"):
        CrossModalForSequenceClassification.from_pretrained(tmp_path / "saved")


AUDIO_FAMILIES = [name for name, family in FAMILIES.items() if family.modality == "audio"]


@pytest.mark.parametrize("family", AUDIO_FAMILIES)
def test_the_shortest_audio_is_remembered_and_read_in_training_too(family: str) -> None:
    """`mask_time_prob` as in checkpoints: SpecAugment refuses what is shorter than one of its masks."""
    config = tiny_encoder_config(family)
    if hasattr(config, "mask_time_prob"):
        config.mask_time_prob = 0.05
    processor = default_processor(config)
    least = getattr(processor, "min_audio_samples", 1)
    encoder = build_encoder(config)
    for training in (False, True):
        encoder.train(training)
        tokens, mask, _ = encode("audio", encoder, process(processor, [np.ones(least) + np.arange(least)]))
        assert torch.isfinite(tokens).all() and mask.any()
    if least > 1:
        with pytest.raises((RuntimeError, ValueError, AssertionError)):
            tokens, _, _ = encode("audio", encoder, process(processor, [np.ones(max(1, least - 165))]))
            assert torch.isfinite(tokens).all()


def test_wav2vec2_needs_25_ms() -> None:
    assert default_processor(tf.Wav2Vec2Config()).min_audio_samples == 400
