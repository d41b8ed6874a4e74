"""CrossModalProcessor: batches, saving, loading, messages; the whole way from raw rows to a loss."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from transformers import AutoProcessor

from hf_dgl.models.configuration_cross_modal import CrossModalConfig
from hf_dgl.models.modeling_cross_modal import CrossModalForSequenceClassification
from hf_dgl.models.processing_cross_modal import CrossModalProcessor, default_processor, train_tokenizer
from tests.tiny import (
    FAMILIES,
    SMALL,
    TEXT,
    WORDS,
    tiny_encoder_config,
    tiny_model,
    tiny_processor,
    tiny_rows,
    tiny_tokenizer,
)

THREE = ("image", "text", "audio")


def columns(rows, names=THREE):
    return {name: [row[name] for row in rows] for name in names}


def assert_same(a, b):
    assert list(a) == list(b)
    for name in a:
        assert list(a[name]) == list(b[name])
        assert all(torch.equal(a[name][key], b[name][key]) for key in a[name])


@pytest.fixture
def log(caplog):
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING, logger="transformers"):
        yield caplog
    logging.getLogger("transformers").propagate = False


def test_from_raw_rows_to_a_loss():
    processor, model = tiny_processor(THREE), tiny_model(THREE)
    batch = processor(**columns(tiny_rows(THREE)), sampling_rate=16000)
    assert list(batch) == ["image", "text", "audio"]
    assert batch["image"]["pixel_values"].shape == (4, 3, 16, 16)
    assert (
        set(batch["text"]) == set(batch["audio"]) - {"input_values"} | {"input_ids"} == {"input_ids", "attention_mask"}
    )
    assert {v.dtype for part in batch.values() for v in part.values() if v.is_floating_point()} == {torch.float32}
    assert batch["text"]["attention_mask"].sum(1).max() == batch["text"]["input_ids"].shape[1]  # longest, no longer
    model(**batch, labels=torch.tensor([0, 1, 2, 0])).loss.backward()


def test_missing_in_a_row_and_in_the_batch():
    processor, model, rows = tiny_processor(THREE), tiny_model(THREE), tiny_rows(THREE)
    rows[0]["audio"] = rows[2]["audio"] = None
    batch = processor(**columns(rows))
    assert batch["audio"]["present"].tolist() == [False, True, False, True] and "present" not in batch["text"]
    logits = model(**batch).logits
    alone = processor(image=[rows[0]["image"]], text=[rows[0]["text"]])
    assert set(alone) == {"image", "text"}
    torch.testing.assert_close(model(**alone).logits[0], logits[0], rtol=0, atol=1e-6)
    assert list(processor(image=[None, None], text=["a", "the"])) == ["text"]
    assert processor(image=None, audio=[None]) == {}


def test_save_and_load(tmp_path, log):
    processor, rows = tiny_processor(THREE), columns(tiny_rows(THREE))
    processor.save_pretrained(tmp_path)
    for file in (
        "image/preprocessor_config.json",
        "text/tokenizer.json",
        "text/tokenizer_config.json",
        "audio/preprocessor_config.json",
        "processor_config.json",
    ):
        assert (tmp_path / file).exists(), file
    for again in (CrossModalProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(again) is CrossModalProcessor and again.modalities == list(THREE)
        assert_same(again(**rows), processor(**rows))
    assert not log.records


def test_beside_a_model_in_one_folder(tmp_path):
    model, processor = tiny_model(), tiny_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    rows = columns(tiny_rows(), ("image", "text"))
    again = AutoProcessor.from_pretrained(tmp_path)
    model_again = CrossModalForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(model_again(**again(**rows)).logits, model(**processor(**rows)).logits)


def test_sampling_rate():
    processor = tiny_processor(THREE)
    assert processor.sampling_rate("audio") == 16000 and processor.sampling_rate("text") is None
    with pytest.raises(ValueError, match=r"8000 Hz, expected 16000 Hz.*soxr.resample"):
        processor(audio=[np.zeros(100, np.float32)], sampling_rate=8000)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_any_image_mode_becomes_what_the_encoder_reads(mode):
    image = Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).convert("RGB").convert(mode)
    processor = CrossModalProcessor({"image": default_processor(tiny_encoder_config("vit"))})
    assert processor(image=[image])["image"]["pixel_values"].shape == (1, 3, 16, 16)
    grey = default_processor(tf.ViTConfig(image_size=[8, 12], num_channels=1))
    out = CrossModalProcessor({"image": grey})(image=image)["image"]["pixel_values"]
    assert out.shape == (1, 1, 8, 12) and out.abs().max() <= 1


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm", "ast", "whisper", "w2v_bert", "clap_audio"])
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_default_audio_processors_fit_their_encoders(family, tmp_path):
    processor = CrossModalProcessor({"audio": default_processor(tiny_encoder_config(family))})
    rng = np.random.default_rng(0)
    waveforms = [rng.standard_normal(n).astype(np.float32) for n in (3000, 6000)]
    batch = processor(audio=waveforms)
    model = CrossModalForSequenceClassification.from_encoders({"audio": tiny_encoder_config(family)})
    assert model(**batch).logits.isfinite().all()
    processor.save_pretrained(tmp_path)
    if family != "clap_audio":  # cuts at random
        assert_same(AutoProcessor.from_pretrained(tmp_path)(audio=waveforms), batch)


def test_train_tokenizer():
    tokenizer = train_tokenizer(["An even digit, an odd digit!"] * 3, vocab_size=60, max_length=6)
    assert tokenizer.pad_token_id == 0 and len(tokenizer) <= 60
    ids = tokenizer("an EVEN digit unseen words beyond the end", truncation=True)["input_ids"]
    assert len(ids) == 6 and tokenizer.convert_ids_to_tokens(ids[:4]) == ["[CLS]", "an", "even", "digit"]
    assert tokenizer.decode(tokenizer("an even digit")["input_ids"], skip_special_tokens=True) == "an even digit"
    again = train_tokenizer(["An even digit, an odd digit!"] * 3, vocab_size=60, max_length=6)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_from_encoders_of_a_model_of_ours(tmp_path):
    configs = {name: tiny_encoder_config("bert") for name in ("title", "body")}
    CrossModalForSequenceClassification(CrossModalConfig(encoders=configs)).save_pretrained(tmp_path)
    tokenizers = {"title": train_tokenizer(["one two"], 100, 7), "body": train_tokenizer(["three four"], 100, 9)}
    CrossModalProcessor(tokenizers).save_pretrained(tmp_path)
    sources = {"body": str(tmp_path), "question": {"checkpoint": str(tmp_path), "tower": "title"}}
    found = CrossModalProcessor.from_encoders(sources).processors
    assert {name: part.model_max_length for name, part in found.items()} == {"body": 9, "question": 7}
    assert found["question"].tokenize("one two") == ["one", "two"]


def test_from_encoders_by_path(tmp_path, log):
    """CLIP in one folder with its processor; RoBERTa whose tokenizer states no maximal length."""
    clip = tf.CLIPConfig(
        vision_config=tiny_encoder_config("clip_vision").to_dict(),
        text_config=tiny_encoder_config("clip_text").to_dict(),
    )
    clip.save_pretrained(tmp_path / "clip")
    tf.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(tmp_path / "clip")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "clip")
    tf.RobertaConfig(**{**SMALL, **TEXT, "pad_token_id": 1}).save_pretrained(tmp_path / "roberta")
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(tmp_path / "roberta")
    tiny_encoder_config("wav2vec2").save_pretrained(tmp_path / "speech")
    tf.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "speech")
    sources = {"photo": "clip", "caption": "clip", "question": "roberta", "audio": "speech"}
    processor = CrossModalProcessor.from_encoders({name: str(tmp_path / path) for name, path in sources.items()})
    kinds = [type(part).__name__ for part in processor.processors.values()]
    assert kinds[0] == "CLIPImageProcessorPil" and kinds[3] == "Wav2Vec2FeatureExtractor"
    assert processor.processors["caption"].model_max_length == 32
    assert processor.processors["question"].model_max_length == 64 - 2
    assert processor(question=["digit " * 99])["question"]["input_ids"].shape == (1, 62)
    assert not log.records


def test_parts_of_combined_processors():
    image_processor = tf.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)
    combined = tf.CLIPProcessor(image_processor=image_processor, tokenizer=tiny_tokenizer())
    processor = CrossModalProcessor({"front_image": combined, "caption": combined})
    assert processor.processors["front_image"] is image_processor
    assert processor.processors["caption"] is combined.tokenizer
    with pytest.raises(ValueError, match=r"processor.tokenizer"):
        CrossModalProcessor({"front": combined})


def test_tokenizers_without_mask_pad_to_one_length():
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids"]
    out = CrossModalProcessor({"text": tokenizer})(text=["a digit", "the"])["text"]
    assert list(out) == ["input_ids"] and out["input_ids"].shape == (2, 32)


def test_push_to_hub_uploads_every_subfolder(monkeypatch, tmp_path):
    uploaded = {}

    class Api:
        def create_repo(self, repo_id, **kwargs):
            return type("Repo", (), {"repo_id": repo_id})()

        def create_commit(self, repo_id, operations, **kwargs):
            uploaded[repo_id] = sorted(operation.path_in_repo for operation in operations)

    class Card:
        def save(self, path):
            Path(path).touch()

    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: Api())
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *args, **kwargs: Card())
    tiny_processor(("image", "text")).push_to_hub("me/mine")
    assert {"image/preprocessor_config.json", "text/tokenizer.json", "processor_config.json"} <= set(
        uploaded["me/mine"]
    )


def test_messages(tmp_path):
    processor = tiny_processor()
    with pytest.raises(ValueError, match=r"Got modality 'txt'.*Did you mean 'text'"):
        processor(txt=["a"])
    with pytest.raises(ValueError, match=r"\{'image': 1, 'text': 2\} rows"):
        processor(image=[Image.new("RGB", (4, 4))], text=["a", "b"])
    with pytest.raises(ValueError, match=r"Got no processors"):
        CrossModalProcessor({})
    with pytest.raises(ValueError, match=r"Got str as a processor.*from_encoders"):
        CrossModalProcessor({"text": "bert-base-uncased"})
    with pytest.raises(ValueError, match=r"train_tokenizer"):
        CrossModalProcessor.from_encoders({"text": tiny_encoder_config("bert")})
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds no CrossModalProcessor"):
        CrossModalProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", ["bert", "roberta", "t5"])
def test_a_checkpoint_saved_without_its_tokenizer(family, tmp_path):
    """Upstream makes one without words, to which every text is alike."""
    tiny_encoder_config(family).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"The tokenizer of 'text', a \w+Tokenizer, knows no words: was the checkpoint"
    ):
        CrossModalProcessor.from_encoders({"text": str(tmp_path)})
    tiny_tokenizer().save_pretrained(tmp_path)
    assert CrossModalProcessor.from_encoders({"text": str(tmp_path)}).processors["text"]("digit")["input_ids"]


def test_tiny_tables_agree():
    assert len(tiny_tokenizer()) <= TEXT["vocab_size"] and len(WORDS) > 10 and "vit" in FAMILIES
