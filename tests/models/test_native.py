"""Multimodal checkpoints as they are: which class, which head, and the way from a recipe to a saved model and back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from datasets import Dataset
from PIL import Image

from hf_dgl.cli import main
from hf_dgl.data import LabelSpec
from hf_dgl.inference.cross_modal_pipeline import CrossModalPipeline
from hf_dgl.inference.demo import build
from hf_dgl.inference.native_pipeline import NativePipeline
from hf_dgl.models.flava import FlavaForSequenceClassification
from hf_dgl.models.native import NativeProcessor, class_of, head_of, is_native, load_native
from hf_dgl.recipe.finetune import FinetuneResult, evaluate, finetune
from hf_dgl.recipe.recipe import Recipe, load_recipe, make_recipe
from tests.native_checkpoints import FEATURES, REGIONS, save_checkpoint
from tests.recipes import tiny_recipe

ROWS = 24


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: save_checkpoint(name, folder / name) for name in ("flava", "bridgetower", "lxmert", "blip")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A jsonl file with a picture, a text, region features, and labels of several kinds in each row."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    lines = []
    for i in range(ROWS):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        row = {"image": f"{i}.png", "text": f"is this a cat no {'dog ' * (i % 3)}", "two": ["no", "yes"][i % 2]}
        row |= {"three": "abc"[i % 3], "several": ["a", "b"][: i % 3], "number": i / 7}
        row |= {
            "visual_feats": rng.random((REGIONS, FEATURES)).tolist(),
            "visual_pos": rng.random((REGIONS, 4)).tolist(),
        }
        lines.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "rows.jsonl")


def recipe_of(checkpoint: str, data: str, output_dir: Any, label: str = "two", **values: Any) -> Recipe:
    settings = {"encoders": None, "num_fusion_layers": 2, "column_mapping": {"label": label}, "dataset_name": data}
    batches = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}
    return make_recipe(tiny_recipe(output_dir, model_name_or_path=checkpoint, **{**settings, **batches, **values}))


@pytest.fixture(scope="module")
def result(checkpoints: dict[str, str], data: str, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    steps = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    return finetune(recipe_of(checkpoints["flava"], data, tmp_path_factory.mktemp("out"), "three", **steps))


# ---- training -------------------------------------------------------------------------------------------------------


def test_scores_fused_and_of_each_modality(result: FinetuneResult) -> None:
    for stage in ("before", "validation", "test"):
        for key in ("loss", "accuracy", "accuracy_image", "accuracy_text", "f1_image"):
            assert math.isfinite(result.metrics[stage][key]), (stage, key)
    assert [row[0] for row in result.table().rows] == ["fused", "image alone", "text alone"]


def test_saved_is_a_plain_model_with_the_labels(result: FinetuneResult) -> None:
    config = json.loads(Path(result.output_dir, "config.json").read_text())
    assert config["architectures"] == ["FlavaForSequenceClassification"]
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert config["problem_type"] == "single_label_classification"
    again = FlavaForSequenceClassification.from_pretrained(result.output_dir)
    for name, weight in result.model.state_dict().items():
        assert torch.equal(weight.cpu(), again.state_dict()[name]), name
    assert isinstance(tf.AutoProcessor.from_pretrained(result.output_dir), tf.FlavaProcessor)


def test_evaluate_repeats_the_test_scores(result: FinetuneResult) -> None:
    recipe = load_recipe(Path(result.output_dir, "recipe.yaml"))
    assert evaluate(result.output_dir, recipe) == pytest.approx(result.metrics["test"], abs=1e-5)


@pytest.mark.slow
def test_resume_continues(checkpoints: dict[str, str], data: str, tmp_path: Path) -> None:
    values = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole = finetune(recipe_of(checkpoints["flava"], data, tmp_path / "whole", **values, max_steps=4))
    finetune(recipe_of(checkpoints["flava"], data, tmp_path / "parts", **values, max_steps=2))
    resume = {**values, "max_steps": 4, "resume_from_checkpoint": True}
    resumed = finetune(recipe_of(checkpoints["flava"], data, tmp_path / "parts", **resume))
    for name, weight in resumed.model.state_dict().items():
        torch.testing.assert_close(weight, whole.model.state_dict()[name], rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_a_fine_tuned_one_is_fine_tuned_further(result: FinetuneResult, data: str, tmp_path: Path) -> None:
    again = finetune(recipe_of(result.output_dir, data, tmp_path, "three", learning_rate=0.0))
    assert again.metrics["before"] == pytest.approx(result.metrics["validation"], abs=1e-5)


def test_predict_fused_and_by_each_modality(result: FinetuneResult, data: str) -> None:
    pipeline = CrossModalPipeline.from_pretrained(result.output_dir)
    image, text = str(Path(data).parent / "1.png"), "is this a cat"
    answer = pipeline(image=image, text=text)
    assert set(answer["scores"]) == {"a", "b", "c"} and set(answer["modalities"]) == {"image", "text"}
    with torch.no_grad():
        tokens = pipeline.processor.processors["text"](text, return_tensors="pt")
        alone = result.model.eval().cpu()(**tokens).logits.softmax(-1)[0]
    assert answer["modalities"]["text"]["scores"]["b"] == pytest.approx(alone[1].item(), abs=1e-5)
    with pytest.raises(ValueError, match="reads all of its modalities .*'image' is missing"):
        pipeline(text=text)


def test_predict_with_a_head_of_another_name(checkpoints: dict[str, str]) -> None:
    row = {"visual_feats": np.ones((REGIONS, FEATURES)), "visual_pos": np.ones((REGIONS, 4)), "text": "what is red"}
    processor = NativeProcessor.from_pretrained(checkpoints["lxmert"])
    labels = LabelSpec("single_label_classification", ("a", "b", "c"))
    model = load_native(checkpoints["lxmert"], processor.model_class, labels)
    answer = NativePipeline(model, processor)(row)
    assert set(answer["modalities"]) == {"image", "text"} and answer["label"] in answer["scores"]


def test_predict_refuses_models_that_write_text(checkpoints: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="BlipForQuestionAnswering writes text and scores no labels"):
        CrossModalPipeline.from_pretrained(checkpoints["blip"])


@pytest.mark.parametrize(
    ("label", "problem_type", "metric", "shape"),
    [("several", "multi_label_classification", "map_text", 2), ("number", "regression", "mae_image", 1)],
)
def test_other_problem_types(
    checkpoints: dict[str, str], data: str, tmp_path: Path, label: str, problem_type: str, metric: str, shape: int
) -> None:
    result = finetune(recipe_of(checkpoints["flava"], data, tmp_path, label))
    assert result.model.config.problem_type == problem_type
    assert result.model.classifier.weight.shape[0] == shape
    assert metric in result.metrics["test"]


def test_lxmert_reads_arrays_and_sizes_its_answers(
    checkpoints: dict[str, str], data: str, tmp_path: Path, capsys: Any
) -> None:
    result = finetune(recipe_of(checkpoints["lxmert"], data, tmp_path, "three"))
    assert result.processor.modalities == ["visual_feats", "visual_pos", "text"]
    assert (result.model.config.num_qa_labels, result.model.config.num_labels) == (3, 3)
    assert {"accuracy", "accuracy_image", "accuracy_text"} <= set(result.metrics["test"])
    pipe = CrossModalPipeline.from_pretrained(str(tmp_path), device="cpu")
    assert [pipe.kind(name) for name in pipe.modalities] == ["array", "array", "text"]
    with pytest.raises(ValueError, match="reads arrays of features .visual_feats, visual_pos., which nobody can type"):
        build(pipe)
    assert main(["predict", str(tmp_path), "--text", "is this a cat"]) == 2
    assert "which a command line cannot give" in capsys.readouterr().err
    assert main(["predict", str(tmp_path), "--input", data, "--output", str(tmp_path / "answers.jsonl")]) == 0
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == ROWS


def test_a_page_for_a_model_that_reads_all_offers_no_switches(result: FinetuneResult) -> None:
    pipe = CrossModalPipeline.from_pretrained(result.output_dir, device="cpu")
    parts = build(pipe).config["components"]
    assert [part["props"]["visible"] for part in parts if part["type"] == "checkbox"] == [False, False]
    assert not any("Switch one off" in str(part["props"].get("value")) for part in parts)


def test_blip_writes_text_and_is_scored_by_its_answers(checkpoints: dict[str, str], data: str, tmp_path: Path) -> None:
    recipe = recipe_of(checkpoints["blip"], data, tmp_path, "three", partition="by_name")
    result = finetune(recipe)
    assert set(result.metrics["test"]) == {"loss", "loss_image", "loss_text"}
    assert all(math.isfinite(value) for value in result.metrics["test"].values())
    assert result.table().columns == ["", "loss before", "loss after", "loss test"]
    groups = result.trainer.disentangled.partition.owners  # type: ignore[union-attr]
    assert groups["text_encoder.encoder.layer.0.attention.self.query.weight"] == {"text"}  # by name
    scored = evaluate(str(tmp_path), recipe)
    assert {key: scored[key] for key in result.metrics["test"]} == pytest.approx(result.metrics["test"], abs=1e-5)
    assert {"exact_match", "exact_match_image", "vqa_accuracy_text", "wer_text"} <= set(scored)


@pytest.mark.parametrize("modules", ["encoders", "all"])
def test_lora_on_a_checkpoint_as_it_is(checkpoints: dict[str, str], data: str, tmp_path: Path, modules: str) -> None:
    """What is not chosen stays frozen, the classifier is trained in full, the folder holds all that was learned."""
    block = {"r": 2, "modules": modules}
    recipe = recipe_of(checkpoints["flava"], data, tmp_path, "three", peft=block, peft_merge=False)
    result = finetune(recipe)
    trained = {name for name, parameter in result.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "classifier" in name for name in trained)
    assert any("multimodal_model" in name for name in trained) == (modules == "all")
    assert (tmp_path / "adapter_config.json").exists() and not (tmp_path / "model.safetensors").exists()
    assert evaluate(str(tmp_path), recipe) == pytest.approx(result.metrics["test"], abs=1e-5)


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_class": "FlavaForSequenceClasification"}, "unknown .*did you mean 'FlavaForSequenceClassification'?"),
        ({"model_class": "BlipForQuestionAnswering"}, "for checkpoints of model_type 'blip', this one is 'flava'"),
        ({"model_class": "CLIPModel"}, "model_class: CLIPModel: "),
        ({"peft": {"r": 4, "target_modules": ["nothing"]}}, "peft: there is no layer for LoRA"),
        ({"partition": "by_name"}, "FlavaForSequenceClassification has no partition 'by_name'"),
        ({"column_mapping": {"label": "two", "text": "txt"}}, "has no column 'txt' for 'text': did you mean 'text'?"),
    ],
)
def test_mistakes(checkpoints: dict[str, str], data: str, tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(recipe_of(checkpoints["flava"], data, tmp_path, **values))


def test_model_class_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`model_class` is that of `model_name_or_path`"):
        make_recipe(tiny_recipe(tmp_path, model_class="FlavaForSequenceClassification"))


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        (
            "bridgetower",
            "three",
            r"head for exactly two classes; the label column is single_label_.* with 3 \(a, b, c\)",
        ),
        ("bridgetower", "several", "head for exactly two classes; the label column is multi_label_classification"),
        ("lxmert", "several", "the label column must hold one class per row"),
        ("blip", "several", r"BlipForQuestionAnswering learns to write its labels, so each is a text \(or .*; got \["),
    ],
)
def test_labels_that_do_not_fit(
    checkpoints: dict[str, str], data: str, tmp_path: Path, name: str, label: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(recipe_of(checkpoints[name], data, tmp_path, label))


def test_a_row_without_a_modality_is_named(checkpoints: dict[str, str], data: str, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    rows[3]["text"] = None
    for index, row in enumerate(rows):
        row["image"] = str(Path(data).parent / f"{index}.png")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    recipe = recipe_of(checkpoints["flava"], str(tmp_path / "rows.jsonl"), tmp_path / "out", max_train_samples=None)
    recipe.training.max_steps, recipe.training.num_train_epochs = -1, 1
    with pytest.raises(
        ValueError, match=r"Row train\[3\] has no 'text', and FlavaForSequenceClassification reads all"
    ):
        finetune(recipe)
    recipe.data.on_error = "skip"
    finetune(recipe)
    broken = json.loads((tmp_path / "out" / "broken_rows.jsonl").read_text())
    assert (broken["row"], broken["modality"]) == ("train[3]", "text")


def test_no_model_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a model that hf_dgl saved, or a multimodal checkpoint"):
        is_native(str(tmp_path))


# ---- classes and heads ----------------------------------------------------------------------------------------------


def test_class_is_the_saved_one_or_has_to_be_named() -> None:
    assert class_of(tf.LxmertConfig(architectures=["LxmertForQuestionAnswering"])) is tf.LxmertForQuestionAnswering
    choose = "Type `model_class: FlavaForSequenceClassification`; of this family there are"
    with pytest.raises(ValueError, match=rf"saved from \['FlavaImageModel'\], which has no head to train. {choose}"):
        class_of(tf.FlavaConfig(architectures=["FlavaImageModel"]))
    with pytest.raises(ValueError, match=f"the base model computes no loss.*{choose}"):
        class_of(tf.FlavaConfig(architectures=["FlavaModel"]))
    with pytest.raises(ValueError, match="No class of its family is known"):
        class_of(tf.BertConfig(architectures=["BertModel"]))


def test_heads() -> None:
    assert head_of(tf.ViltForQuestionAnswering) == "answer_sets"
    assert head_of(tf.LlavaForConditionalGeneration) == "text"
    with pytest.raises(ValueError, match="LayoutLMv3ForSequenceClassification cannot be trained from a recipe"):
        head_of(tf.LayoutLMv3ForSequenceClassification)


def test_answer_sets_want_lists(tmp_path: Path) -> None:
    labels = LabelSpec.from_dataset(Dataset.from_dict({"label": ["yes", "no"]}))
    with pytest.raises(ValueError, match="the label column must hold a list of classes per row"):
        load_native(str(tmp_path), tf.ViltForQuestionAnswering, labels)


def test_text_is_cut_to_the_models_positions(checkpoints: dict[str, str]) -> None:
    limits = {
        name: NativeProcessor.from_pretrained(folder).processors["text"].model_max_length
        for name, folder in checkpoints.items()
    }
    assert limits == {"flava": 12, "bridgetower": 19, "lxmert": 12, "blip": 12}  # BridgeTower counts from its padding


def test_is_native(checkpoints: dict[str, str], image_text_model: Any, tmp_path: Path) -> None:
    image_text_model.save_pretrained(tmp_path)
    assert is_native(checkpoints["flava"]) and not is_native(str(tmp_path))


def test_a_tokenizer_without_words_is_refused() -> None:
    """What upstream makes for a checkpoint that was saved without its tokenizer."""
    processor = tf.BlipProcessor(tf.BlipImageProcessorPil(), tf.BertTokenizer())
    with pytest.raises(ValueError, match="The tokenizer of 'text', a BertTokenizer, knows no words"):
        NativeProcessor(processor, tf.BlipForQuestionAnswering, tf.BlipConfig())
