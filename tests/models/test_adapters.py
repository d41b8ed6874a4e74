"""LoRA under DGL: gradients against the oracle, and what is saved, loaded, merged and resumed, from the recipe on."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors import safe_open
from transformers import BertModel, ViTImageProcessorPil, ViTModel

from hf_dgl.architectures import modalities_of
from hf_dgl.architectures.attach import disentangle
from hf_dgl.cli import main
from hf_dgl.data import CrossModalCollator
from hf_dgl.inference.cross_modal_pipeline import CrossModalPipeline
from hf_dgl.models import adapters
from hf_dgl.models.adapters import add_adapters, check_settings, is_adapter, load_model, quantized
from hf_dgl.models.modeling_cross_modal import CrossModalForSequenceClassification
from hf_dgl.models.processing_cross_modal import CrossModalProcessor
from hf_dgl.recipe.finetune import FinetuneResult, evaluate, finetune
from hf_dgl.recipe.recipe import load_recipe, make_recipe
from tests.method.test_cross_modal_gradients import expected, to_double
from tests.method.test_disentangle import EXACT, settings
from tests.oracle import gradients, max_difference
from tests.recipes import TINY_ENCODERS, tiny_recipe
from tests.tiny import tiny_batch, tiny_encoder_config, tiny_model, tiny_rows, tiny_tokenizer

pytestmark = pytest.mark.device

LORA = {"r": 4, "lora_alpha": 8}


def adapted(fusion_type: str = "cross_attention", modules: str = "encoders", **kwargs: Any) -> Any:
    """A tiny model with LoRA in float64, whose adapters are not at their start (B = 0)."""
    model = add_adapters(tiny_model(fusion_type=fusion_type), {**LORA, "modules": modules}, **kwargs).double().train()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


# ---- gradients ----


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("modules", ["encoders", "fusion", "all"])
@pytest.mark.parametrize("fusion_type", ["cross_attention", "concat"])
def test_gradients_are_the_oracles(fusion_type: str, modules: str, checkpointing: bool) -> None:
    model, batch = adapted(fusion_type, modules), to_double(tiny_batch())
    if checkpointing:
        model.gradient_checkpointing_enable()
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with disentangle(model, modalities_of(model)) as handle:
        output = model(**batch)
        output.loss.backward()
        owners = handle.partition.owners
    trained = {"multimodal"} if modules == "fusion" else {"multimodal", "image", "text"}
    assert set(output.losses) == trained
    assert flags == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == any(part in name for part in ("lora_", "modules_to_save"))
        assert (parameter.grad is not None) == parameter.requires_grad, name
    actual = gradients(model)
    model.zero_grad()
    assert max(float(gradient.abs().max()) for gradient in actual.values()) > 1e-3
    assert max_difference(actual, expected(model, batch, settings("dgl", 1.0), owners)) < EXACT


@pytest.mark.parametrize("method", ["joint", "auxiliary", "multimodal_truncation", "unimodal_truncation"])
def test_other_methods(method: str) -> None:
    model, batch = adapted(modules="all"), to_double(tiny_batch())
    chosen = settings(method)
    with disentangle(model, modalities_of(model), **chosen) as handle:
        model(**batch).loss.backward()
        owners = handle.partition.owners
    actual = gradients(model)
    model.zero_grad()
    assert max_difference(actual, expected(model, batch, chosen, owners)) < EXACT


def test_an_encoder_with_nothing_to_train_skips_its_pass(caplog: pytest.LogCaptureFixture) -> None:
    model, batch = adapted(frozen=["image"]), to_double(tiny_batch())
    assert not any("encoders.image" in name and "lora" in name for name, _ in model.named_parameters())
    with caplog.at_level(logging.WARNING), disentangle(model, modalities_of(model)) as handle:
        output = model(**batch)
        output.loss.backward()
        owners = handle.partition.owners
    assert set(output.losses) == {"multimodal", "text"}
    assert "Modality 'image' has no trainable parameters: its unimodal pass is skipped." in caplog.text
    actual = gradients(model)
    model.zero_grad()
    assert max_difference(actual, expected(model, batch, settings("dgl", 1.0), owners)) < EXACT


def test_an_encoder_from_scratch_is_trained_in_full() -> None:
    model, batch = adapted(new=["image"]), to_double(tiny_batch())
    with disentangle(model, modalities_of(model)) as handle:
        model(**batch).loss.backward()
        owners = handle.partition.owners
        assert all(cut.reuse for cut in handle.cuts.values())
    actual = gradients(model)
    model.zero_grad()
    encoder = [name for name in actual if "encoders.image.modules_to_save" in name]
    assert len(encoder) == len(list(tiny_model().cross_modal.encoders["image"].parameters()))
    assert max_difference(actual, expected(model, batch, settings("dgl", 1.0), owners)) < EXACT


# ---- which layers ----


def trainable(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_target_modules_stay_within_the_chosen_parts() -> None:
    model = add_adapters(tiny_model(), {**LORA, "target_modules": ["q_proj", "query"]})  # the fusion has q_proj, too
    lora = {name for name in trainable(model) if "lora" in name}
    assert lora and all("cross_modal.encoders." in name for name in lora)
    assert all(".q_proj." in name or ".query." in name for name in lora)
    by_expression = add_adapters(tiny_model(), {**LORA, "target_modules": r".*\.(q_proj|query)"})
    assert {name for name in trainable(by_expression) if "lora" in name} == lora
    one_layer = add_adapters(tiny_model(), {**LORA, "layers_to_transform": [0]})
    assert all(".0." in name for name in trainable(one_layer) if "lora" in name)


def test_modules_to_save_can_be_added() -> None:
    model = add_adapters(tiny_model(), {**LORA, "modules_to_save": ["encoders.image.layernorm"]})
    assert any("encoders.image.layernorm.modules_to_save" in name for name in trainable(model))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"ranke": 8}, "peft: unknown key 'ranke'"),
        ({"lora_alfa": 8}, "unknown key 'lora_alfa': did you mean 'lora_alpha'"),
        ({"r": "many"}, "peft: expected a number for `r`, got 'many'"),
        ({"r": 0}, "peft: expected a number for `r`, got 0"),
        ({"use_rslora": "perhaps"}, "peft: expected true or false for `use_rslora`, got 'perhaps'"),
        ({"modules": "encoder"}, r"`modules` must be one of .*, got 'encoder': did you mean 'encoders'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the weights"),
        ({"target_modules": ["nothing"]}, "there is no layer for LoRA with `modules: encoders`"),
    ],
)
def test_mistakes(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_adapters(tiny_model(), block)


def test_words_of_a_command_line_are_typed() -> None:
    words = {"r": "8", "lora_dropout": "1e-1", "use_rslora": "true", "target_modules": "[query, value]"}
    typed = {"r": 8, "lora_dropout": 0.1, "use_rslora": True, "target_modules": ["query", "value"]}
    assert check_settings(words) == typed
    assert check_settings({"target_modules": r".*\.(query|value)", "bias": "none"})["bias"] == "none"


def test_without_peft_or_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    monkeypatch.setattr("hf_dgl.models.extras.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install -c constraints.txt -e ".\[peft\]"'):
        check_settings({"r": 8})
    with pytest.raises(ValueError, match="load_in_4bit needs the package bitsandbytes, which is not installed"):
        quantized({"text": "org/text"}, bits=4)


def test_quantised_encoders_are_those_of_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: object())
    new = tiny_encoder_config("vit")
    found = quantized({"image": new, "text": "org/text", "audio": {"checkpoint": "org/clap", "tower": "audio"}}, 8)
    assert found["image"] is new
    assert found["text"]["checkpoint"] == "org/text" and found["text"]["quantization_config"].load_in_8bit
    assert found["audio"]["tower"] == "audio" and not found["audio"]["quantization_config"].load_in_4bit


# ---- from the recipe to files and back ----


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny pretrained encoders in folders, with their processors."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    BertModel(tiny_encoder_config("bert")).save_pretrained(folder / "text")
    tiny_tokenizer().save_pretrained(folder / "text")
    ViTModel(tiny_encoder_config("vit")).save_pretrained(folder / "image")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder / "image")
    return {"image": str(folder / "image"), "text": str(folder / "text")}


def lora_recipe(output_dir: Any, checkpoints: dict[str, str], **values: Any) -> dict[str, Any]:
    defaults = {
        "encoders": checkpoints,
        "peft": LORA,
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    return tiny_recipe(output_dir, **{**defaults, **values})


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, str]) -> FinetuneResult:
    return finetune(make_recipe(lora_recipe(tmp_path_factory.mktemp("out"), checkpoints)))


def logits(model: Any, folder: str) -> torch.Tensor:
    batch = CrossModalCollator(CrossModalProcessor.from_pretrained(folder))(tiny_rows(num_rows=6))
    with torch.no_grad():
        return model.eval()(**batch).logits


def test_the_merged_model_is_a_plain_one(merged: FinetuneResult) -> None:
    out = merged.output_dir
    names = {path.name for path in Path(out).iterdir()}
    assert {"config.json", "model.safetensors", "adapter", "README.md"} <= names
    assert not names & {"adapter_config.json", "adapter_model.safetensors", "base.json"}
    assert type(merged.model) is CrossModalForSequenceClassification
    model, info = CrossModalForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(model, out), logits(merged.model, out))
    assert "CrossModalPipeline.from_pretrained" in Path(out, "README.md").read_text()


def test_adapter_folders_load_exactly(merged: FinetuneResult) -> None:
    out = merged.output_dir
    for folder in ("adapter", "checkpoint-2"):
        names = {path.name for path in Path(out, folder).iterdir()}
        assert {"adapter_model.safetensors", "adapter_config.json", "base.json", "config.json"} <= names
        assert "model.safetensors" not in names
        assert "library_name: hf_dgl" in Path(out, folder, "README.md").read_text()  # not PEFT's draft
        assert is_adapter(f"{out}/{folder}") and not is_adapter(out)
        model = load_model(f"{out}/{folder}")
        assert isinstance(model, PeftModel) and not model.training
        with_adapters = logits(model, out)
        assert (with_adapters - logits(load_model(out), out)).abs().max() < 1e-6
        again = logits(load_model(f"{out}/{folder}"), out)
        assert torch.equal(with_adapters, again)
        assert torch.equal(logits(copy.deepcopy(model).merge_and_unload(), out), logits(merged.model, out))


def test_an_adapter_is_small(merged: FinetuneResult) -> None:
    keys = [name for name, _ in load_model(f"{merged.output_dir}/adapter").named_parameters()]
    with safe_open(f"{merged.output_dir}/adapter/adapter_model.safetensors", framework="pt") as file:
        saved = set(file.keys())
    assert len(saved) < len(keys)
    assert all("lora_" in name or not name.startswith("base_model.model.cross_modal.encoders") for name in saved)
    assert any("cross_modal.fusion" in name for name in saved) and any("classifier" in name for name in saved)


@pytest.mark.slow
def test_only_adapters(tmp_path: Path, checkpoints: dict[str, str]) -> None:
    values = lora_recipe(tmp_path, checkpoints, peft_merge=False, save_strategy="no")
    result = finetune(make_recipe(values))
    names = {path.name for path in tmp_path.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "base.json", "config.json", "README.md"} <= names
    assert "model.safetensors" not in names and "adapter" not in names
    assert "lora" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "base.json").read_text()) == {"encoders": checkpoints}
    assert torch.equal(logits(result.model, str(tmp_path)), logits(load_model(tmp_path), str(tmp_path)))
    assert "library_name: hf_dgl" in (tmp_path / "README.md").read_text()
    assert evaluate(tmp_path, load_recipe(tmp_path / "recipe.yaml")) == result.metrics["test"]
    answer: Any = CrossModalPipeline.from_pretrained(str(tmp_path))(text="an even digit")
    assert 0 < answer["score"] <= 1
    again = finetune(make_recipe({**values, "peft_merge": True, "overwrite_output_dir": True}))  # into the same folder
    assert not is_adapter(tmp_path) and again.metrics["test"] == result.metrics["test"]


@pytest.mark.slow
def test_encoders_from_scratch_are_saved_with_the_adapter(tmp_path: Path, checkpoints: dict[str, str]) -> None:
    encoders = {"image": TINY_ENCODERS["image"], "text": checkpoints["text"]}
    result = finetune(make_recipe(lora_recipe(tmp_path, checkpoints, encoders=encoders, peft_merge=False)))
    assert torch.equal(logits(result.model, str(tmp_path)), logits(load_model(tmp_path), str(tmp_path)))


@pytest.mark.slow
def test_adapters_on_a_model_of_ours(tmp_path: Path, merged: FinetuneResult, checkpoints: dict[str, str]) -> None:
    values = lora_recipe(tmp_path, checkpoints, encoders=None, model_name_or_path=merged.output_dir, peft_merge=False)
    result = finetune(make_recipe({**values, "peft": {"r": 2, "modules": "all"}}))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == merged.output_dir
    assert torch.equal(logits(result.model, str(tmp_path)), logits(load_model(tmp_path), str(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("peft_merge", [True, False])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(
    tmp_path: Path, checkpoints: dict[str, str], peft_merge: bool
) -> None:
    extra = {"lr_scheduler_type": "constant", "peft_merge": peft_merge, "eval_strategy": "steps", "eval_steps": 2}
    values = lora_recipe(tmp_path, checkpoints, save_steps=2, **extra)
    whole = finetune(make_recipe({**values, "max_steps": 4, "output_dir": str(tmp_path / "whole")}))
    finetune(make_recipe({**values, "max_steps": 2, "output_dir": str(tmp_path / "parts")}))
    resume = {"max_steps": 4, "output_dir": str(tmp_path / "parts"), "resume_from_checkpoint": True}
    resumed = finetune(make_recipe({**values, **resume}))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


@pytest.mark.slow
def test_the_best_adapter_is_the_one_that_is_saved(tmp_path: Path, checkpoints: dict[str, str]) -> None:
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    values = lora_recipe(tmp_path, checkpoints, eval_strategy="steps", eval_steps=1, max_steps=3, **best)
    result = finetune(make_recipe(values))
    evaluated = [e["eval_loss"] for e in result.trainer.state.log_history if "eval_loss" in e and e["step"]]
    assert result.metrics["validation"]["loss"] == pytest.approx(max(evaluated))


@pytest.mark.slow
def test_with_activation_checkpointing_and_a_frozen_modality(tmp_path: Path, checkpoints: dict[str, str]) -> None:
    values = lora_recipe(tmp_path, checkpoints, freeze=["image"], gradient_checkpointing=True)
    result = finetune(make_recipe(values))
    log = result.trainer.state.log_history
    assert any("loss_text" in entry for entry in log) and not any("loss_image" in entry for entry in log)
    trained = load_model(tmp_path / "adapter").get_base_model().cross_modal.encoders["image"].state_dict()
    for name, weight in ViTModel.from_pretrained(checkpoints["image"], add_pooling_layer=False).state_dict().items():
        assert torch.equal(weight, trained[name]), name


def test_from_the_command_line(
    tmp_path: Path, checkpoints: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "lora.yaml"
    recipe.write_text(yaml.safe_dump(lora_recipe(tmp_path / "out", checkpoints, peft={"r": 2, "lora_dropout": 0.1})))
    out = str(tmp_path / "out")
    assert main(["train", str(recipe), "--peft", "r=3", "lora_alpha=6", "--peft_merge=false"]) == 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (3, 6, 0.1)
    capsys.readouterr()
    assert main(["evaluate", out]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores == json.loads((tmp_path / "out" / "metrics.json").read_text())["test"]
    assert main(["predict", out, "--text=an even digit"]) == 0
    assert json.loads(capsys.readouterr().out)["label"]
    mistakes = [
        (["--peft", "rank=3"], "peft: unknown key 'rank'"),
        (["--peft", "yes"], "peft: expected a mapping such as"),
        (["--load_in_4bit", "--peft_merge=true"], "cannot be merged exactly into 4-bit weights"),
        (["--load_in_4bit", "--load_in_8bit"], "load_in_4bit and load_in_8bit exclude each other"),
        (["--load_in_8bit"], "load_in_8bit needs the package bitsandbytes"),
    ]
    for words, message in mistakes:
        assert main(["train", str(recipe), "--overwrite_output_dir", *words]) == 2
        assert message in capsys.readouterr().err
