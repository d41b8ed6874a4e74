"""The models: losses, saving and loading, absent modalities take no compute, checkpointing, LoRA, messages."""

import itertools
import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, Trainer, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_dgl.models.configuration_cross_modal import FUSION_TYPES, CrossModalConfig
from hf_dgl.models.modeling_cross_modal import CrossModalForSequenceClassification, CrossModalModel
from tests.devices import current, put
from tests.tiny import tiny_batch, tiny_encoder_config, tiny_model

pytestmark = pytest.mark.device

THREE = ("image", "text", "audio")

OLD_LOGITS = [
    [-0.007663567, -0.002428792, 0.006736584],
    [-0.006764177, 0.048172127, -0.002852920],
    [-0.004450755, 0.062010415, -0.054796278],
    [-0.014438196, 0.026794270, 0.022727365],
]
"""Of `tiny_model()` as of commit 74a1dc7, before `fusion_read_out` existed."""


# -------------------------------------------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
def test_reload_gives_identical_logits_and_no_report(fusion_type, tmp_path, caplog):
    model, batch = tiny_model(THREE, fusion_type=fusion_type), tiny_batch(THREE)
    before = model(**batch).logits
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists() and not list(tmp_path.glob("*.bin"))
    logging.getLogger("transformers").propagate = True
    try:
        with caplog.at_level(logging.WARNING, logger="transformers"):
            again = put(CrossModalForSequenceClassification.from_pretrained(tmp_path))
    finally:
        logging.getLogger("transformers").propagate = False
    assert not caplog.records
    assert torch.equal(again(**batch).logits, before)
    auto = put(AutoModelForSequenceClassification.from_pretrained(tmp_path))
    assert type(auto) is CrossModalForSequenceClassification and torch.equal(auto(**batch).logits, before)
    assert again.config.modalities == list(THREE)


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
def test_a_model_saved_before_there_was_a_choice_of_read_out_gives_the_same_logits(fusion_type, tmp_path):
    """Logits and names of `cross_attention` as commit 74a1dc7 had them; `means` is what its read-out was."""
    model, batch = tiny_model(fusion_type=fusion_type, fusion_read_out="means"), tiny_batch(labels=False)
    if fusion_type == "cross_attention":
        expected = torch.tensor(OLD_LOGITS)
        torch.testing.assert_close(model(**batch).logits.cpu(), expected, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    del written["fusion_read_out"]
    path.write_text(json.dumps(written))
    again = put(CrossModalForSequenceClassification.from_pretrained(tmp_path))
    assert again.config.fusion_read_out == "means" and torch.equal(again(**batch).logits, model(**batch).logits)
    again.save_pretrained(tmp_path)  # and is written down from now on
    assert json.loads(path.read_text())["fusion_read_out"] == "means"


def test_saved_names_are_the_model_s_own(tmp_path):
    """`Trainer` reads checkpoints back with `load_state_dict`, without upstream's renaming of older formats."""
    model = tiny_model(THREE)
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())


def test_base_model_loads_from_a_classifier(tmp_path):
    model, batch = tiny_model(), tiny_batch(labels=False)
    model.save_pretrained(tmp_path)
    base = put(AutoModel.from_pretrained(tmp_path))
    assert type(base) is CrossModalModel
    assert torch.equal(base(**batch).pooler_output, model.cross_modal(**batch).pooler_output)
    assert base(**batch).pooler_output.shape == (4, base.output_size)


