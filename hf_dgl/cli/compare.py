"""`hf-dgl compare RECIPE --methods joint,dgl --seeds 0 1 2 [--sweep alpha=1,2] [--tune KEY=...] [--probes] ...`."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

from .evaluate import add_scores


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser(
        "compare",
        parents=[common],
        allow_abbrev=False,
        help="train a recipe under several methods and seeds: means, spreads and paired tests on the test split",
        usage="hf-dgl compare [-h] [--traceback] RECIPE [--methods METHODS] [--seeds SEED ...] "
        "[--sweep KEY=VALUE,... ...]\n"
        "                      [--tune KEY=VALUE,... ...] [--contributions] [--probes] [--missing RATE ...]\n"
        "                      [--calibration] [--output_dir DIR] [--jobs JOBS]\n"
        "                      [--key value ...]",
        description="Train a recipe under several methods and seeds. Complete runs are not repeated, and a run that "
        "fails does not stop the others. `--key value` words override the recipe in every run. The tables are printed "
        "and, with every number, left as comparison.md, comparison.json and comparison.png.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a name that `hf-dgl recipes` lists")
    parser.add_argument(
        "--methods",
        default="joint,dgl",
        help="with commas between them; default: %(default)s. `unimodal` trains each modality without the others; "
        "`ogm_ge` and `g_blending` are baselines by others; `joint+modality_dropout=0.3` is a row with a key of its "
        "own",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument(
        "--sweep",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE,...",
        help="values of a key of the recipe, a row each, for every method that has it; several keys make a grid",
    )
    parser.add_argument(
        "--tune",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE,...",
        help="values of which every method gets the best one: by the recipe's metric on the validation split, with "
        "the first seed; several keys make a grid",
    )
    add_scores(parser)
    parser.add_argument(
        "--output_dir",
        metavar="DIR",
        default=None,
        help="a folder per run goes there; default: outputs/compare-RECIPE",
    )
    parser.add_argument("--jobs", type=int, default=None, help="runs at a time; default: one per GPU, else 1")
    parser.set_defaults(run=run, when_interrupted="stopped. The same command goes on: complete runs are kept.")


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Prints Markdown tables; a bar of progress goes to stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from hf_dgl.analysis.comparison.run import compare

    if rest and not rest[0].startswith("--"):
        raise ValueError(f"Did not expect {rest[0]!r} here. Methods have commas between them: `--methods joint,dgl`.")
    sweeps, tune = read_sweeps(arguments.sweep), read_sweeps(arguments.tune, "--tune")
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the runs are ended, too
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("runs", total=None)
            comparison = compare(
                arguments.recipe,
                arguments.methods.split(","),
                arguments.seeds,
                arguments.output_dir,
                overrides=rest,
                jobs=arguments.jobs,
                sweeps=sweeps,
                contributions=arguments.contributions,
                probes=arguments.probes,
                tune=tune,
                missing=arguments.missing,
                calibration=arguments.calibration,
                progress=lambda name, done, total: bar.update(task, total=total, completed=done, description=name),
            )
    except RuntimeError as error:
        print(f"hf-dgl compare: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    print(comparison.to_markdown())
    return 1 if comparison.failures else 0


def read_sweeps(words: list[str], option: str = "--sweep") -> dict[str, list[str]]:
    """`["alpha=1,2"]` -> `{"alpha": ["1", "2"]}`.

    Raises:
        ValueError: a word that is not of this form.
    """
    sweeps: dict[str, list[str]] = {}
    for word in words:
        key, equals, values = word.partition("=")
        if not (key and equals and values):
            raise ValueError(f"{option}: expected KEY=VALUE,VALUE,..., e.g. `{option} alpha=0.5,1,2`, got {word!r}.")
        if key in sweeps:
            raise ValueError(f"{option}: {key!r} comes twice. Write all its values behind one `{key}=`.")
        sweeps[key] = list(dict.fromkeys(value.strip() for value in values.split(",") if value.strip()))
    return sweeps
