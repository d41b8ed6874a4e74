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
from tests.architectures_tiny import TINY
from tests.oracle import TOYS, Concat, TiedEncoders, make_toy, toy_batch

VLM_IMAGE = r"vision_(model|tower)\.|connector\.|multi_modal_projector\."
VLM_TEXT = r"embed_tokens|tok_embeddings|embed_positions"

# What may belong to a modality at most: (image or audio, text), regular expressions that match at the name's start.
TRUTH = {
    "BridgeTowerForImageAndTextRetrieval": (r"bridgetower\.vision_model", r"bridgetower\.text_model"),
    "BridgeTowerForMaskedLM": (r"bridgetower\.vision_model", r"bridgetower\.text_model"),
    "FlavaForSequenceClassification": (r"flava\.image_model", r"flava\.text_model"),
    "FlavaModel+CE": (r"model\.image_model", r"model\.text_model"),
    "LxmertForQuestionAnswering": (
        r"lxmert\.encoder\.(visn_fc|r_layers)",
        r"lxmert\.(embeddings|encoder\.layer\.)",
    ),
    "CrossModalForSequenceClassification": (r"cross_modal\.\w+\.image", r"cross_modal\.\w+\.text"),
    "ViltForQuestionAnswering": (r"vilt\.embeddings\.patch_emb", r"vilt\.embeddings\.text_emb"),
    "ViltForImagesAndTextClassification": (r"vilt\.embeddings\.patch_emb", r"vilt\.embeddings\.text_emb"),
    "VisualBertForVisualReasoning": (r"visual_bert\.embeddings\.visual", r"visual_bert\.embeddings\.(?!visual|Layer)"),
    "VisualBertForQuestionAnswering": (
        r"visual_bert\.embeddings\.visual",
        r"visual_bert\.embeddings\.(?!visual|Layer)",
    ),
    "LayoutLMv3ForSequenceClassification": (r"layoutlmv3\.(patch_embed|cls|pos|norm)", r"layoutlmv3\.embeddings"),
    "TvpForVideoGrounding": (r"model\.vis", r"model\.embeddings"),
    **{
        f"{name}ForConditionalGeneration": (rf"model\.({VLM_IMAGE})", rf"model\..*({VLM_TEXT})")
        for name in ("Llava", "SmolVLM", "Idefics2", "Mllama", "Florence2")
    },
    **{
        f"{name}ForSequenceClassification": (rf"model\.(encoder\.)?({VLM_IMAGE})", rf"model\..*({VLM_TEXT})")
        for name in ("ModernVBert", "UltraVBert", "Gemma3", "T5Gemma2")
    },
    "Qwen2AudioForConditionalGeneration": (r"model\.(audio_tower|multi_modal_proj)", rf"model\..*({VLM_TEXT})"),
    "GitForCausalLM": (r"git\.(image_encoder|visual_projection)", r"git\.embeddings"),
    "Blip2ForConditionalGeneration": (r"vision_model|qformer|query_tokens|language_proj", rf"language.*({VLM_TEXT})"),
    "Blip2ForImageTextRetrieval+CE": (r"model\.vision_model", r"model\.embeddings"),
    "InstructBlipForConditionalGeneration": (r"vision_model", rf"language.*({VLM_TEXT})|qformer\.embeddings"),
    "BlipForQuestionAnswering": (r"vision_model", r"text_encoder(?!.*crossattention)"),
    "BlipForImageTextRetrieval+CE": (r"model\.vision_model", r"model\.text_encoder(?!.*crossattention)"),
    "BlipForConditionalGeneration": (r"vision_model", r"text_decoder\.bert\.embeddings"),
    "IdeficsForVisionText2Text": (r"model\.vision_model", r"model\.embed_tokens"),
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
    "UdopForConditionalGeneration": "image alone: LEAK",  # boxes are read by the attention itself
}


@pytest.mark.parametrize("name", TRUTH)
def test_known_architectures(name: str) -> None:
    model, batch = TINY[name]()
    proposal = find_modalities(model, batch)  # leak 0 and exact gradients, or it raises
    allowed = dict(zip(("text" if n == "text" else "other" for n in ("image", "text")), TRUTH[name], strict=True))
    for parameter, owner in proposal.owners.items():
        assert re.match(allowed["text" if owner == "text" else "other"], parameter), (parameter, owner)
    assert {"image", "audio"} & set(proposal.owners.values())
    with disentangle(model, proposal.modalities) as handle:  # what is told is what is done
        for parameter, owner in proposal.owners.items():
            assert handle.partition.owners[parameter] == {owner}
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


@pytest.mark.parametrize("toy", [toy for toy in TOYS if toy is not TiedEncoders])
def test_toys(toy: Any) -> None:
    model = make_toy(toy)
    proposal = find_modalities(model, toy_batch(model))
    assert set(proposal.modalities) == set(model.modalities)
    for parameter, owner in proposal.owners.items():
        assert parameter.startswith(f"enc_{owner}")


def test_encoders_that_share_their_first_layer_are_refused() -> None:
    model = make_toy(TiedEncoders)
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
