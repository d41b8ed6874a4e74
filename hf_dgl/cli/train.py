"""`hf-dgl train [RECIPE] [--key value ...]`."""

from __future__ import annotations

import argparse
from typing import Any


class _Help(argparse.Action):
    """Lists every key of a recipe, on demand: this needs heavy imports that `hf-dgl --help` must not wait for."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from hf_dgl.recipe.recipe import build_parser

        build_parser(parser.prog).print_help()
        parser.exit()


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser(
        "train", parents=[common], add_help=False, allow_abbrev=False, help="fine-tune as a recipe says"
    )
    parser.add_argument("-h", "--help", action=_Help, help="list every key of a recipe")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Trains, then prints the table of results and where the model is."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from hf_dgl.recipe.finetune import finetune
    from hf_dgl.recipe.recipe import load_recipe, split_words

    if not rest:
        raise ValueError(
            "Nothing to train: name a recipe (`hf-dgl train recipes/quickstart/image_text.yaml`), or data and "
            "encoders (`hf-dgl train --data my.csv --image photo --text title --label kind --encoders image=google/"
            "vit-base-patch16-224 text=FacebookAI/roberta-base`)."
        )
    result = finetune(load_recipe(*split_words(rest)))
    if not result.is_main_process:
        return
    columns, rows = result.table()
    table = Table(box=SIMPLE_HEAD, padding=0, caption="before, after: validation split; test: scored once, at the end")
    for index, column in enumerate(columns):
        table.add_column(column.replace(" ", "\n"), justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(
        f"The model is in {result.output_dir}. Next: hf-dgl evaluate {result.output_dir}",
        soft_wrap=True,
        highlight=False,
    )
    if result.hub_address:
        console.print(f"Uploaded: {result.hub_address}", soft_wrap=True, highlight=False)
