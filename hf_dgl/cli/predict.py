"""`hf-dgl predict OUT --<modality> VALUE ...`, or `hf-dgl predict OUT --input ROWS --output ANSWERS`."""

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
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="label one example (a JSON line on stdout), or every row of a file",
        usage='hf-dgl predict [-h] OUT [--image FILE] [--text "..."] [--audio FILE] ...\n'
        "       hf-dgl predict [-h] OUT --input ROWS --output ANSWERS [--image COLUMN] [--on_error skip] ...",
        description="Label one example: each modality of the model is an option (a file, an http(s) address, a text); "
        "any of them may be left out.\n\nOr label every row of a file: csv, tsv, json, jsonl or parquet in; "
        "jsonl, csv or parquet out.\nThe same command, given again, goes on where a run was stopped.",
    )
    parser.add_argument("model", metavar="OUT", help="the folder that `hf-dgl train` wrote, or a Hub id")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ...; default: the accelerator if there is one")
    parser.add_argument("--top_k", type=int, help="print only the so many best scores")
    parser.add_argument("--fused_only", action="store_true", help="leave out what each modality alone says (faster)")
    parser.add_argument(
        "--long_audio",
        choices=["crop", "windows"],
        default="crop",
        help="of audio that is longer than training crops it to: its middle (default), or all of it in windows whose "
        "scores are averaged",
    )
    file = parser.add_argument_group("files")
    file.add_argument("--input", metavar="ROWS", help="a file of rows; paths in it are relative to its folder")
    file.add_argument("--output", metavar="ANSWERS", help="its suffix is the format: .jsonl, .csv or .parquet")
    file.add_argument(
        "--column_mapping",
        nargs="+",
        metavar="NAME=COLUMN",
        default=[],
        help="which column is which modality, where it bears another name; short: --image COLUMN",
    )
    file.add_argument("--keep", nargs="+", metavar="COLUMN", default=[], help="columns to copy into the output")
    file.add_argument("--batch_size", type=int, default=8, help="rows at once; default: 8")
    file.add_argument("--num_workers", type=int, default=0, help="processes that read files meanwhile; default: none")
    file.add_argument(
        "--on_error",
        choices=["raise", "skip"],
        default="raise",
        help="at a row that cannot be read: stop (default), or write its error and go on",
    )
    file.add_argument("--overwrite", action="store_true", help="begin anew, whatever is there")
    parser.set_defaults(run=run, when_interrupted="stopped. The same command goes on with the rows that are left.")


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Prints one JSON line: label, score, all scores, and those of each modality alone. Or writes a file."""
    from hf_dgl.inference.load import pipeline

    if (arguments.input is None) != (arguments.output is None):
        missing = "--output ANSWERS" if arguments.output is None else "--input ROWS"
        raise ValueError(f"To label a file, give --input and --output; {missing} is missing.")
    model = pipeline(arguments.model, device=arguments.device)
    named = _named(rest, model.modalities)
    if arguments.input is not None:
        _predict_file(arguments, model, named)
        return
    arrays = [name for name in model.modalities if model.kind(name) == "array"]
    if arrays:
        raise ValueError(
            f"This model reads arrays of features ({', '.join(arrays)}), which a command line cannot give. Put rows "
            "into a json or parquet file: --input rows.jsonl --output answers.jsonl. Or use hf_dgl.pipeline in Python."
        )
    if not named:
        raise ValueError(f"Nothing to label: give at least one of {_spelled(model.modalities)}; or --input, --output.")
    answer = model(**named, top_k=arguments.top_k, unimodal=not arguments.fused_only, long_audio=arguments.long_audio)
    if len(named) == 1:  # what it alone says is the answer
        answer.pop("modalities", None)
    print(json.dumps(answer, ensure_ascii=False))


def _predict_file(arguments: argparse.Namespace, model: Any, columns: dict[str, str]) -> None:
    from hf_dgl.inference.predictions import predict_file

    pairs = [word.split("=", 1) for word in arguments.column_mapping]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"--column_mapping: expected NAME=COLUMN ..., got {' '.join(arguments.column_mapping)!r}.")
    done = predict_file(
        model,
        arguments.input,
        arguments.output,
        column_mapping={**dict(pairs), **columns},
        keep=arguments.keep,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        on_error=arguments.on_error,
        top_k=arguments.top_k,
        unimodal=not arguments.fused_only,
        overwrite=arguments.overwrite,
        long_audio=arguments.long_audio,
    )
    resumed = f", {done.num_resumed:,} of them by an earlier run" if done.num_resumed else ""
    errors = f"; {done.num_errors:,} could not be read (column `error`)" if done.num_errors else ""
    print(f"{done.num_rows:,} rows labelled{resumed}{errors}: {done.output_file}")


def _named(words: list[str], modalities: list[str]) -> dict[str, str]:
    """What `--<modality>` options say: values, or columns of a file."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in modalities:
        options.add_argument(f"--{name}", action="append", metavar="VALUE")
    try:
        found, unknown = options.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}. A value that begins with a dash is written --{modalities[0]}=VALUE.") from error
    if unknown:
        raise ValueError(f"Did not understand {' '.join(unknown)!r}. This model takes: {_spelled(modalities)}.")
    given = {name: values for name, values in vars(found).items() if values is not None}
    if several := [name for name, values in given.items() if len(values) > 1]:
        raise ValueError(
            f"--{several[0]} is given {len(given[several[0]])} times, and one example has one. For several examples "
            "put rows into a file: --input rows.jsonl --output answers.jsonl."
        )
    return {name: values[0] for name, values in given.items()}


def _spelled(modalities: list[str]) -> str:
    return ", ".join(f"--{name}" for name in modalities)
