"""`propose` on toys, our own model and tiny versions of known architectures: never a parameter in a wrong modality."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import torch
from torch import nn

from hf_dgl import disentangle
from hf_dgl.method.dataflow.inputs import group_inputs
from hf_dgl.method.dataflow.propose import find_modalities, propose
from hf_dgl.method.dataflow.tags import observe
from hf_dgl.method.modalities import resolve
from tests.architectures_tiny import TINY
from tests.oracle import TOYS, Concat, TiedEncoders, TiedToHead, make_toy, toy_batch

# What belongs to a modality of models that are no row of the table: (image, text), regular expressions that match at
# the name's start. `test_every_class.py` compares those that are with it.
TRUTH = {
    "FlavaModel+CE": (r"model\.image_model", r"model\.text_model"),
    "Blip2ForImageTextRetrieval+CE": (r"model\.vision_model", r"model\.embeddings"),
    "BlipForImageTextRetrieval+CE": (r"model\.vision_model", r"model\.text_encoder(?!.*crossattention)"),
}

REFUSED = {
    "BridgeTowerForContrastiveLearning": "contrastive loss.*one modality alone has none",
    "CLIPModel": "contrastive loss.*Use the model's towers and labels",
    "SiglipModel": "contrastive loss.*Use the model's towers and labels",
    "ClapModel": "contrastive loss.*Use the model's towers and labels",
    "WhisperForConditionalGeneration": "at least two modalities",
    "VisionEncoderDecoderModel": "at least two modalities",
    "SpeechEncoderDecoderModel": "at least two modalities",
    "SpeechT5ForSpeechToText": "at least two modalities",
}


@pytest.mark.parametrize("name", TRUTH)
def test_models_that_no_table_knows(name: str) -> None:
    model, batch = TINY[name]()
    proposal = find_modalities(model, batch)  # leak 0 and exact gradients, or it raises
    for parameter, (owner,) in proposal.owners.items():
        assert re.match(dict(zip(("image", "text"), TRUTH[name], strict=True))[owner], parameter), (parameter, owner)
    with disentangle(model, proposal.modalities) as handle:  # what is told is what is done
        for parameter, owners in proposal.owners.items():
            assert handle.partition.owners[parameter] == owners
        for parameter in proposal.fusion:
            assert handle.partition.owners[parameter] == frozenset()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_architectures(name: str) -> None:
    model, batch = TINY[name]()
    with pytest.raises(ValueError, match=REFUSED[name]):
        find_modalities(model, batch)


def test_return_loss_may_be_a_tensor_and_may_be_off() -> None:
    """A Trainer's collator makes a tensor of each row's `True`, over which the model itself would stumble."""
    model, batch = TINY["CLIPModel"]()
    with pytest.raises(ValueError, match="`return_loss` in the batch asks CLIPModel for a contrastive loss"):
        find_modalities(model, {**batch, "return_loss": torch.tensor([True, True, True])})
    with pytest.raises(ValueError, match="not finite"):  # without it there are outputs only, and they are undefined
        find_modalities(model, {**batch, "return_loss": False})


def test_a_loss_without_labels_is_refused() -> None:
    class Compares(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.text = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

        def forward(self, image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.image(image) - self.text(text)).square().mean()}

    with pytest.raises(ValueError, match="computes a loss without labels"):
        propose(Compares(), {"image": torch.rand(2, 4), "text": torch.rand(2, 4)})


@pytest.mark.parametrize("toy", TOYS)
def test_toys(toy: Any) -> None:
    model = make_toy(toy)
    proposal = find_modalities(model, toy_batch(model))
    assert set(proposal.modalities) == set(model.modalities)
    owners = resolve(model, model.declared()).owners
    for parameter, found in proposal.owners.items():
        assert found <= owners[parameter], parameter
    if toy in (TiedToHead, TiedEncoders):
        shared = {TiedToHead: "mixer.weight", TiedEncoders: "enc_image.0.weight"}[toy]
        assert proposal.owners[shared] == owners[shared]


def test_a_layer_that_both_encoders_call_is_refused() -> None:
    class OneLayer(Concat):
        def encode(self, name: str, x: torch.Tensor) -> torch.Tensor:
            return self.enc_image(x)

    model = make_toy(OneLayer)
    with pytest.raises(ValueError, match="alone and with weights of its own"):
        propose(model, toy_batch(model))


def test_model_is_left_as_it_was() -> None:
    model, batch = TINY["LxmertForQuestionAnswering"]()
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags, state = [p.requires_grad for p in model.parameters()], torch.get_rng_state()
    propose(model, batch)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags and model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_shapes_and_views_carry_the_right_tags() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.token, self.shape = (nn.Parameter(torch.ones(4)) for _ in range(3))

        def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            room = torch.zeros_like(image) + self.shape  # the shape of the image, nothing of its values
            room[:, :2] = text[:, :2] * self.scale[:2]  # a write into a view, from a view of a parameter
            return room + self.token.expand(3, 4) * text

    seen = observe(Views(), {"image": torch.rand(3, 4), "text": torch.rand(3, 4)})
    assert seen.met == {"scale": {"text"}, "token": {"text"}, "shape": {"text"}}
    assert seen.output.inputs == {"text"}


def test_what_says_where_something_is_is_no_content() -> None:
    """Where the image's tokens stand among the words moves the image's encoder (as the time moves MusicFlamingo's)."""

    class Placed(Concat):
        def build(self) -> None:
            super().build()
            self.words, self.whole = nn.Embedding(9, 5), nn.Embedding(2, self.width)

        def forward(self, image: Any, input_ids: Any, attention_mask: Any, labels: Any) -> dict[str, Any]:
            times = (input_ids == 8).to(image).cumsum(1)[..., None]
            features = {"image": self.enc_image(image * times), "text": self.enc_text(self.words(input_ids))}
            here = self.whole(attention_mask)  # of the whole sequence, as OPT's positions
            logits = self.fuse({name: feature + here for name, feature in features.items()})
            return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}

    model = make_toy(Placed)
    ids = torch.tensor([[1, 8, 2, 8], [8, 3, 4, 5], [2, 3, 8, 8]])
    batch = {"image": torch.rand(3, 4, 5).double(), "input_ids": ids, "attention_mask": (ids != 5).long()}
    model.config = {"image_token_id": 8}
    found = find_modalities(model, {**batch, "labels": torch.tensor([0, 1, 2])})
    assert found.modalities["image"].encoder == ("enc_image",)
    assert found.modalities["text"].encoder == ("words", "enc_text")
    assert "whole.weight" in found.fusion


