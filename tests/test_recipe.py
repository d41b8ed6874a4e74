"""Recipes: typing, precedence, and the message of every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import IntervalStrategy

from hf_dgl.recipe import Recipe, build_parser, load_recipe, make_recipe, read_overrides

MINIMAL = {
    "encoders": {"image": {"model_type": "vit", "hidden_size": 32}, "text": "org/text"},
    "dataset_name": "sample:image_text",
    "learning_rate": 0.01,
}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_recipe(text: str = "", **values: Any) -> str:
        path = tmp_path / "my.yaml"
        path.write_text(yaml.safe_dump({**MINIMAL, **values}) + text)
        return str(path)

    return write_recipe


def test_groups_and_defaults(write: Any) -> None:
    recipe = load_recipe(write())
    assert recipe.model.encoders == MINIMAL["encoders"]
    assert recipe.model.fusion_type == "cross_attention"
    assert recipe.data.dataset_name == "sample:image_text"
    assert recipe.training.method == "dgl"
    assert recipe.training.learning_rate == 0.01
    assert recipe.training.output_dir == "outputs/my"
    assert not recipe.model.trust_remote_code


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),  # YAML 1.1 reads a string here
        ("learning_rate: 1", "learning_rate", 1.0),
        ("eval_strategy: no", "eval_strategy", IntervalStrategy.NO),  # YAML 1.1 reads False here
        ("alpha: 2", "alpha", 2.0),
        ("alpha: {image: 1e0, text: 2}", "alpha", {"image": 1.0, "text": 2.0}),
        ("bf16: no", "bf16", False),
        ("warmup_steps: 0.1", "warmup_steps", 0.1),
        ("report_to: [wandb]", "report_to", ["wandb"]),
        ("lr_scheduler_kwargs: {power: 2}", "lr_scheduler_kwargs", {"power": 2}),
        ("save_total_limit: null", "save_total_limit", None),
        ("label_names: [labels]", "label_names", ["labels"]),
    ],
)
def test_yaml_is_typed(write: Any, line: str, key: str, value: Any) -> None:
    assert getattr(load_recipe(write(line)).training, key) == value


@pytest.mark.parametrize(
    ("words", "group", "key", "value"),
    [
        (["--learning_rate", "1e-4"], "training", "learning_rate", 1e-4),
        (["--learning_rate=1e-4"], "training", "learning_rate", 1e-4),
        (["--learning-rate=1e-4"], "training", "learning_rate", 1e-4),
        (["--learning_rate=1", "--learning_rate=2"], "training", "learning_rate", 2.0),
        (["--max_steps", "-1"], "training", "max_steps", -1),
        (["--full_determinism"], "training", "full_determinism", True),
        (["--full_determinism", "false"], "training", "full_determinism", False),
        (["--no_dataloader_pin_memory"], "training", "dataloader_pin_memory", False),
        (["--alpha", "2.0"], "training", "alpha", 2.0),
        (["--alpha", "image=1", "text=2"], "training", "alpha", {"image": 1.0, "text": 2.0}),
        (["--multimodal_to_encoders=image=0.5"], "training", "multimodal_to_encoders", {"image": 0.5}),
        (["--lr_scheduler_kwargs", '{"power": 2}'], "training", "lr_scheduler_kwargs", {"power": 2}),
        (["--report_to", "none"], "training", "report_to", []),
        (
            ["--column_mapping", "image=img", "text=caption"],
            "data",
            "column_mapping",
            {"image": "img", "text": "caption"},
        ),
        (["--test_split", "none of it"], "data", "test_split", "none of it"),
        (["--dataset_seed", "3"], "data", "dataset_seed", 3),
    ],
)
def test_command_line_is_typed(write: Any, words: list[str], group: str, key: str, value: Any) -> None:
    assert getattr(getattr(load_recipe(write(), words), group), key) == value


def test_command_line_wins_over_yaml_over_defaults(write: Any) -> None:
    path = write("weight_decay: 0.5\n")
    recipe = load_recipe(path, ["--learning_rate=0.3"])
    assert (recipe.training.learning_rate, recipe.training.weight_decay) == (0.3, 0.5)
    assert recipe.training.adam_beta1 == 0.9
    assert recipe.values["learning_rate"] == 0.3


def test_command_line_changes_single_entries_of_a_mapping(write: Any) -> None:
    recipe = load_recipe(write(), ["--encoders", "text=other/text"])
    assert recipe.model.encoders == {**MINIMAL["encoders"], "text": "other/text"}
    nested = load_recipe(write(), ["--encoders", "image={model_type: vit, hidden_size: 16}"])
    assert nested.model.encoders["image"] == {"model_type": "vit", "hidden_size": 16}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learnin_rate", "1"], "Unknown key 'learnin_rate' in the command line: did you mean 'learning_rate'?"),
        (["--learning_rate", "fast"], "learning_rate: expected a number, got 'fast'"),
        (["--learning_rate"], "learning_rate: expected a number, got 'nothing'"),
        (["--learning_rate", "1", "2"], "learning_rate: expected a number, got '1 2'"),
        (["--max_steps", "2.5"], "max_steps: expected a whole number, got '2.5'"),
        (["--bf16", "maybe"], "bf16: expected true or false, got 'maybe'"),
        (["--method", "jont"], "method: expected one of .*got 'jont': did you mean 'joint'?"),
        (["--lr_scheduler_type", "cosin"], "lr_scheduler_type: expected one of .*did you mean 'cosine'?"),
        (["--alpha", "image=x"], "alpha: expected a number or a mapping .*got 'x'"),
        (["--column_mapping", "img"], "column_mapping: expected one `name: column` per modality.*got 'img'"),
        (["--encoders", "vit"], "encoders: expected one entry per modality.*got 'vit'"),
        (["--encoders", "image={hidden_size: 3}"], "encoders: 'image' is a mapping.*needs `model_type`"),
        (["--model_name_or_path", "x"], "`encoders` and `model_name_or_path` exclude each other"),
        (["stray"], "Did not expect 'stray' here"),
    ],
)
def test_mistakes_on_the_command_line(write: Any, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(write(), words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learnin_rate: 1", "Unknown key 'learnin_rate' in .*my.yaml: did you mean 'learning_rate'?"),
        ("learning_rate: [1, 2]", r"learning_rate: expected a number, got \[1, 2\]"),
        ("learning_rate: {a: 1}", "learning_rate: expected a number, got {'a': 1}"),
        ("learning_rate: null", "learning_rate: expected a number, got None"),
        ("seed: true", "seed: expected a whole number, got True"),
        ("dataset_name: null", "The recipe names no data"),
        ("encoders: null", "The recipe names no model"),
        ("- a\n- b", "my.yaml"),
        ("a: b: c", "not valid YAML"),
    ],
)
def test_mistakes_in_the_file(write: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(write(text))


def test_a_list_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ValueError, match="list.yaml: expected `key: value` lines, got list"):
        load_recipe(tmp_path / "list.yaml")


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match="There is no recipe 'nowhere.yaml'"):
        load_recipe("nowhere.yaml")


def test_make_recipe_checks_like_load_recipe() -> None:
    assert make_recipe({**MINIMAL, "learning_rate": "1e-4"}).training.learning_rate == 1e-4
    with pytest.raises(ValueError, match="Unknown key 'lr' in the recipe"):
        make_recipe({**MINIMAL, "lr": 1})


def test_read_overrides_last_one_wins() -> None:
    assert read_overrides(["--bf16", "--alpha", "a=1", "b=2", "--seed=1", "--seed", "2"]) == {
        "bf16": [],
        "alpha": ["a=1", "b=2"],
        "seed": ["2"],
    }


def test_recipe_as_run_repeats_the_run(write: Any, tmp_path: Path) -> None:
    recipe = load_recipe(write(), ["--alpha", "image=3", "--encoders", "text=other/text", "--eval_strategy", "no"])
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    again = load_recipe(tmp_path / "again.yaml")
    assert (again.model, again.data) == (recipe.model, recipe.data)
    assert again.training.to_dict() == recipe.training.to_dict() | {"run_name": again.training.run_name}


def test_recipe_as_run_has_no_secrets_and_no_foreign_folders(write: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(
        write(),
        ["--token=hf_secret", "--hub_token=hf_secret2", "--output_dir=/elsewhere/out"]
        + [f"--dataset_name={tmp_path}/data.csv", f"--encoders=text={tmp_path}/bert"],
    )
    text = recipe.to_yaml()
    assert "secret" not in text and "token" not in text
    assert "/elsewhere" not in text and str(tmp_path) not in text
    assert yaml.safe_load(text)["dataset_name"] == "data.csv"


def test_help_lists_every_key_the_method_first() -> None:
    text = build_parser().format_help()
    keys = [text.index(f"--{key} ") for key in ("method", "encoders", "dataset_name", "learning_rate")]
    assert keys == sorted(keys)
    for title in ("the method:", "the model:", "the data:", "the Trainer"):
        assert title in text


def test_types(write: Any) -> None:
    assert isinstance(load_recipe(write()), Recipe)
