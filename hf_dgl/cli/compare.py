"""`hf-dgl compare RECIPE --methods joint,dgl --seeds 0 1 2`."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser(
        "compare",
        parents=[common],
        allow_abbrev=False,
        help="train a recipe under several methods and seeds: mean and spread on the test split",
        description="Train a recipe under several methods and seeds. Complete runs are not repeated. `--key value` "
        "words override the recipe in every run.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, e.g. recipes/quickstart/image_text.yaml")
    parser.add_argument("--methods", default="joint,dgl", help="with commas between them; default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--compare_dir", default=None, help="a folder per run; default: outputs/compare-RECIPE")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; default: %(default)s")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Prints a Markdown table."""
    from hf_dgl.compare import compare, comparison_table

    results = compare(
        arguments.recipe,
        arguments.methods.split(","),
        arguments.seeds,
        arguments.compare_dir,
        overrides=rest,
        jobs=arguments.jobs,
    )
    columns, rows = comparison_table(results)
    for row in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(row)} |")
