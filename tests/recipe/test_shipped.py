"""Recipes that come along, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_dgl.recipe import shipped
from hf_dgl.recipe.shipped import find_recipe, shipped_recipes

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


def test_they_lie_beside_the_package_or_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hf_dgl").mkdir()
    monkeypatch.setattr(shipped, "PACKAGE_FOLDER", tmp_path / "hf_dgl")
    assert shipped.recipes_folder() == tmp_path / "recipes"  # a checkout
    (tmp_path / "hf_dgl" / "recipes").mkdir()
    assert shipped.recipes_folder() == tmp_path / "hf_dgl" / "recipes"  # a wheel


def test_every_package_is_in_the_wheel() -> None:
    """They are listed by hand in pyproject.toml, since the recipes lie elsewhere."""
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "hf_dgl").rglob("__init__.py")}
    assert set(listed) == there | {"hf_dgl.recipes"}
