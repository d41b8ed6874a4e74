"""Recipes: typing, precedence, and the message of every mistake."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import IntervalStrategy

from hf_dgl.recipe.recipe import (
    WITHOUT_FILE,
    Recipe,
    build_parser,
    load_recipe,
    make_recipe,
    read_overrides,
    split_words,
)

MINIMAL = {
    "encoders": {"image": {"model_type": "vit", "hidden_size": 32}, "text": "org/text"},
    "dataset_name": "sample:image_text",
    "learning_rate": 0.01,
}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_recipe(text: str = "", **values: Any) -> str:
        path = tmp_path / "my.yaml"
        minimal = {key: value for key, value in MINIMAL.items() if not text.startswith(f"{key}:")}
        path.write_text(yaml.safe_dump({**minimal, **values}) + text)
        return str(path)

    return write_recipe


def test_groups_and_defaults(write: Any) -> None:
    recipe = load_recipe(write())
    assert recipe.model.encoders == MINIMAL["encoders"]
    assert recipe.model.fusion_type == "cross_attention"
    assert recipe.data.dataset_name == "sample:image_text"
    assert recipe.training.method is None  # the model decides: dgl, as a rule
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


ENCODERS = ["--encoders", "image=org/image", "text={model_type: bert}"]


def test_no_file_at_all() -> None:
    words = ["--data", "pets/my.csv", "--image", "photo", "--text=the title", "--label", "kind", *ENCODERS]
    recipe = load_recipe(None, [*words, "--learning_rate", "1e-4"])
    assert recipe.data.dataset_name == "pets/my.csv"
    assert recipe.data.column_mapping == {"image": "photo", "text": "the title", "label": "kind"}
    assert recipe.model.encoders == {"image": "org/image", "text": {"model_type": "bert"}}
    assert recipe.training.output_dir == os.path.join("outputs", "my")
    assert recipe.training.learning_rate == 1e-4
    for key, value in WITHOUT_FILE.items():
        assert getattr(recipe.training, key) == value
    assert load_recipe(None, [*words, "--num_train_epochs", "2"]).training.num_train_epochs == 2


def test_recipe_as_run_of_a_command_without_file(tmp_path: Path) -> None:
    recipe = load_recipe(None, ["--data", "my.csv", "--image", "photo", *ENCODERS])
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    again = load_recipe(tmp_path / "again.yaml")
    assert (again.model, again.data) == (recipe.model, recipe.data)
    assert again.training.num_train_epochs == recipe.training.num_train_epochs


def test_short_forms_go_with_a_file_too(write: Any) -> None:
    path = write("column_mapping: {image: img, text: caption}\n")
    recipe = load_recipe(path, ["--data=other.csv", "--image", "photo"])
    assert recipe.data.dataset_name == "other.csv"
    assert recipe.data.column_mapping == {"image": "photo", "text": "caption"}
    path = write("encoders: {front: org/a, seed: org/b}\n")  # a modality that is called like a key stays that key
    assert load_recipe(path, ["--front", "photo"]).data.column_mapping == {"front": "photo"}
    assert load_recipe(path, ["--seed", "3"]).training.seed == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "a.csv", "--photo", "x", *ENCODERS], "Unknown key 'photo'.*Columns are named by --audio, --image"),
        (["--data", "a.csv", "--image", *ENCODERS], "--image: expected the name of one column .got nothing"),
        (
            ["--data", "a.csv", "--image", "my", "photo", *ENCODERS],
            "--image: expected the name of one column .*my photo",
        ),
        (
            ["--data", "a.csv", "--dataset_name", "b.csv", *ENCODERS],
            "`--data` is short for `--dataset_name`: give one",
        ),
        (["--image", "photo", *ENCODERS], "The recipe names no data.*--data my.csv"),
        (["--data", "a.csv"], "names no model"),
        (["--data", "a.csv", *ENCODERS, "--on_error", "ignore"], "on_error: expected one of .*'skip'.*got 'ignore'"),
        (["--data", "a.csv=0.5", "b.csv=x", *ENCODERS], "expected a weight above 0 for 'b.csv', got 'x'"),
        (["--data", "a.csv=0.5", "b.csv=0", *ENCODERS], "expected a weight above 0 for 'b.csv', got '0'"),
        (["--data", "a.csv", *ENCODERS, "--max_audio_seconds", "0"], "max_audio_seconds: expected a number above 0"),
    ],
)
def test_mistakes_without_file(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(None, words)


@pytest.mark.parametrize(
    ("words", "dataset_name"),
    [
        (["a.csv=0.7", "b.csv=0.3"], {"a.csv": 0.7, "b.csv": 0.3}),
        (["date=2024/a.parquet=2", "b.csv=1"], {"date=2024/a.parquet": 2.0, "b.csv": 1.0}),
        (["date=2024/a.parquet"], "date=2024/a.parquet"),
        (["a.csv=1"], {"a.csv": 1.0}),
        (["a.csv"], "a.csv"),
    ],
)
def test_several_data_sets(words: list[str], dataset_name: Any, tmp_path: Path) -> None:
    recipe = load_recipe(None, ["--data", *words, *ENCODERS])
    assert recipe.data.dataset_name == dataset_name
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml").data == recipe.data


def test_class_names_and_flags_of_the_data() -> None:
    words = ["--class_names", "cat", "dog", "--streaming", "--disable_tqdm", "--max_audio_seconds", "2.5"]
    recipe = load_recipe(None, ["--data", "a.csv", *ENCODERS, *words])
    assert recipe.data.class_names == ["cat", "dog"] and recipe.data.streaming
    assert recipe.data.max_audio_seconds == 2.5 and recipe.data.on_error == "raise"
    assert recipe.training.disable_tqdm is True


def test_split_words() -> None:
    assert split_words(["my.yaml", "--seed", "1"]) == ("my.yaml", ["--seed", "1"])
    assert split_words(["--seed", "1"]) == (None, ["--seed", "1"])
    assert split_words([]) == (None, [])


def test_help_names_the_defaults_of_a_command_without_file() -> None:
    text = " ".join(build_parser().format_help().split())
    for key, value in WITHOUT_FILE.items():
        assert f"--{key} {value}" in text


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
        (["--do_train", "false"], "do_train: false: `hf-dgl train` trains in any case.*hf-dgl evaluate OUT"),
        (["--do_eval"], "do_eval without do_train"),
        (["--label_names", "kind"], "the rows of a recipe bring `labels`.*--label COLUMN"),
        (["--output_dir="], "output_dir: expected a folder, got nothing"),
        (["--load_best_model_at_end", "--eval_strategy", "no"], "chooses among evaluations, and there are none"),
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


def test_a_file_of_comments_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    with pytest.raises(ValueError, match="empty.yaml: expected `key: value` lines, got nothing"):
        load_recipe(tmp_path / "empty.yaml")


def test_what_upstreams_scripts_are_told_is_taken(write: Any) -> None:
    assert load_recipe(write(), ["--do_train", "--do_eval", "--do_predict"]).training.do_predict


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
    keys = [text.index(f"\n  --{key} ") for key in ("method", "encoders", "dataset_name", "learning_rate")]
    assert keys == sorted(keys)
    for title in ("the method:", "the model:", "the data:", "the Trainer"):
        assert title in text


def test_types(write: Any) -> None:
    assert isinstance(load_recipe(write()), Recipe)


def test_null_removes_an_entry_of_a_mapping(write: Any) -> None:
    recipe = load_recipe(
        write(alpha={"image": 1, "text": 2}), ["--encoders", "{image: null}", "--alpha", "{text: null}"]
    )
    assert recipe.model.encoders == {"text": "org/text"}
    assert recipe.training.alpha == {"image": 1.0}
    with pytest.raises(ValueError, match="alpha: expected a number"):
        load_recipe(write(), ["--alpha", "{text: null}"])
