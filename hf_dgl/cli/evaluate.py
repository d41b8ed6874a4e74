"""`hf-dgl evaluate OUT [--recipe RECIPE] [--split test] [--contributions] [--probes] [--calibration] ...`."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser(
        "evaluate",
        parents=[common],
        allow_abbrev=False,
        help="score a fine-tuned model: JSON on stdout",
        usage="hf-dgl evaluate [-h] [--traceback] OUT [--recipe RECIPE] [--split SPLIT] [--contributions] [--probes]\n"
        "                       [--missing RATE ...] [--calibration] [--key value ...]",
        description="Score a fine-tuned model on a split of a recipe's data; `--key value` words override the recipe.",
    )
    parser.add_argument("model", metavar="OUT", help="the folder that `hf-dgl train` wrote, or a Hub id")
    parser.add_argument("--recipe", help="names the data; default: the recipe as it was run, OUT/recipe.yaml")
    parser.add_argument("--split", default=None, help="default: the recipe's test split")
    add_scores(parser)
    parser.set_defaults(run=run)


def add_scores(parser: argparse.ArgumentParser) -> None:
    """Adds the options for scores beside a model's metrics, of this command and of `hf-dgl compare`."""
    parser.add_argument(
        "--contributions", action="store_true", help="add what each modality contributes to the score (Shapley values)"
    )
    parser.add_argument("--probes", action="store_true", help="add a linear probe of each encoder's features")
    parser.add_argument(
        "--missing",
        type=float,
        nargs="+",
        default=[],
        metavar="RATE",
        help="add the score where this share of the rows has lost one of its modalities, e.g. 0.25 0.5 0.75",
    )
    parser.add_argument(
        "--calibration",
        action="store_true",
        help="add the expected calibration error, fused and of each modality alone",
    )


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Prints one JSON object: accuracy, accuracy_<modality>, f1, ..."""
    from hf_dgl.analysis.robustness import check_rates
    from hf_dgl.models.finding import check_source
    from hf_dgl.recipe.finetune import evaluate
    from hf_dgl.recipe.recipe import load_recipe

    check_rates(arguments.missing)
    check_source(arguments.model)
    if arguments.recipe is None and not Path(arguments.model, "recipe.yaml").is_file():
        raise ValueError(f"Nothing says which data to score {arguments.model} on: name a recipe, `--recipe RECIPE`.")
    recipe = load_recipe(arguments.recipe or Path(arguments.model, "recipe.yaml"), rest)
    with redirect_stdout(sys.stderr):  # the Trainer's progress callbacks print; stdout is for the JSON
        metrics: dict[str, Any] = dict(evaluate(arguments.model, recipe, split=arguments.split))
        if arguments.contributions:
            from hf_dgl.analysis.contributions import evaluate_contributions

            metrics |= evaluate_contributions(arguments.model, recipe, arguments.split)
        if arguments.probes:
            from hf_dgl.analysis import evaluate_probes

            metrics |= evaluate_probes(arguments.model, recipe, arguments.split)
        if arguments.missing or arguments.calibration:
            from hf_dgl.analysis import evaluate_robustness

            metrics |= evaluate_robustness(
                arguments.model, recipe, arguments.split, arguments.missing, arguments.calibration
            )
    if recipe.training.process_index == 0:
        print(json.dumps(metrics, indent=2))
