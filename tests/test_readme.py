"""The README's commands are run (shortened), its recipe and its Python are checked against the code."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from hf_dgl.analysis.comparison.plan import plan
from hf_dgl.cli import main
from hf_dgl.cli.compare import add_parser
from hf_dgl.data.two_digits import TWO_DIGITS
from hf_dgl.recipe.recipe import load_recipe, make_recipe, split_words

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "recipes" / "results" / "README.md").read_text(encoding="utf-8")
SHORT = ["--max_steps", "2", "--max_train_samples", "64", "--max_eval_samples", "32", "--eval_strategy", "no"]
NEEDS_MORE = {"compare", "diagnose", "push", "export", "demo", "my_recipe.yaml", "my.csv", "rows.jsonl"}
"""Words of commands that the tests of their own run, or that need data and checkpoints which are not here."""
SHORT += ["--save_strategy", "no", "--load_best_model_at_end", "false"]


def blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def commands(page=README):
    """Every `hf-dgl` command of a page as words, without comments."""
    lines = [line for block in blocks("bash", page) for line in block.splitlines()]
    parts = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [words[1:] for words in parts if words and words[0] == "hf-dgl"]


def test_installs_use_the_constraints():
    installs = [line for block in blocks("bash") for line in block.splitlines() if "pip install" in line]
    assert len(installs) == 2 and all("pip install -c constraints.txt -e " in line for line in installs)


def test_quickstart_commands_run_in_their_order(tmp_path, monkeypatch, capsys):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    Image.new("L", (8, 8), 128).save(tmp_path / "digit.png")
    monkeypatch.chdir(tmp_path)
    quickstart = [words for words in commands() if not NEEDS_MORE & set(words)]
    assert [words[0] for words in quickstart] == [
        *("train", "evaluate", "predict", "predict", "inspect", "train"),
        *("inspect", "inspect"),
    ]
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
        if words[0] == "train":
            assert "fused" in printed and "image alone" in printed


def test_the_commands_without_a_recipe_are_understood():
    without = [words for words in commands() if "my.csv" in words]
    assert [words[0] for words in without] == ["train", "data"]
    for _, *words in without:
        recipe = load_recipe(*split_words([word for word in words if word not in ("--preview", "data.png")]))
        assert recipe.data.column_mapping == {"image": "photo", "text": "title", "label": "kind"}


def test_every_command_exists(capsys):
    for name in {words[0] for words in commands()}:
        with pytest.raises(SystemExit) as exit_code:
            main([name, "--help"])
        assert exit_code.value.code == 0


@pytest.mark.parametrize("page", [README, RESULTS], ids=["readme", "results"])
def test_comparisons_can_be_planned(page, tmp_path, monkeypatch):
    """Recipe, methods, seeds and overrides of every `hf-dgl compare` fit together."""
    monkeypatch.chdir(ROOT)
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
    found = [words for words in commands(page) if words[0] == "compare"]
    assert len(found) >= 2
    for words in found:
        for task in TWO_DIGITS if any("$task" in word for word in words) else [""]:
            given, rest = parser.parse_known_args([word.replace("$task", task) for word in words])
            assert plan(given.recipe, given.methods.split(","), given.seeds, tmp_path, rest)


def test_the_results_have_the_tasks_of_their_command():
    (loop,) = re.findall(r"for task in ([\w ]+);", RESULTS)
    assert set(loop.split()) <= set(TWO_DIGITS)
    assert [task for task in loop.split() if f"| `{task}` |" not in RESULTS] == []


def test_the_recipe_is_one():
    (text,) = blocks("yaml")
    recipe = make_recipe({**yaml.safe_load(text), "bf16": False})
    assert recipe.model.encoders["text"] == "FacebookAI/roberta-base"


def test_the_loop_of_ones_own_runs_as_printed(capsys):
    (loop,) = [block for block in blocks("python") if "accelerator.backward" in block]
    scope: dict = {}
    exec(loop, scope)
    assert "text alone: no leak" in capsys.readouterr().out
    assert set(scope["out"]["losses"]) == {"multimodal", "image", "text"}


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.split("\n")[0][:40])
def test_python_imports_what_exists(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hf_dgl":
            assert hasattr(importlib.import_module("hf_dgl"), node.attr)
