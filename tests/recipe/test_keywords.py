"""`hf_dgl.finetune(data=..., image=..., ...)`: the recipe that `hf-dgl train` would make of the same words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

import hf_dgl
from hf_dgl.cli import main
from hf_dgl.data import load_data
from hf_dgl.recipe.keywords import recipe_of
from hf_dgl.recipe.recipe import load_recipe
from tests.recipes import TINY_ENCODERS, tiny_recipe

ENCODERS = {name: TINY_ENCODERS[name] for name in ("image", "text")}


def test_keywords_are_the_words_of_a_command_line() -> None:
    keys = {"image": "photo", "text": "title", "label": "kind", "encoders": ENCODERS, "learning_rate": 1e-4}
    encoders = [f"{name}={json.dumps(value)}" for name, value in ENCODERS.items()]
    words = "--data my.csv --image photo --text title --label kind --learning_rate 1e-4 --encoders".split()
    made = recipe_of(None, "my.csv", keys)
    assert made.values == load_recipe(None, [*words, *encoders]).values
    assert made.training.output_dir == "outputs/my" and made.training.num_train_epochs == 10


def test_several_targets_are_a_list_of_columns() -> None:
    made = recipe_of(None, "my.csv", {"label": ["price", "weight"], "encoders": ENCODERS})
    words = ["--data", "my.csv", "--label", "[price, weight]", "--encoders"]
    encoders = [f"{name}={json.dumps(value)}" for name, value in ENCODERS.items()]
    assert made.values == load_recipe(None, [*words, *encoders]).values
    assert made.data.column_mapping == {"label": ["price", "weight"]}


def test_keywords_win_over_a_recipe() -> None:
    made = recipe_of("quickstart/image_text", None, {"encoders": {"text": "org/bert"}, "seed": 3, "text": "caption"})
    assert made.model.encoders["text"] == "org/bert" and made.model.encoders["image"]["model_type"] == "vit"
    assert made.training.seed == 3 and made.data.column_mapping == {"text": "caption"}


@pytest.mark.parametrize(
    ("data", "keys", "message"),
    [
        ("my.csv", {"encoders": ENCODERS, "image": 3}, "image: expected the name of a column, got 3"),
        ("my.csv", {"encoders": ENCODERS, "learnin_rate": 1}, "did you mean 'learning_rate'"),
        ("my.csv", {"encoders": ENCODERS, "dataset_name": "x"}, "give one of them"),
        ("my.csv", {"encoders": ENCODERS, "label": ["a", 3]}, r"label: expected the name of a column, got \['a', 3"),
        (pandas.DataFrame({"text": ["a"]}), {}, r"got DataFrame. Make one with datasets.Dataset.from_pandas\(table\)"),
        ({"train": [{"text": "a"}]}, {}, "got dict. Make one"),
        (None, {"encoders": ENCODERS}, "The recipe names no data"),
        ("my.csv", {}, "The recipe names no model"),
    ],
)
def test_mistakes(data: Any, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_of(None, data, keys)


def test_a_recipe_says_it_all(tmp_path: Path) -> None:
    recipe = recipe_of(None, "sample:image_text", {"encoders": ENCODERS})
    with pytest.raises(ValueError, match="A `Recipe` says it all"):
        hf_dgl.finetune(recipe, seed=3)


def test_a_dataset_in_memory(tmp_path: Path, capsys: Any) -> None:
    loaded = load_data("sample:image_text", modalities=["image", "text"], max_train_samples=40, max_eval_samples=20)
    data = datasets.DatasetDict(loaded).remove_columns("row").rename_columns({"text": "title", "label": "kind"})
    keys = tiny_recipe(tmp_path)
    del keys["dataset_name"]
    result = hf_dgl.finetune(data=data, text="title", label="kind", **keys)
    assert result.model.config.num_labels == 10 and result.metrics["test"]["accuracy"] >= 0
    assert "dataset_name: in_memory" in (tmp_path / "recipe.yaml").read_text()
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "was in memory, which no file holds" in capsys.readouterr().err