def test_reload_in_another_dtype(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = put(CrossModalForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    batch = tiny_batch()
    batch["image"]["pixel_values"] = batch["image"]["pixel_values"].bfloat16()
    out = model(**batch)
    assert out.logits.dtype == torch.bfloat16 and out.loss.dtype == torch.float32


def test_building_is_deterministic_and_initialised():
    a, b = tiny_model(seed=1), tiny_model(seed=1)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    fusion = a.cross_modal.fusion
    assert fusion.final_norm["image"].weight.eq(1).all() and a.classifier.bias.eq(0).all()
    assert 0.01 < fusion.layers["image"][0].self_attn.q_proj.weight.std() < 0.03
    tokens = a.cross_modal.projections["image"](put(torch.randn(64, 5, 16)))
    assert 0.5 < tokens.std() < 2  # unit scale, whatever the width


# ------------------------------------------------------------------------------------------------------------- forward


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
def test_an_absent_modality_takes_no_compute(fusion_type):
    model, batch = tiny_model(THREE, fusion_type=fusion_type), tiny_batch(THREE, labels=False)
    calls = []
    for name in THREE:
        for part in ("encoders", "projections"):
            module = getattr(model.cross_modal, part)[name]
            module.register_forward_hook(lambda *_, key=(part, name): calls.append(key))
    model(text=batch["text"])
    assert calls == [("encoders", "text"), ("projections", "text")]
    calls.clear()
    model(**batch)
    assert sorted(calls) == sorted(itertools.product(("encoders", "projections"), THREE))  # each once


def test_the_base_model_returns_hidden_states_and_presence():
    model, batch = tiny_model(THREE).cross_modal, tiny_batch(THREE, labels=False)
    batch["image"]["present"] = put(torch.tensor([True, True, True, False]))
    assert model(**batch).hidden_states is None
    out = model(**batch, output_hidden_states=True)
    assert {name: len(states) for name, states in out.hidden_states.items()} == dict.fromkeys(THREE, 3)
    assert out.present.tolist() == [True] * 4
    assert model(image=batch["image"]).present.tolist() == [True, True, True, False]
    assert isinstance(model(**batch, return_dict=False), tuple)


def test_single_label_loss():
    model, batch = tiny_model(), tiny_batch()
    out = model(**batch)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, batch["labels"]))
    assert model.config.problem_type == "single_label_classification"
    batch["labels"][1] = -100
    kept = [0, 2, 3]
    expected = torch.nn.functional.cross_entropy(out.logits[kept], batch["labels"][kept])
    torch.testing.assert_close(model(**batch).loss, expected)


def test_multi_label_loss():
    model, batch = tiny_model(), tiny_batch()
    batch["labels"] = put(torch.rand(4, 3).round())
    out = model(**batch)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(out.logits, batch["labels"])
    torch.testing.assert_close(out.loss, expected)
    assert model.config.problem_type == "multi_label_classification"


def test_regression_loss():
    model, batch = tiny_model(num_labels=1), tiny_batch()
    batch["labels"] = put(torch.randn(4))
    out = model(**batch)
    torch.testing.assert_close(out.loss, torch.nn.functional.mse_loss(out.logits[:, 0], batch["labels"]))
    assert model.config.problem_type == "regression"
    wide = tiny_model(num_labels=3, problem_type="regression")
    batch["labels"] = put(torch.randn(4, 3))
    out = wide(**batch)
    torch.testing.assert_close(out.loss, torch.nn.functional.mse_loss(out.logits, batch["labels"]))


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 2, 0]), torch.rand(4, 3)], ids=["single", "multi"])
def test_rows_without_any_modality_do_not_count(labels):
    model, batch = tiny_model(), tiny_batch(labels=False)
    batch["image"]["present"] = put(torch.tensor([True, False, False, True]))
    batch["text"]["present"] = put(torch.tensor([True, False, True, True]))
    kept, labels = put((torch.tensor([0, 2, 3]), labels))
    rows = {name: {key: value[kept] for key, value in inputs.items()} for name, inputs in batch.items()}
    expected = model(**rows, labels=labels[kept]).loss
    torch.testing.assert_close(model(**batch, labels=labels).loss, expected)


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
def test_every_parameter_gets_a_gradient(fusion_type):
    model = tiny_model(THREE, fusion_type=fusion_type).train()
    model(**tiny_batch(THREE)).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
