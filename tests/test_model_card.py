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

from hf_dgl.finetune import FinetuneResult, finetune
from hf_dgl.model_card import create_model_card
from hf_dgl.recipe import make_recipe
from hf_dgl.trainer import DGLTrainer
from hf_dgl.training_args import DGLTrainingArguments
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
    ):
        assert needle in card.text
    for row in result.table().rows:
        assert "| " + " | ".join(row) + " |" in card.text
    for line in card.text.splitlines():  # a broken template leaves holes
        assert "None" not in line and "Undefined" not in line and "{{" not in line


def test_recipe_is_the_one_that_was_run(card: ModelCard, result: FinetuneResult) -> None:
    block = re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)
    assert block is not None
    assert yaml.safe_load(block[1]) == yaml.safe_load(Path(result.output_dir, "recipe.yaml").read_text())


def test_its_code_runs(card: ModelCard, result: FinetuneResult, monkeypatch: Any, capsys: Any) -> None:
    block = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert block is not None
    folder = Path(result.output_dir).parent
    monkeypatch.chdir(folder)
    Image.new("RGB", (8, 8)).save(folder / "photo.png")
    soundfile.write(folder / "speech.wav", np.zeros(4000), 8000)
    exec(block[1], {})
    assert "'modalities': {'image'" in capsys.readouterr().out


def test_base_models_and_data_sets_of_the_hub_are_linked(
    result: FinetuneResult, tmp_path: Path, monkeypatch: Any
) -> None:
    sources = {
        "image": "google/vit-base-patch16-224",
        "text": {"checkpoint": "openai/clip-vit-base-patch32", "tower": "text"},
        "audio": "package:some_package/model",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"encoders": sources, "dataset_name": "ethz/food101"}))
    monkeypatch.setattr(result.trainer.args, "output_dir", str(tmp_path))
    card = create_model_card(result.trainer, license="mit", tags="food", model_name="my name")
    data = card.data.to_dict()
    assert data["base_model"] == ["google/vit-base-patch16-224", "openai/clip-vit-base-patch32"]
    assert data["datasets"] == ["ethz/food101"] and data["license"] == "mit" and "food" in data["tags"]
    assert "[google/vit-base-patch16-224](https://huggingface.co/google/vit-base-patch16-224)" in card.text
    assert "## Results" not in card.text and "# my name" in card.text


def test_joint_is_called_joint(result: FinetuneResult, monkeypatch: Any) -> None:
    monkeypatch.setattr(result.trainer.args, "method", "joint")
    assert "plain joint training" in create_model_card(result.trainer).text


def test_other_models_get_a_card_too(tmp_path: Path) -> None:
    """A `DGLTrainer` takes any model; a card must not assume ours."""
    config = CLIPConfig(
        vision_config={**TINY, "image_size": 16, "patch_size": 8}, text_config={**TINY, "vocab_size": 50}
    )
    modalities = {"image": "vision_model", "text": "text_model"}
    args = DGLTrainingArguments(str(tmp_path), use_cpu=True)
    card = create_model_card(DGLTrainer(CLIPModel(config), args, modalities=modalities))
    assert "from transformers import CLIPModel" in card.text
    assert "Answers from image, text" in card.text
