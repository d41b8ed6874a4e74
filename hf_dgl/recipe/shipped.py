"""The recipes that come along, by name: `quickstart/image_text` is `recipes/quickstart/image_text.yaml`.

In a checkout they lie beside the package, to be browsed; a wheel holds them inside. Nothing heavy is imported here.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

PACKAGE_FOLDER = Path(__file__).parents[1]
_NO_RECIPES = ("accelerate", "results")  # configurations of `accelerate launch`; tables


def recipes_folder() -> Path:
    """Where the recipes lie."""
    inside = PACKAGE_FOLDER / "recipes"
    return inside if inside.is_dir() else PACKAGE_FOLDER.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe.

    Example:

        >>> shipped_recipes()["quickstart/image_text"]
        PosixPath('/.../recipes/quickstart/image_text.yaml')
    """
    files = sorted(recipes_folder().glob("*/*.yaml"))
    return {f"{file.parent.name}/{file.stem}": file for file in files if file.parent.name not in _NO_RECIPES}


def find_recipe(name: str | os.PathLike[str]) -> Path:
    """The file of a recipe: one that is there as it is written, or one that came along.

    Args:
        name: A path, or the name of a shipped recipe, with or without `recipes/` before and `.yaml` behind it.

    Raises:
        FileNotFoundError: neither is there; names the nearest.

    Example:

        >>> find_recipe("quickstart/image_text").name
        'image_text.yaml'
    """
    path, shipped = Path(name), shipped_recipes()
    if path.is_file():
        return path
    short = path.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    if short in shipped:
        return shipped[short]
    here = [str(file) for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(path), here, 1) or difflib.get_close_matches(short, shipped, 1, cutoff=0.5)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    what = f"{str(path)!r} is a folder, not a recipe." if path.is_dir() else f"There is no recipe {str(path)!r}."
    raise FileNotFoundError(
        f"{what}{guess} A recipe is a YAML file, or one of those that came along, such as quickstart/image_text: "
        "`hf-dgl recipes` lists them."
    )
