"""The model card: what it says, that the Hub can read it, and that its code runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from hf_dgl.hub.model_card import create_model_card
from hf_dgl.method.methods import BASELINES, IN_WORDS
from hf_dgl.recipe.finetune import FinetuneResult, finetune
from hf_dgl.recipe.recipe import make_recipe
from hf_dgl.training.arguments import DGLTrainingArguments
from hf_dgl.training.trainer import DGLTrainer
from tests.recipes import TINY, tiny_recipe


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return finetune(
        make_recipe(tiny_recipe(folder, "image", "audio", "text", alpha={"image": 2.0, "text": 1.0, "audio": 3.0}))
    )


@pytest.fixture(scope="module")
def card(result: FinetuneResult) -> ModelCard:
    return ModelCard.load(Path(result.output_dir, "README.md"))


def test_metadata(card: ModelCard, result: FinetuneResult) -> None:
    data = card.data.to_dict()
    assert data["library_name"] == "hf_dgl"
    assert {"hf_dgl", "multimodal", "image", "text", "audio"} <= set(data["tags"])
    assert data["model-index"][0]["name"] == "digits"
    assert card.data.eval_results is not None
    figures = {entry.metric_name: entry.metric_value for entry in card.data.eval_results}
    assert figures["accuracy (fused)"] == result.metrics["test"]["accuracy"]
    assert figures["macro-F1 (audio alone)"] == result.metrics["test"]["f1_audio"]
    assert all(entry.dataset_split == "test" for entry in card.data.eval_results)


def test_text(card: ModelCard, result: FinetuneResult) -> None:
    assert card.text.lstrip().startswith("# digits\n")
    for needle in (
        "arXiv:2507.10213",
        "2.0 (image), 1.0 (text), 3.0 (audio)",
        "`method: dgl`",
        "random weights",
        "cross_attention",
        "Reads image, audio and text, together or whichever is there, and answers with one of these labels: `zero`,",
        f"accuracy {result.metrics['test']['accuracy']:.3f} with all of them (test split)",
        f"{result.metrics['test']['accuracy_audio']:.3f} with audio only",
        "![Terms of the loss, training loss by step. fused: ",
        "](training_curves.png)",
        "](gradient_norms.png)",
        "![Encoders below, fusion above. Parameters: ",
        "[report.html](report.html)",
        "## Limits",
    ):
        assert needle in card.text
    for row in result.table().rows:
        assert "| " + " | ".join(row) + " |" in card.text
    for line in card.text.splitlines():  # a broken template leaves holes
        assert "None" not in line.replace("put `None`", "") and "Undefined" not in line and "{{" not in line


def test_recipe_is_the_one_that_was_run(card: ModelCard, result: FinetuneResult) -> None:
    block = re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)
    assert block is not None
    assert yaml.safe_load(block[1]) == yaml.safe_load(Path(result.output_dir, "recipe.yaml").read_text())


def test_its_code_runs(card: ModelCard, result: FinetuneResult, monkeypatch: Any, capsys: Any) -> None:
    """By our package, and by `trust_remote_code` (where the package is missing: `tests/hub/test_hub.py`)."""
    ours, without = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    folder = Path(result.output_dir).parent
    monkeypatch.chdir(folder)
    Image.new("RGB", (8, 8)).save(folder / "photo.png")
    soundfile.write(folder / "speech.wav", np.zeros(4000), 8000)
    exec(ours, {})
    assert "'modalities': {'image'" in capsys.readouterr().out
    assert "audio=[soundfile.read(" in without and "# mono, 16000 Hz" in without
    exec(without, {})
    assert "tensor([[" in capsys.readouterr().out


def test_base_models_and_data_sets_of_the_hub_are_linked(
    result: FinetuneResult, tmp_path: Path, monkeypatch: Any
) -> None:
    sources = {
        "image": "google/vit-base-patch16-224",
        "text": {"checkpoint": "openai/clip-vit-base-patch32", "tower": "text"},
        "audio": "package:some_package/model",
    }
    recipe = {"encoders": sources, "dataset_name": "ethz/food101"}
    monkeypatch.setattr(result.trainer, "recipe", yaml.safe_dump(recipe))
    monkeypatch.setattr(result.trainer.args, "output_dir", str(tmp_path))
    card = create_model_card(result.trainer, license="mit", tags="food", model_name="my name")
    data = card.data.to_dict()
    assert data["base_model"] == ["google/vit-base-patch16-224", "openai/clip-vit-base-patch32"]
    assert data["datasets"] == ["ethz/food101"] and data["license"] == "mit" and "food" in data["tags"]
    assert "[google/vit-base-patch16-224](https://huggingface.co/google/vit-base-patch16-224)" in card.text
    assert "on [ethz/food101](https://huggingface.co/datasets/ethz/food101)." in card.text
    assert "# my name" in card.text
    assert "![" not in card.text and "report.html" not in card.text  # they are not in this folder


def test_no_folder_of_this_machine_and_no_token(result: FinetuneResult, card: ModelCard, monkeypatch: Any) -> None:
    home = str(Path(result.output_dir).parent)
    assert home not in str(card)
    secret = "hf_" + "x" * 34
    recipe = {
        "encoders": {"image": f"{home}/my_vit", "text": {"checkpoint": f"{home}/my_bert"}},
        "dataset_name": "imagefolder",
        "data_files": [f"{home}/digits.zip", "~/letters.zip"],
        "model_name_or_path": f"{home}/before",
        "token": secret,
        "hub_token": secret,
    }
    monkeypatch.setattr(result.trainer, "recipe", yaml.safe_dump(recipe))
    text = str(create_model_card(result.trainer))
    assert home not in text and secret not in text and "token" not in text and "~" not in text
    for name in ("my_vit", "my_bert", "digits.zip", "letters.zip"):
        assert f".../{name}" in text  # what it was is still told
    assert "huggingface.co/..." not in text and "base_model" not in text


def test_checkpoints_have_a_card_with_the_results_so_far(tmp_path: Path) -> None:
    values = tiny_recipe(tmp_path / "run", save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text('{"test": {"accuracy": 0.987}}')  # of an earlier run
    result = finetune(make_recipe({**values, "overwrite_output_dir": True}))
    log = result.trainer.state.log_history
    score = next(entry["eval_accuracy"] for entry in log if entry["step"] == 1 and "eval_loss" in entry)
    card = ModelCard.load(tmp_path / "run" / "checkpoint-1" / "README.md")
    assert "**A checkpoint**: the model after step 1" in card.text and "0.987" not in card.text
    assert f"accuracy {score:.3f} with all of them (validation split)" in card.text
    assert "dataset_name: sample:image_text" in card.text  # the recipe
    assert card.data.eval_results is None and "![" not in card.text and "report.html" not in card.text
    assert "**A checkpoint**" not in ModelCard.load(tmp_path / "run" / "README.md").text


def test_joint_is_called_joint(result: FinetuneResult, monkeypatch: Any) -> None:
    monkeypatch.setattr(result.trainer.args, "method", "joint")
    assert "plain joint training" in create_model_card(result.trainer).text


@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_is_not_called_disentangled(result: FinetuneResult, monkeypatch: Any, method: str) -> None:
    monkeypatch.setattr(result.trainer.args, "method", method)
    text = create_model_card(result.trainer).text
    assert IN_WORDS[method] in text and f"(`method: {method}`)" in text
    assert "by disentangled gradient learning" not in text


def test_other_models_get_a_card_too(tmp_path: Path) -> None:
    """A `DGLTrainer` takes any model; a card must not assume ours."""
    config = CLIPConfig(
        vision_config={**TINY, "image_size": 16, "patch_size": 8}, text_config={**TINY, "vocab_size": 50}
    )
    modalities = {"image": "vision_model", "text": "text_model"}
    args = DGLTrainingArguments(str(tmp_path), use_cpu=True)
    card = create_model_card(DGLTrainer(CLIPModel(config), args, modalities=modalities))
    assert "from transformers import CLIPModel" in card.text
    assert "Reads image and text" in card.text


EVIL = [
    "a`b",
    "``",
    "two\nlines",
    "# heading\n\n# heading",
    "<script>alert(1)</script>",
    "![x](y)",
    "a|b",
    "{{ 7*7 }}",
    " ",
]


def test_whatever_labels_titles_and_data_sets_hold_is_shown_as_it_is(
    result: FinetuneResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    trainer, name = result.trainer, "my <b>model</b> `x`\n# Evil | *a* _b_ image_text"
    config = trainer.accelerator.unwrap_model(trainer.model).config
    monkeypatch.setattr(config, "id2label", dict(enumerate(EVIL)))
    recipe = yaml.safe_load(trainer.recipe)
    monkeypatch.setattr(trainer, "recipe", yaml.safe_dump({**recipe, "class_names": ["```\n# Evil\n"]}))
    monkeypatch.setattr(trainer, "is_in_train", False)
    text = str(create_model_card(trainer, model_name=name, dataset=["us/<img src=x>", "./a`b\n# c"]))
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["model-index"][0]["name"] == name
    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse(body)
    pieces = [piece for token in tokens for piece in token.children or [token]]
    assert not [piece for piece in pieces if piece.type in ("html_inline", "html_block")]
    spans = [piece.content for piece in pieces if piece.type == "code_inline"]
    for label in EVIL[:-1]:
        assert " ".join(label.split()) in spans
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    known = "Results|Use|When a modality is missing|Training|Limits|Citation".split("|")
    assert [heading for heading in headings[1:] if heading not in known] == []
    title = [piece.content for piece in tokens[1].children if piece.type == "text"]
    assert "".join(title) == " ".join(name.split())
    assert "49" not in "".join(spans)
