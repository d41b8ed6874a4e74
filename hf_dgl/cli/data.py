"""`hf-dgl data [RECIPE] [--json] [--preview FILE] [--save_rows N DIR] [--key value ...]`."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

_STREAM_ROWS = 1000
_NUM_SHOWN = 20
_NARROWEST = 80


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser(
        "data",
        parents=[common],
        allow_abbrev=False,
        help="what is in a recipe's data: counts, broken files, duplicates, lengths",
        usage="hf-dgl data [-h] [--traceback] [RECIPE] [--json] [--preview FILE] [--save_rows N DIR] "
        "[--key value ...]",
        description="Read all data of a recipe once, as training would, and report rows and classes per split, broken "
        "and missing files, duplicates across splits, lengths against what the encoders can take, and what the most "
        "frequent class alone would score. The recipe may be left out, as for `hf-dgl train`: --data my.csv --image "
        "COLUMN --text COLUMN --label COLUMN --encoders image=... text=... And so may the encoders: --data my.csv "
        "--label COLUMN looks at all columns. The exit code is 1 if a row is broken.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every row that was found")
    parser.add_argument("--preview", metavar="FILE", help="draw some training rows to this file (png, pdf, svg)")
    parser.add_argument(
        "--save_rows",
        nargs=2,
        metavar=("N", "DIR"),
        help="write N rows, of the test split if there is one, as files into this folder, to try a model on",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Prints the report."""
    from hf_dgl.data.report import inspect_data
    from hf_dgl.recipe.recipe import load_recipe, split_words
    from hf_dgl.reports.drawing import check_picture

    check_picture("--preview", arguments.preview)
    num_saved = _check_save_rows(arguments.save_rows)
    recipe = load_recipe(*split_words(rest), needs_model=False)
    is_named = recipe.model.encoders is not None or recipe.model.model_name_or_path is not None
    splits, processor, note = _as_trained(recipe) if is_named else _merely_seen(recipe)
    data = recipe.data
    report = inspect_data(
        splits, processor, recipe.model.problem_type, data.class_names, data.preprocessing_num_workers
    )
    report.note = note
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        _print(report)
    if arguments.save_rows:
        _save_rows(splits, processor, num_saved, arguments.save_rows[1], arguments.json)
    if arguments.preview:
        from hf_dgl.data.preview import draw_preview

        draw_preview(splits["train"], processor, arguments.preview)
    return 1 if report.is_broken else 0


def _check_save_rows(words: list[str] | None) -> int:
    """How many rows are wanted."""
    if words is None:
        return 0
    from hf_dgl.data.saved_rows import check_rows_folder

    if not words[0].isdigit() or int(words[0]) < 1:
        raise ValueError(f"--save_rows: expected a number and a folder, e.g. `--save_rows 3 rows`, got {words!r}.")
    check_rows_folder(words[1])
    return int(words[0])


def _save_rows(splits: Any, processor: Any, num_rows: int, folder: str, is_quiet: bool) -> None:
    from hf_dgl.data.saved_rows import ROWS, read_rows, save_rows

    split = next(name for name in ("test", "validation", "train") if name in splits)
    rows = save_rows(splits[split], processor, folder, num_rows)
    if is_quiet:
        return
    given = {name: value for name, value in read_rows(folder)[0].items() if name != "label" and value is not None}
    words = [f"--{name} {shlex.quote(str(value))}" for name, value in given.items()]
    print(f"{len(rows)} rows of the {split} split are in {folder}. Try a model on them:")
    print(f"  hf-dgl predict OUT {' '.join(words)}")
    print(f"  hf-dgl predict OUT --input {shlex.quote(str(Path(folder, ROWS)))} --output answers.jsonl")


def _as_trained(recipe: Any) -> tuple[Any, Any, str]:
    """Splits and the processor of the recipe's model, and what to note."""
    from datasets import Dataset

    from hf_dgl.models.encoder_specs import resolve_encoder
    from hf_dgl.recipe.assembly import build_processor, load_splits

    wanted: Any = recipe.model.encoders or {}
    encoders = {name: resolve_encoder(name, value) for name, value in wanted.items()}
    modalities = list(encoders) or build_processor(recipe, {}, Dataset.from_dict({})).modalities
    splits, note = _counted(load_splits(recipe, modalities))
    return splits, build_processor(recipe, encoders, splits["train"]), note


def _merely_seen(recipe: Any) -> tuple[Any, Any, str]:
    """Splits and a processor that reads columns as what they hold, where no model is named."""
    from hf_dgl.data.looking import LookingProcessor, kinds_of_columns
    from hf_dgl.recipe.assembly import load_splits

    names = [name for name in recipe.data.column_mapping or {} if name != "label"]
    splits, note = _counted(load_splits(recipe, names or None))
    processor = LookingProcessor(kinds_of_columns(splits["train"], names or None))
    processor.allow_urls = recipe.data.allow_urls
    read = ", ".join(f"{name} ({kind})" for name, kind in processor.kinds.items())
    return (
        splits,
        processor,
        f"Read: {read}. With --encoders, lengths are held against what they can take. {note}".strip(),
    )


