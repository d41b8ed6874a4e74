"""The keys of a recipe, their types, and the parser that reads them from words: upstream's `HfArgumentParser`."""

from __future__ import annotations

import argparse
import dataclasses
import types
from collections.abc import Collection
from dataclasses import field
from typing import Any, Union, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser, TrainingArguments

from hf_dgl.training.arguments import DGLTrainingArguments
from hf_dgl.training.ranges import Range

from .arguments import WITHOUT_FILE, DataArguments, ModelArguments

OWNERS: list[Any] = [ModelArguments, DataArguments, DGLTrainingArguments]
HINTS: dict[str, Any] = {
    f.name: get_type_hints(owner)[f.name] for owner in OWNERS for f in dataclasses.fields(owner) if f.init
}
"""Every key that a recipe may hold, with its type."""


def build_parser(
    prog: str = "hf-dgl train", only: Collection[str] | None = None, exit_on_error: bool = True
) -> argparse.ArgumentParser:
    """The parser behind `hf-dgl train --help`: keys (all, or `only` these) by method, model, data, Trainer."""
    shown = HINTS if only is None else only
    method = [f.name for f in dataclasses.fields(DGLTrainingArguments)]
    upstream = {f.name for f in dataclasses.fields(TrainingArguments)}
    groups: list[Any] = [
        _group("the method", DGLTrainingArguments, shown, without=upstream),
        _group("the model", ModelArguments, shown),
        _group("the data", DataArguments, shown),
        _group("the Trainer (transformers.TrainingArguments)", DGLTrainingArguments, shown, set(method) - upstream),
    ]
    return HfArgumentParser(
        groups,
        prog=prog,
        usage="%(prog)s RECIPE [--key value | --key=value | --flag | --key name=value name=value] ...\n"
        "       %(prog)s --data my.csv --image COLUMN --text COLUMN --label COLUMN --encoders image=... text=... ...",
        description="Fine-tune as a recipe says. Every key below can stand in the recipe (`key: value`) or on the "
        "command line, which wins. --data is short for --dataset_name, --image COLUMN (text, audio, any modality) and "
        "--label COLUMN for entries of --column_mapping. The recipe may be left out; what is then not given is as "
        "listed below, except for: " + " ".join(f"--{key} {value}" for key, value in WITHOUT_FILE.items()) + ".",
        exit_on_error=exit_on_error,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except for None: what happens then is what the help says."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _group(title: str, owner: Any, shown: Collection[str], without: Collection[str] = ()) -> type:
    """A dataclass of some of `owner`'s fields: upstream's parser shows one group of options per dataclass."""
    members = [
        (
            f.name,
            str if {float, dict} <= members_of(f.name) else HINTS[f.name],  # upstream's parser knows no such unions
            field(default=f.default, default_factory=f.default_factory, metadata=_with_range(owner, f)),
        )
        for f in dataclasses.fields(owner)
        if f.init and f.name in shown and f.name not in without
    ]
    return dataclasses.make_dataclass(title, members, namespace={"_argument_group_name": title})


def _with_range(owner: Any, member: Any) -> dict[str, Any]:
    """A field's metadata, whose help tells its range, too."""
    notation, known = owner.RANGES.get(member.name), dict(member.metadata)
    return known if notation is None else {**known, "help": f"{known.get('help', '')} ({Range.of(notation)})"}


def members_of(key: str) -> set[Any]:
    """`float | dict[str, float] | None` -> {float, dict, NoneType}."""
    hint = HINTS[key]
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return {get_origin(option) or option for option in options}
