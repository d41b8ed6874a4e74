from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from hf_dgl.architectures import ARCHITECTURES
from hf_dgl.cli import main
from tests.recipes import tiny_recipe


def test_the_tree_of_a_class(capsys):
    assert main(["inspect", "LxmertForQuestionAnswering"]) == 0
    printed = capsys.readouterr().out
    assert "x_layers ModuleList" in printed and "✂ text" in printed and "44.3%" in printed


def test_json_of_a_recipe_with_checks(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "out")))
    assert main(["inspect", str(path), "--check", "--json", "--fusion_type", "concat"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True and set(found["groups"]) == {"image", "text", "fusion"}


def test_the_list_names_every_class(capsys):
    assert main(["inspect", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed) == set(ARCHITECTURES)
    known = [row for row in listed.values() if "refused" not in row]
    assert all(row["absent"] and row["modalities"] and row["method"] for row in known)
    assert main(["inspect", "--list"]) == 0
    assert "CLIPModel" in capsys.readouterr().out


def test_the_page_of_known_models_is_current(capsys):
    assert main(["inspect", "--list", "--markdown"]) == 0
    page = Path("recipes/models.md")
    assert capsys.readouterr().out == page.read_text(encoding="utf-8"), (
        f"write it anew: hf-dgl inspect --list --markdown > {page}"
    )


@pytest.mark.parametrize("words", [[], ["nonsense"], ["CLIPModel"]])
def test_mistakes_are_one_message(words, capsys):
    assert main(["inspect", *words]) == 2
    assert capsys.readouterr().err.startswith("hf-dgl inspect: ")