def _counted(splits: Any) -> tuple[Any, str]:
    """Splits with a length, and what to note of streams."""
    from datasets import IterableDataset

    from hf_dgl.data.streaming import head

    if not any(isinstance(part, IterableDataset) for part in splits.values()):
        return splits, ""
    note = f"The data is streamed: only the first {_STREAM_ROWS:,} rows of each split were read."
    return {split: head(part, _STREAM_ROWS) for split, part in splits.items()}, note


def _print(report: Any) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.width = max(console.width, _NARROWEST)  # below, numbers would be cut
    table = Table(box=SIMPLE_HEAD, title=f"labels: {report.problem_type}")
    for index, column in enumerate(("", *report.splits)):
        table.add_column(column, justify="right" if index else "left")
    for title, cells in _lines(list(report.splits.values())):
        table.add_row(title, *cells)
    console.print(table)
    lines = [f"{name}: {count} contents occur in several splits" for name, count in report.shared.items() if count]
    for group in report.similar_classes:
        lines.append(f"classes that may be one: {', '.join(map(repr, group))}. Make their names alike, if so.")
    if report.note:
        lines.append(report.note)
    for row in lines:
        console.print(escape(row), highlight=False, soft_wrap=True)
    _print_rows(
        console,
        "rows occur in several splits with the same inputs",
        [" = ".join(group) for group in report.duplicates],
    )
    _print_rows(console, "rows cannot be used", [str(row) for row in report.broken])
    if not report.broken:
        console.print("Every row can be used.")
    else:
        console.print("Train without them: --on_error skip", highlight=False)


def _print_rows(console: Any, what: str, rows: list[str]) -> None:
    from rich.markup import escape

    if rows:
        console.print(f"{len(rows):,} {what}:", highlight=False)
    for row in rows[:_NUM_SHOWN]:
        console.print(f"  {escape(row)}", highlight=False, soft_wrap=True)
    if len(rows) > _NUM_SHOWN:
        console.print(f"  ... and {len(rows) - _NUM_SHOWN:,} more: --json lists them all.", highlight=False)


def _lines(splits: list[Any]) -> list[tuple[str, list[str]]]:
    """The table: a title and a cell per split."""
    lines = [("rows", [f"{split.num_rows:,}" for split in splits])]
    classes = splits[0].classes
    if len(classes) > _NUM_SHOWN:
        lines.append((f"rows of a class ({len(classes)})", [_range(list(split.classes.values())) for split in splits]))
    else:
        lines += [(f"  {name}", [f"{split.classes.get(name, 0):,}" for split in splits]) for name in classes]
    if any(split.baseline is not None for split in splits):
        cells = ["" if split.baseline is None else f"{split.baseline:.3f}" for split in splits]
        lines.append(("majority baseline", cells))
    for name in splits[0].missing:
        if any(split.missing[name] for split in splits):
            lines.append((f"{name}: missing", [f"{split.missing[name]:,}" for split in splits]))
        lines += _lengths(f"{name}: tokens", [split.texts.get(name) for split in splits], ".0f")
        lines += _lengths(f"{name}: seconds", [split.audios.get(name) for split in splits], ".2f")
        if any(name in split.images for split in splits):
            sizes = [_size(split.images.get(name)) for split in splits]
            lines.append((f"{name}: pixels", sizes))
            for title, field in (("transparent", "transparent"), ("several frames: the first", "several_frames")):
                counts = [getattr(split, field).get(name, 0) for split in splits]
                if any(counts):
                    lines.append((f"  {title}", [f"{count:,}" for count in counts]))
    return lines


def _lengths(title: str, found: list[Any], form: str) -> list[tuple[str, list[str]]]:
    there = [part for part in found if part is not None]
    if not there:
        return []
    ranges = ["" if part is None else f"{part.minimum:{form}} to {part.maximum:{form}}" for part in found]
    medians = ["" if part is None else f"{part.median:{form}}" for part in found]
    lines = [(title, ranges), ("  median", medians)]
    if there[0].limit is not None:
        longer = ["" if part is None else f"{part.num_longer:,}" for part in found]
        lines.append((f"  longer than {there[0].limit:{form}}", longer))
    return lines


def _range(counts: list[int]) -> str:
    return f"{min(counts):,} to {max(counts):,}" if counts else ""


def _size(sizes: Any) -> str:
    if sizes is None:
        return ""
    if sizes.num_different == 1:
        return f"all {_by(sizes.most_common)}"
    return f"{_by(sizes.smallest)} to {_by(sizes.largest)}, often {_by(sizes.most_common)}"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
