"""`hf-dgl recipes` lists the recipes that came along; `hf-dgl recipes copy NAME [FILE]` makes one yours."""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path
from typing import Any


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser(
        "recipes",
        parents=[common],
        allow_abbrev=False,
        help="list the recipes that come along, or copy one to edit",
        usage="hf-dgl recipes [-h] [--traceback]\n       hf-dgl recipes copy NAME [FILE]",
        description="List the recipes that come along. Every command takes them by name: `hf-dgl train "
        "quickstart/image_text`. `copy` writes one to a file of yours, to be edited.",
    )
    parser.add_argument("action", nargs="?", choices=["list", "copy"], default="list", help="default: list")
    parser.add_argument("name", nargs="?", metavar="NAME", help="for copy: one of the list")
    parser.add_argument("file", nargs="?", metavar="FILE", help="for copy: where to; default: its name, here")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Prints a line per recipe; or where the copy is."""
    from hf_dgl.recipe.shipped import find_recipe, shipped_recipes

    if rest:
        raise ValueError(f"Did not understand {' '.join(rest)!r}. `hf-dgl recipes --help` lists what there is.")
    if arguments.action == "copy":
        if arguments.name is None:
            raise ValueError("Which one? `hf-dgl recipes copy quickstart/image_text`; `hf-dgl recipes` lists them.")
        _copy(find_recipe(arguments.name), arguments.file)
        return
    if arguments.name is not None:
        raise ValueError(f"Did not understand {arguments.name!r}. To copy: `hf-dgl recipes copy {arguments.name}`.")
    recipes = shipped_recipes()
    width = max(map(len, recipes))
    for name, file in recipes.items():
        print(f"{name:<{width}}  {_first_sentence(file)}")
    print("\nRun one:  hf-dgl train quickstart/image_text\nEdit one: hf-dgl recipes copy quickstart/image_text")


def _copy(source: Path, file: str | None) -> None:
    target = Path(file or source.name).expanduser()
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise ValueError(f"{target} is there already. Name another: `hf-dgl recipes copy NAME other.yaml`.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(f"Copied to {target}. Edit it, then: hf-dgl train {shlex.quote(str(target))}")


def _first_sentence(file: Path) -> str:
    """Of the comment that a recipe begins with."""
    lines = [line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return " ".join(lines).partition(". ")[0].partition(": ")[0].rstrip(".")
