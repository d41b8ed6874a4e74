"""`hf-dgl inspect MODEL_OR_RECIPE [--check] [--json] [--picture FILE]`."""

from __future__ import annotations

import argparse
import json
from typing import Any

_COLOURS = ["cyan", "magenta", "yellow", "green", "blue"]


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser(
        "inspect",
        parents=[common],
        allow_abbrev=False,
        help="where a model's modalities live, and whether DGL is exact on it",
        usage="hf-dgl inspect [-h] [--traceback] [--list] [--markdown] [MODEL_OR_RECIPE] [--check] [--json] "
        "[--picture FILE] [--model_class CLASS] [--partition NAME] [--key value ...]",
        description="Show a model as a tree: what belongs to which modality, what is fusion, where the encoders' "
        "outputs are handed over, sizes, tied and frozen weights. MODEL_OR_RECIPE is a recipe, a folder, a Hub id, or "
        "the name of a known class (then with its default config, without weights).",
    )
    parser.add_argument("model", metavar="MODEL_OR_RECIPE", nargs="?", help="see above")
    parser.add_argument(
        "--list",
        action="store_true",
        help="list the known classes: modalities, default method, what an absent modality is",
    )
    parser.add_argument("--check", action="store_true", help="run the leak and the exact-gradient check on a batch")
    parser.add_argument("--markdown", action="store_true", help="with --list: print a page of Markdown")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--picture", metavar="FILE", help="draw the model to this file (svg, png, pdf)")
    parser.add_argument("--model_class", metavar="CLASS", help="load a checkpoint as this class")
    parser.add_argument("--partition", metavar="NAME", help="for interleaved models: `embeddings` or `by_name`")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Prints the tree; the exit code is 1 if a check fails."""
    if arguments.list:
        _print_table(arguments.json, arguments.markdown)
        return 0
    if arguments.model is None:
        raise ValueError("Nothing to inspect: give a recipe, a folder, a Hub id or a class, or --list.")
    from hf_dgl.analysis.inspection import inspect_source
    from hf_dgl.reports.drawing import check_picture

    check_picture("--picture", arguments.picture)
    found = inspect_source(
        arguments.model,
        check=arguments.check,
        model_class=arguments.model_class,
        partition=arguments.partition,
        overrides=rest,
    )
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        _print(found)
    if arguments.picture:
        from hf_dgl.reports.model_picture import draw_model

        draw_model(found, arguments.picture)
    return 1 if found.passed is False else 0


def _print_table(as_json: bool, as_markdown: bool) -> None:
    from rich.console import Console

    from hf_dgl.analysis.known_models import known_models, known_models_page

    if as_json or as_markdown:
        print(json.dumps(known_models(), indent=2) if as_json else known_models_page(), end="\n" if as_json else "")
        return
    console = Console(highlight=False, soft_wrap=True)
    for name, row in known_models().items():
        if "refused" in row:
            console.print(f"[bold]{name}[/bold]: refused. {row['refused']}", markup=True)
            continue
        console.print(
            f"[bold cyan]{name}[/bold cyan]: {', '.join(row['modalities'])}; method {row['method']}, partition "
            f"{' or '.join(row['partitions'])}"
        )
        console.print(f"    {row['absent']} {row['note']}".rstrip(), markup=False)


def _print(found: Any) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.tree import Tree

    colours = {name: colour for name, colour in zip(found.groups, _COLOURS * 2, strict=False) if name != "fusion"}
    console = Console()
    tree = Tree(f"[bold]{found.model_class}[/bold]")
    for part in found.tree.parts:
        _grow(tree, part, colours)
    console.print(tree)
    table = Table("group", "parameters", "share", "trained", "encoder", box=SIMPLE_HEAD)
    for name, group in found.groups.items():
        trained = "all" if group.trainable == group.parameters else f"{group.trainable:,}"
        table.add_row(
            f"[{colours.get(name, 'white')}]{name}[/]",
            f"{group.parameters:,}",
            f"{group.share:.1%}",
            trained,
            group.cut or ("" if name == "fusion" else "reused or run again: --check tells"),
        )
    console.print(table)
    for names in found.tied:
        console.print(f"tied: {' = '.join(names)}", highlight=False)
    if found.absent:
        console.print(f"Absent: {found.absent}", highlight=False)
    if found.method:
        console.print(f"Default method: {found.method}. {found.note}".strip(), highlight=False)
    if found.checks is not None:
        console.print(found.checks, highlight=False, markup=False)


def _grow(tree: Any, node: Any, colours: dict[str, str]) -> None:
    total = sum(node.sizes.values())
    colour = colours.get(node.group, "white") if node.group else "bright_black"
    mixed = "" if node.group else " (" + ", ".join(f"{name} {size:,}" for name, size in node.sizes.items()) + ")"
    marks = f" [bold]✂ {node.cut}[/bold]" if node.cut else ""
    frozen = " frozen" if not node.trainable else "" if node.trainable == total else f" {node.trainable:,} trained"
    owner = f" {node.group}" if node.group else ""
    branch = tree.add(
        f"[{colour}]{node.label}[/] [dim]{node.kind}[/dim] {total:,}[{colour}]{owner}[/]{mixed}{frozen}{marks}"
    )
    for part in node.parts:
        _grow(branch, part, colours)