def test_gradient_checkpointing_gives_the_same_gradients(fusion_type):
    model, batch = tiny_model(THREE, fusion_type=fusion_type).double().train(), tiny_batch(THREE)
    for name, key in (("image", "pixel_values"), ("audio", "input_values")):
        batch[name][key] = batch[name][key].double()
    model(**batch).loss.backward()
    plain = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    model.gradient_checkpointing_enable()
    runs = {}
    for name, module in model.named_modules():
        if getattr(module, "gradient_checkpointing", False) and isinstance(module, GradientCheckpointingLayer):
            child = next(m for m in module.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv1d))
            child.register_forward_hook(lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1}))
    model(**batch).loss.backward()
    assert len(runs) >= 3 and set(runs.values()) == {2}  # forward, and once more in backward
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], rtol=0, atol=1e-12)


def test_checkpointing_leaves_encoders_alone_that_do_not_support_it():
    encoders = {"audio": tiny_encoder_config("clap_audio"), "text": tiny_encoder_config("bert")}
    model = CrossModalForSequenceClassification(CrossModalConfig(encoders=encoders))
    model.gradient_checkpointing_enable()
    on = {name for name, m in model.named_modules() if getattr(m, "gradient_checkpointing", False)}
    assert on and not any("encoders.audio" in name for name in on)


def test_lora_attaches_to_encoders_and_fusion():
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "v_proj", "query", "value"]
    model = peft.get_peft_model(
        tiny_model(THREE), peft.LoraConfig(target_modules=targets, modules_to_save=["classifier"], r=2)
    )
    adapted = {name for name, _ in model.named_parameters() if "lora_A" in name}
    for part in (
        "encoders.audio",
        "encoders.text",
        "fusion.layers.image.0.self_attn",
        "fusion.layers.text.1.cross_attn",
    ):
        assert any(part in name for name in adapted), part
    model(**tiny_batch(THREE)).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.requires_grad == ("lora_" in name or "modules_to_save" in name)


def test_peft_task_model_passes_its_own_arguments():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], r=2)
    model = peft.get_peft_model(tiny_model(), config)
    assert model(**tiny_batch()).loss.isfinite()


def test_upstream_trainer_accepts_the_model(tmp_path):
    batch = tiny_batch(batch_size=4)
    args = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, report_to=[], remove_unused_columns=False,
        use_cpu=current().type == "cpu", disable_tqdm=True, save_strategy="no",
        dataloader_pin_memory=False,  # the rows are on the device already
    )  # fmt: skip
    trainer = Trainer(tiny_model(), args, train_dataset=list(range(8)), data_collator=lambda rows: dict(batch))
    assert trainer.model_accepts_loss_kwargs is False
    trainer.train()
    metrics = trainer.evaluate(list(range(4)))
    assert metrics["eval_loss"] > 0


def test_loading_properties_of_encoders_reach_the_whole_model():
    encoders = {"text": tiny_encoder_config("bert"), "image": tiny_encoder_config("vit")}
    model = CrossModalForSequenceClassification(CrossModalConfig(encoders=encoders))
    assert {"FusionLayer", "BertLayer", "ViTLayer"} <= set(model._no_split_modules)


# ------------------------------------------------------------------------------------------------------------ messages


def test_messages():
    model, batch = tiny_model(), tiny_batch(labels=False)
    with pytest.raises(ValueError, match=r"Got modality 'imag'.*Did you mean 'image'"):
        model(imag=batch["image"])
    with pytest.raises(ValueError, match=r"Got no modality.*image=\{"):
        model()
    with pytest.raises(ValueError, match=r"Got no modality"):
        model(image=None, labels=put(torch.zeros(4, dtype=torch.long)))
    with pytest.raises(ValueError, match=r"expected 'pixel_values'.*Did you mean 'pixel_value'"):
        model(image={"pixel_value": batch["image"]["pixel_values"]})
    with pytest.raises(ValueError, match=r"Got Tensor for modality 'image'.*pixel_values"):
        model(image=batch["image"]["pixel_values"])
    with pytest.raises(ValueError, match=r"\{'image': 4, 'text': 2\} rows"):
        model(image=batch["image"], text={key: value[:2] for key, value in batch["text"].items()})
    with pytest.raises(ValueError, match=r"without encoders"):
        CrossModalModel(CrossModalConfig())
    with pytest.raises(ValueError, match=r"no encoders"):
        CrossModalForSequenceClassification.from_encoders({})
