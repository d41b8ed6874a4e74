"""`hf-dgl train [RECIPE] [--json] [--key value ...]`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import Any

FIRST_KEYS = (
    "dataset_name column_mapping on_error streaming max_train_samples "
    "encoders model_name_or_path fusion_type num_fusion_layers peft "
    "method alpha freeze encoder_learning_rate log_gradients "
    "output_dir overwrite_output_dir resume_from_checkpoint learning_rate num_train_epochs max_steps "
    "per_device_train_batch_size gradient_accumulation_steps bf16 gradient_checkpointing eval_strategy "
    "load_best_model_at_end seed report_to push_to_hub"
).split()
"""What `--help` shows; `--help all` shows the others, too."""

_WIDE = 1000


class _Help(argparse.Action):
    """Lists keys of a recipe, on demand: this needs heavy imports that `hf-dgl --help` must not wait for."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, words: Any, option: str | None = None) -> None:
        from hf_dgl.recipe.recipe import build_parser

        if words not in (None, "all"):
            parser.error(f"--help takes `all` or nothing, got {words!r}.")
        of_recipe = build_parser(parser.prog, None if words == "all" else FIRST_KEYS)
        of_recipe.epilog = (
            "--json prints JSON lines in place of the table that grows; --log_level info prints every log; "
            "--traceback shows where in the code an error arose."
        )
        if words is None:
            of_recipe.epilog += " These are the keys that matter first. Every key: hf-dgl train --help all"
        of_recipe.print_help()
        parser.exit()


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser(
        "train", parents=[common], add_help=False, allow_abbrev=False, help="fine-tune as a recipe says"
    )
    parser.add_argument("-h", "--help", nargs="?", metavar="all", action=_Help, help="the keys that matter first; all")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Trains; prints what is trained, each evaluation, the table of results, and what to type next."""
    from transformers.utils import logging

    from hf_dgl.recipe.finetune import finetune
    from hf_dgl.recipe.recipe import load_recipe, split_words
    from hf_dgl.training.terminal import TrainingOutput, shows_logs

    from .interruption import StopAfterThisStep, how_to_go_on

    if not rest:
        raise ValueError(
            "Nothing to train: name a recipe (`hf-dgl train quickstart/image_text`; `hf-dgl recipes` lists more), or "
            "data and encoders (`hf-dgl train --data my.csv --image photo --text title --label kind --encoders "
            "image=google/vit-base-patch16-224 text=FacebookAI/roberta-base`)."
        )
    recipe = load_recipe(*split_words(rest))
    has_bars = logging.is_progress_bar_enabled()
    if not shows_logs(recipe.training):
        logging.disable_progress_bar()  # those of loading and saving
    stop = StopAfterThisStep()
    try:
        with stop.listening():
            result = finetune(recipe, before_training=stop.watch, output=TrainingOutput(arguments.json))
    except KeyboardInterrupt:
        print(f"hf-dgl train: {how_to_go_on(rest, stop.trainer)}", file=sys.stderr)
        return 130
    finally:
        if has_bars:
            logging.enable_progress_bar()
    if result.is_main_process:
        _print_result(result, arguments.json)
    return 0


def _print_result(result: Any, as_json: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from hf_dgl.reports.result_tables import finite

    if as_json:
        end = {"event": "end", "output_dir": result.output_dir, "metrics": finite(result.metrics)}
        print(json.dumps(end | ({"hub": result.hub_address} if result.hub_address else {})))
        return
    columns, rows = result.table()
    table = Table(box=SIMPLE_HEAD, padding=0, caption="before, after: validation split; test: scored once, at the end")
    for index, column in enumerate(columns):
        table.add_column(column.replace(" ", "\n"), justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(soft_wrap=True, highlight=False, markup=False, width=_WIDE)  # a narrow one would cut the numbers
    console.print(table)
    console.print(f"The model is in {result.output_dir}, with its card (README.md), curves (report.html), scores ")
    console.print("(metrics.json) and the recipe as it was run (recipe.yaml).")
    if result.hub_address:
        console.print(f"Uploaded: {result.hub_address}")
    console.print("Next:")
    for command in _next_commands(result.output_dir, result.modalities):
        console.print(f"  {command}")


def _next_commands(output_dir: str, modalities: list[str]) -> list[str]:
    """What can be typed after a training."""
    folder = shlex.quote(output_dir)
    asked = " ".join(f'--{name} "..."' if name == "text" else f"--{name} FILE" for name in modalities)
    return [
        f"hf-dgl predict {folder} {asked}   # leave out what is missing",
        f"hf-dgl demo {folder}   # the same as a page in the browser",
        f"hf-dgl evaluate {folder}   # every metric, as JSON",
    ]
