"""What comes along: recipes by name, and hints that fit the kind of install."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_dgl.install import add_extra, extras, find_recipe, require, shipped, shipped_recipes

ROOT = Path(__file__).parents[2]


def test_every_recipe_has_a_name() -> None:
    recipes = shipped_recipes()
    assert {"quickstart/image_text", "image_text/clip_food101", "three_modalities/mosei"} <= set(recipes)
    assert not [name for name in recipes if name.startswith(("accelerate", "results"))]
    there = {path for path in (ROOT / "recipes").glob("*/*.yaml") if path.parent.name != "accelerate"}
    assert {path.resolve() for path in recipes.values()} == there


@pytest.mark.parametrize(
    "name", ["quickstart/image_text", "quickstart/image_text.yaml", "recipes/quickstart/image_text.yaml"]
)
def test_a_recipe_is_found_from_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name).resolve() == ROOT / "recipes" / "quickstart" / "image_text.yaml"


def test_a_file_of_the_users_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "quickstart" / "image_text"
    own.parent.mkdir()
    own.write_text("seed: 1")
    assert find_recipe("quickstart/image_text") == Path("quickstart/image_text")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quickstart/image_txt", "Did you mean 'quickstart/image_text'?"),
        ("image_text", "Did you mean 'quickstart/image_text'?"),
        ("mine.yaml", "Did you mean 'my.yaml'?"),
        ("folder", "'folder' is a folder, not a recipe."),
        ("zzz", "`hf-dgl recipes` lists them"),
    ],
)
def test_mistyped_recipes_are_told(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        find_recipe(name)
    assert message in str(error.value)


def test_where_git_makes_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hf_dgl").mkdir()
    (tmp_path / "hf_dgl" / "recipes").write_text("../recipes")
    monkeypatch.setattr(shipped, "PACKAGE_FOLDER", tmp_path / "hf_dgl")
    assert shipped.recipes_folder() == tmp_path / "recipes"


def test_hints_fit_the_kind_of_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert add_extra("demo") == 'pip install -c constraints.txt -e ".[demo]"'
    monkeypatch.chdir(tmp_path)
    assert add_extra("demo") == f'pip install -c "{ROOT}/constraints.txt" -e "{ROOT}[demo]"'
    monkeypatch.setattr(extras, "PACKAGE_FOLDER", tmp_path / "site-packages" / "hf_dgl")
    assert add_extra("demo") == 'pip install "hf-dgl[demo]"'


def test_missing_packages_are_named(monkeypatch: Any) -> None:
    require("Tables", "demo", "json", "csv")
    with pytest.raises(ValueError, match=r"Tables needs the packages nosuch_a, nosuch_b\. Type: pip install .*demo"):
        require("Tables", "demo", "json", "nosuch_a", "nosuch_b")
