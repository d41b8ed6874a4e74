"""`hf-dgl predict OUT --<modality> VALUE ...`."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser(
        "predict",
        parents=[common],
        allow_abbrev=False,
        help="label one example: a JSON line on stdout",
        usage='hf-dgl predict [-h] [--traceback] OUT [--image FILE] [--text "..."] [--audio FILE] ...',
        description="Label one example. Each modality of the model is an option; any of them may be left out.",
    )
    parser.add_argument("model", metavar="OUT", help="the folder that `hf-dgl train` wrote, or a Hub id")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Prints one JSON line: label, score, all scores, and the label and score of each modality alone."""
    from hf_dgl.inference import CrossModalPipeline

    pipeline = CrossModalPipeline.from_pretrained(arguments.model)
    print(json.dumps(pipeline(**_inputs(rest, pipeline.modalities)), ensure_ascii=False))


def _inputs(words: list[str], modalities: list[str]) -> dict[str, str]:
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in modalities:
        options.add_argument(f"--{name}")
    try:
        found, unknown = options.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    if unknown:
        raise ValueError(f"Did not understand {' '.join(unknown)!r}. This model takes: {_spelled(modalities)}.")
    inputs = {name: value for name, value in vars(found).items() if value is not None}
    if not inputs:
        raise ValueError(f"Nothing to label: give at least one of {_spelled(modalities)}.")
    return inputs


def _spelled(modalities: list[str]) -> str:
    return ", ".join(f"--{name}" for name in modalities)
