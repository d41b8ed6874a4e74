"""The README and its pages against the code: commands, recipes, Python. (`test_readme_runs.py` runs the commands.)"""

from __future__ import annotations

import argparse
import ast
import importlib
import re

import pytest
import yaml

from hf_dgl.analysis.comparison.plan import plan
from hf_dgl.cli import main
from hf_dgl.cli.compare import add_parser
from hf_dgl.data.two_digits import TWO_DIGITS
from hf_dgl.recipe.recipe import load_recipe, make_recipe, split_words
from tests.pages import PAGES, README, ROOT, blocks, commands

RESULTS = PAGES["results"]


def test_installs_use_the_constraints():
    installs = [line for block in blocks("bash") for line in block.splitlines() if "pip install" in line]
    assert len(installs) == 2 and all("pip install -c constraints.txt -e " in line for line in installs)


def test_it_is_a_front_door():
    assert README.count("\n") < 200 and README.index("hf_dgl.finetune(") < README.index("DGLTrainer(")
    links = re.findall(r"\]\(((?!http)[^)#]+)(#[^)]*)?\)", README)
    assert {"recipes/results/README.md", "CONTRIBUTING.md"} <= {path for path, _ in links}
    assert [path for path, _ in links if not (ROOT / path).exists()] == []


def test_the_commands_without_a_recipe_are_understood():
    without = [words for page in PAGES.values() for words in commands(page) if "my.csv" in words]
    assert {words[0] for words in without} == {"train", "data"}
    for _, *words in without:
        recipe = load_recipe(*split_words([word for word in words if word not in ("--preview", "data.png")]))
        assert recipe.data.column_mapping == {"image": "photo", "text": "title", "label": "kind"}


def test_every_command_exists(capsys):
    for name in {words[0] for page in PAGES.values() for words in commands(page)}:
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
    assert found
    for words in found:
        for task in TWO_DIGITS if any("$task" in word for word in words) else [""]:
            given, rest = parser.parse_known_args([word.replace("$task", task) for word in words])
            assert plan(given.recipe, given.methods.split(","), given.seeds, tmp_path, rest)


def test_the_results_have_the_tasks_of_their_command():
    (loop,) = re.findall(r"for task in ([\w ]+);", RESULTS)
    assert set(loop.split()) <= set(TWO_DIGITS)
    assert [task for task in loop.split() if f"| `{task}` |" not in RESULTS] == []


def test_the_recipe_is_one():
    (text,) = blocks("yaml", PAGES["your_data.md"])
    recipe = make_recipe({**yaml.safe_load(text), "bf16": False})
    assert recipe.model.encoders["text"] == "FacebookAI/roberta-base"


def test_the_loop_of_ones_own_runs_as_printed(capsys):
    (loop,) = [block for block in blocks("python", PAGES["your_data.md"]) if "accelerator.backward" in block]
    scope: dict = {}
    exec(loop, scope)
    assert "text alone: no leak" in capsys.readouterr().out
    assert set(scope["out"]["losses"]) == {"multimodal", "image", "text"}


@pytest.mark.parametrize("page", PAGES)
def test_python_imports_what_exists(page):
    for node in ast.walk(ast.parse("\n".join(blocks("python", PAGES[page])))):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hf_dgl":
            assert hasattr(importlib.import_module("hf_dgl"), node.attr)
