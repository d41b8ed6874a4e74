"""`hf-dgl diagnose RECIPE [--output_dir DIR] [--json] [--key value ...]`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import redirect_stdout
from typing import Any


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser(
        "diagnose",
        parents=[common],
        allow_abbrev=False,
        help="does joint training suppress gradients here, do the modalities interact, and which method suits that",
        usage="hf-dgl diagnose [-h] [--traceback] RECIPE [--output_dir DIR] [--json] [--key value ...]",
        description="Train the recipe's model jointly for a short while, each encoder without the others, and once "
        "more jointly with a bilinear fusion, which finds interplay fast. Watch the gradients, probe the encoders, "
        "and say which `method` suits the data and why. All is judged on the validation split. Each run has the "
        "recipe's length, at most 300 steps, unless `--max_steps` is given; `--key value` words override the recipe. "
        "Leaves diagnosis.md, diagnosis.json and diagnosis.png.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a name that `hf-dgl recipes` lists")
    parser.add_argument("--output_dir", default=None, metavar="DIR", help="default: outputs/diagnose-RECIPE")
    parser.add_argument("--json", action="store_true", help="print diagnosis.json instead of tables and words")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Prints the verdict and the tables behind it; progress goes to stderr."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.table import Table

    from hf_dgl.analysis.diagnosis import diagnose

    is_main = os.environ.get("RANK", "0") == "0"

    def progress(name: str, done: int, total: int) -> None:
        if name and is_main:
            print(f"run {done + 1} of {total}: {name}", file=sys.stderr)

    with redirect_stdout(sys.stderr):  # the Trainer's callbacks print; stdout is for the result
        found = diagnose(arguments.recipe, rest, arguments.output_dir, progress)
    if not is_main:
        return
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    console = Console()
    for paragraph in found.verdict():
        console.print(Markdown(paragraph))
        console.print()
    for columns, rows in found.tables():
        table = Table(box=SIMPLE_HEAD)
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in found.notes:
        console.print(Markdown(note))