class OneTower(Concat):
    """One encoder for pictures and videos."""

    modalities = ("pixel_values", "pixel_values_videos", "text")

    def build(self) -> None:
        self.head = nn.Linear(self.width * 3, 3)
        self.enc_pixel_values_videos = None

    def encode(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return super().encode("text" if name == "text" else "pixel_values", x)


def test_images_and_videos_of_one_encoder_are_one_modality() -> None:
    model = make_toy(OneTower)
    found = find_modalities(model, toy_batch(model))
    assert found.modalities["vision"].inputs == ("pixel_values", "pixel_values_videos")
    assert found.modalities["vision"].encoder == ("enc_pixel_values",)
    assert set(found.modalities) == {"text", "vision"}


def test_images_and_videos_of_two_encoders_are_two() -> None:
    class TwoTowers(Concat):
        modalities = ("pixel_values", "pixel_values_videos", "text")

    model = make_toy(TwoTowers)
    assert set(find_modalities(model, toy_batch(model)).modalities) == {"image", "video", "text"}


def test_a_line_break_among_an_images_tokens_is_the_images() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower, self.words = nn.Sequential(nn.Linear(5, 6)), nn.Sequential(nn.Linear(5, 6))
            self.line_break = nn.Parameter(torch.randn(1, 1, 6))

        def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            seen = torch.cat([self.tower(image), self.line_break.expand(len(image), -1, -1)], 1)
            return torch.cat([seen, self.words(text)], 1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = Inner(), nn.Linear(6, 3)

        def forward(self, labels: torch.Tensor, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": nn.functional.cross_entropy(self.head(self.inner(**inputs).tanh().mean(1)), labels)}

    model = Model().double()
    owners = find_modalities(model, toy_batch(make_toy(Concat))).owners
    assert owners["inner.line_break"] == {"image"}


def test_a_loss_that_does_not_move_with_its_modality_is_refused() -> None:
    """Choices that differ in their text alone score alike without it (VisualBertForMultipleChoice)."""

    class Choices(Concat):
        def build(self) -> None:
            self.head = nn.Linear(2 * self.width, 1)

        def forward(self, image: Any, text: Any, labels: Any) -> dict[str, Any]:
            seen = self.enc_image(image).mean(1)[:, None].expand(-1, text.shape[1], -1)
            logits = self.head(torch.tanh(torch.cat([seen, self.enc_text(text)], -1) * 2).cumsum(-1))[..., 0]
            logits = logits * (1 + seen.sum(-1))
            return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}

    model = make_toy(Choices)
    with pytest.raises(ValueError, match="The loss of image alone does not move with image"):
        find_modalities(model, toy_batch(model))


def test_a_leak_is_explained_by_what_comes_past_the_encoders() -> None:
    class Skips(Concat):
        def fuse(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
            return super().fuse(features) + self.raw

        def features(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            self.raw = batch["image"].mean(1)[:, :3]
            return super().features(batch)

    model = make_toy(Skips)
    with pytest.raises(
        ValueError, match="(?s)text alone: LEAK.*These inputs reach the fusion past the encoders: image"
    ):
        find_modalities(model, toy_batch(model))


def test_encoder_without_gradients_is_refused() -> None:
    class Blind(Concat):
        def encode(self, name: str, x: torch.Tensor) -> torch.Tensor:
            with torch.set_grad_enabled(name != "image"):
                return super().encode(name, x)

    model = make_toy(Blind)
    with pytest.raises(ValueError, match="image encoder .* under `torch.no_grad"):
        propose(model, toy_batch(model))


def test_fusion_from_the_start_is_refused() -> None:
    class Early(Concat):
        def features(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            both = batch["image"] + batch["text"]
            return {name: self.encode(name, both) for name in self.modalities}

    model = make_toy(Early)
    with pytest.raises(ValueError, match="No module of the model sees 'image' alone"):
        propose(model, toy_batch(model))


def test_unknown_input_says_what_to_type() -> None:
    batch = {"input_ids": torch.ones(2, 3), "foo": torch.ones(2, 3)}
    with pytest.raises(ValueError, match=re.escape("inputs={'image': ['foo']}")) as raised:
        group_inputs(batch)
    assert "find_modalities(model, batch, inputs=...)" in str(raised.value)
    assert group_inputs(batch, {"image": ["foo"]}) == {"text": ("input_ids",), "image": ("foo",)}
    with pytest.raises(ValueError, match="not in the batch"):
        group_inputs(batch, {"image": ["bar"]})


def test_normalised_outputs_are_refused_with_what_to_do() -> None:
    class Normalised(Concat):
        def encode(self, name: str, x: torch.Tensor) -> torch.Tensor:
            encoded = super().encode(name, x)
            return encoded / encoded.norm(dim=-1, keepdim=True)

    model = make_toy(Normalised)
    with pytest.raises(ValueError, match="before they are normalised"):
        propose(model, toy_batch(model))


def test_attention_mask_of_a_waveform_is_not_text() -> None:
    batch = {"input_values": torch.ones(2, 3), "attention_mask": torch.ones(2, 3), "labels": torch.ones(2)}
    assert group_inputs(batch) == {"labels": ("labels",), "audio": ("input_values", "attention_mask")}


def test_a_dict_of_labels_is_no_modality():
    """LXMERT's `obj_labels`."""
    ids = torch.ones(1, 2, dtype=torch.long)
    batch = {"input_ids": ids, "obj_labels": {"obj": (ids, ids.float())}, "image": {"pixel_values": torch.rand(1, 3)}}
    assert group_inputs(batch) == {"text": ("input_ids",), "labels": ("obj_labels",), "image": ("image",)}


def test_code_can_be_pasted() -> None:
    model, batch = TINY["LlavaForConditionalGeneration"]()
    scope: dict[str, Any] = {}
    exec(propose(model, batch).as_code(), scope)
    with disentangle(model, scope["modalities"]) as handle:
        handle.check(batch)


def test_explanation_names_encoders_and_reasons() -> None:
    model, batch = TINY["BlipForQuestionAnswering"]()
    told = str(propose(model, batch))
    assert "\n    vision_model\n" in told and "\nfusion: " in told
    assert "text_encoder.encoder" in told and "reads" in told


def test_auto_needs_a_batch_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = make_toy(Concat)
    with pytest.raises(ValueError, match="example_batch"):
        disentangle(model, "auto")
    with pytest.raises(ValueError, match="must be 'auto'"):
        disentangle(model, "automatic")
    with caplog.at_level(logging.WARNING, "hf_dgl"):
        handle = disentangle(model, "auto", alpha=2.0, example_batch=toy_batch(model))
    assert handle.alpha == {"image": 2.0, "text": 2.0}
    assert "enc_image" in caplog.text and "no leak" in caplog.text


def test_trainer_finds_them_on_its_first_batch(tmp_path: Any) -> None:
    from hf_dgl import DGLTrainer, DGLTrainingArguments

    model, batch = TINY["LxmertForQuestionAnswering"]()
    rows = [{name: value[i] for name, value in batch.items()} for i in range(3)]
    args = DGLTrainingArguments(
        str(tmp_path), per_device_train_batch_size=3, max_steps=1, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = DGLTrainer(model, args, train_dataset=rows, modalities="auto")
    assert set(trainer.disentangled.partition.modalities) == {"image", "text"}
    trainer.train()
