"""`hf-dgl benchmark [RECIPE] [--image_layers 12 ...] [--json FILE] [--plot FILE] [--key value ...]`."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

_SIZES: dict[str, tuple[type, str]] = {
    "image_layers": (int, "layers of the image encoder (ViT), 12; 0: no image"),
    "text_layers": (int, "layers of the text encoder (BERT), 12; 0: no text"),
    "audio_layers": (int, "layers of the audio encoder (AST), 0: no audio"),
    "fusion_type": (str, "cross_attention"),
    "fusion_layers": (int, "layers of the fusion, 2"),
    "hidden_size": (int, "width of encoders and fusion, 768"),
    "num_heads": (int, "attention heads; by default heads of 64"),
    "batch_size": (int, "rows, 4"),
    "image_size": (int, "pixels in height and width, 224"),
    "text_length": (int, "tokens, 64"),
    "audio_length": (int, "spectrogram frames, 512"),
    "dropout": (float, "everywhere; by default what the architectures have"),
}
"""The fields of `Shape` (not imported here: `hf-dgl --help` must not wait for torch)."""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser(
        "benchmark",
        parents=[common],
        allow_abbrev=False,
        help="what a training step of DGL costs, relative to joint training",
        usage="hf-dgl benchmark [-h] [--traceback] RECIPE [options below] [--key value ...]\n"
        "       hf-dgl benchmark [-h] [--traceback] [options below]",
        description="Measure a training step of joint training, DGL and the paper's two backward passes: of a "
        "recipe's model on its data (`--key value` words override the recipe), or of any shape on random inputs. "
        "Started by `torchrun --nproc_per_node N -m hf_dgl benchmark ...`, also what N processes say to one another.",
    )
    recipe = "a YAML file, or a name that `hf-dgl recipes` lists; without one, a shape is measured"
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help=recipe)
    parser.add_argument(
        "--steps",
        type=int,
        default=10,
        help="timed rounds, 10 (on a CPU minutes at the default sizes); 0: only count, whatever the size",
    )
    parser.add_argument("--device", help="by default the accelerator, if there is one")
    parser.add_argument("--bf16", action="store_true", help="bf16 mixed precision")
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")
    parser.add_argument("--plot", metavar="FILE", help="draw the ratios over fusion depth and number of modalities")
    parser.add_argument("--plot_steps", type=int, default=0, metavar="STEPS", help="timed rounds at its points, 0")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 4, 6], help="its fusion depths, 1 2 4 6")
    sizes = parser.add_argument_group("shape", "With a recipe these change its encoders, if they start from scratch.")
    for name, (kind, text) in _SIZES.items():
        sizes.add_argument(f"--{name}", type=kind, metavar=name.rsplit("_")[-1].upper(), help=text)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Prints the table; writes the files that were asked for."""
    from rich.console import Console

    from hf_dgl.analysis.benchmark.benchmark import benchmark_recipe, benchmark_shape
    from hf_dgl.analysis.benchmark.picture import plot_sweep
    from hf_dgl.analysis.benchmark.shapes import Shape, reshaped
    from hf_dgl.recipe.recipe import load_recipe
    from hf_dgl.reports.drawing import check_file, check_picture

    for name, least in (("steps", 0), ("plot_steps", 0), ("depths", 1)):
        given = getattr(arguments, name)
        if (min(given) if isinstance(given, list) else given) < least:
            raise ValueError(f"--{name}: expected {least} or more, got {given}.")
    check_file("--json", arguments.json)
    check_picture("--plot", arguments.plot)
    sizes = {name: value for name in _SIZES if (value := getattr(arguments, name)) is not None}
    options = {
        "steps": arguments.steps,
        "device": arguments.device,
        "bf16": arguments.bf16,
        "depths": arguments.depths if arguments.plot else (),
        "depth_steps": arguments.plot_steps,
    }
    console = Console()
    with console.status("Counting; then each round is a step of joint training, of DGL and of the paper's procedure"):
        if arguments.recipe is not None:
            result = benchmark_recipe(reshaped(load_recipe(arguments.recipe, rest), sizes), **options)
        elif rest:
            raise ValueError(f"Did not understand {' '.join(rest)!r}. `hf-dgl benchmark --help` lists what there is.")
        else:
            result = benchmark_shape(Shape(**sizes), **options)
    if os.environ.get("RANK", "0") != "0":
        return  # of the processes of a launcher, the first one tells
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    _tell(console, result)
    if arguments.plot:
        plot_sweep(result.sweep, arguments.plot)
        console.print(f"The plot is in {arguments.plot}", highlight=False, soft_wrap=True)


def _tell(console: Any, result: Any) -> None:
    """Prints the tables, and a line for every other figure."""
    _print(console, result.table(), "one training step, and its ratio to joint training; MiB of activations")
    _print(console, result.saved_table(), "MiB saved for the backward, by part of the model")
    if result.communication:
        _print(console, result.communication_table(), "collectives of one training step, and the MiB of their tensors")
    lines = [f"{name}: {value}" for name, value in result.description.items()]
    lines.append(f"DGL's FLOPs above the floor: {result.above_floor:.1%}")
    if result.evaluation is not None:
        lines.append(f"evaluation, fused and each modality alone, over fused only (FLOPs): {result.evaluation:.3f}")
    if result.first_step is not None:
        said = f"{1e3 * result.first_step:.1f} ms, {result.first_step_ratio:.2f} times a later one"
        lines.append(f"first step of DGL, its trial (a forward more) included: {said}")
    if result.bookkeeping_share is not None:
        lines.append(f"DGL's share outside of forwards and backward: {result.bookkeeping_share:.2%}")
    if result.fetching:
        said = f"{1e3 * statistics.median(result.fetching):.1f} ms, {result.fetching_share:.1%} of a step of DGL"
        lines.append(f"fetching a batch, with dataloader_num_workers=0: {said}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _print(console: Any, content: Any, title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    columns, rows = content
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)
