"""The README's commands are run (shortened), its recipe and its Python are checked against the code."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from hf_dgl.cli import main
from hf_dgl.recipe import make_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = ["--max_steps", "2", "--max_train_samples", "64", "--max_eval_samples", "32", "--eval_strategy", "no"]
SHORT += ["--save_strategy", "no", "--load_best_model_at_end", "false"]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    """Every `hf-dgl` command of the README as words, without comments."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    parts = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [words[1:] for words in parts if words and words[0] == "hf-dgl"]


def test_installs_use_the_constraints():
    installs = [line for block in blocks("bash") for line in block.splitlines() if "pip install" in line]
    assert len(installs) == 2 and all("pip install -c constraints.txt -e " in line for line in installs)


def test_quickstart_commands_run_in_their_order(tmp_path, monkeypatch, capsys):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    Image.new("L", (8, 8), 128).save(tmp_path / "digit.png")
    monkeypatch.chdir(tmp_path)
    quickstart = [words for words in commands() if "my_recipe.yaml" not in words and words[0] != "compare"]
    assert [words[0] for words in quickstart] == ["train", "evaluate", "predict", "predict", "train"]
    for words in quickstart:
        shortened = [*words, *SHORT] if words[0] == "train" else words
        if words[0] == "evaluate":
            shortened = [*words, "--max_eval_samples", "32"]
        assert main(shortened) == 0
        printed = capsys.readouterr().out
        if words[0] == "evaluate":
            assert {"accuracy", "accuracy_image", "accuracy_text", "f1"} <= json.loads(printed).keys()
        if words[0] == "predict":
            answer = json.loads(printed)
            assert set(answer["modalities"]) == {word[2:] for word in words if word in ("--image", "--text")}
    assert "fused" in printed and "image alone" in printed


def test_the_recipe_is_one():
    (text,) = blocks("yaml")
    recipe = make_recipe({**yaml.safe_load(text), "bf16": False})
    assert recipe.model.encoders["text"] == "FacebookAI/roberta-base"


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.split("\n")[0][:40])
def test_python_imports_what_exists(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
