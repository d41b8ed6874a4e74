"""Recipes: a flat YAML file -> typed arguments, overridden from the command line.

A recipe names everything of one fine-tuning run: the model ([`ModelArguments`]), the data ([`DataArguments`]), and the
training ([`DGLTrainingArguments`], i.e. every field of `transformers.TrainingArguments` plus the method's). YAML gives
the defaults, the command line wins, an unknown key is an error:

    hf-dgl train recipes/quickstart/image_text.yaml --learning_rate 1e-4 --method joint --alpha image=1 text=2

The command line alone is a recipe, too. `--data` is short for `--dataset_name`, and a modality's or label's column for
an entry of `--column_mapping`:

    hf-dgl train --data my.csv --image photo --text title --label kind --encoders image=... text=...

The typing is that of upstream's `HfArgumentParser`, one key at a time, so that a mistake is reported with its key.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_dgl.hub.tokens import redacted
from hf_dgl.method.modalities import did_you_mean
from hf_dgl.training.arguments import DGLTrainingArguments

from .arguments import MODALITY_WORDS, WITHOUT_FILE, DataArguments, ModelArguments
from .parser import HINTS, OWNERS, build_parser, members_of
from .safe_yaml import parse_yaml, read_yaml
from .shipped import find_recipe
from .unimodal import with_one_modality

KEYS = frozenset(HINTS)


@dataclass
class Recipe:
    """One run, typed.

    Args:
        model, data, training: The three groups of arguments.
        values: The keys that the recipe and the command line gave, after overriding (what [`Recipe.to_yaml`] writes).
        dataset: A `Dataset` or `DatasetDict` in place of what `dataset_name` names.

    Example:

        >>> recipe = load_recipe("recipes/quickstart/image_text.yaml", ["--learning_rate=1e-4"])
        >>> recipe.training.learning_rate
        0.0001
    """

    model: ModelArguments
    data: DataArguments
    training: DGLTrainingArguments
    values: dict[str, Any] = field(default_factory=dict)
    dataset: Any = None

    def to_yaml(self) -> str:
        """The recipe as it was run: without tokens, and without this machine's folders where avoidable."""
        values = _portable(self.values)
        values.pop("overwrite_output_dir", None)  # was said of that folder on that day
        if os.path.isabs(str(values.get("output_dir", ""))):
            del values["output_dir"]
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def load_recipe(
    path: str | os.PathLike[str] | None, overrides: Sequence[str] = (), needs_model: bool = True
) -> Recipe:
    """Read a recipe and apply the command line's overrides to it.

    Args:
        path: A flat YAML file whose keys are fields of `ModelArguments`, `DataArguments` or `DGLTrainingArguments`.
            None: there is no file, the words say it all; a few defaults ([`WITHOUT_FILE`]) suit small data.
        overrides: Words of a command line: `--key value`, `--key=value`, `--flag`; `--key name=value name=value` for
            keys that hold a mapping, which changes the entries it names and leaves the others as the recipe has them;
            `--key '{name: null}'` removes an entry.
        needs_model: Whether a recipe without a model is an error; merely to look at data there need be none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: on a key that does not exist (with the nearest that does) or a value of the wrong type.

    Example:

        >>> load_recipe("recipes/quickstart/image_text.yaml", ["--method", "joint", "--alpha", "image=1", "text=2"])
    """
    values = {key: _typed(key, value) for key, value in (WITHOUT_FILE if path is None else read_recipe(path)).items()}
    for key, words in read_overrides(overrides, list(_encoders_of(values))).items():
        value, before = _from_words(key, words), values.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            value = {name: entry for name, entry in {**before, **value}.items() if entry is not None}
        values[key] = _typed(key, value)
    name = name_of_data(values.get("dataset_name")) if path is None else Path(path).stem
    return _build(values, name, needs_model)


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """A command line's recipe file, if it begins with one, and its other words.

    Example:

        >>> split_words(["--data", "my.csv"])
        (None, ['--data', 'my.csv'])
    """
    has_file = bool(words) and not words[0].startswith("-")
    return (words[0], list(words[1:])) if has_file else (None, list(words))


def make_recipe(values: Mapping[str, Any], name: str = "model") -> Recipe:
    """A recipe from a dictionary with the keys of a recipe file.

    Args:
        values: As in the YAML file.
        name: The results go to `outputs/<name>` unless `output_dir` says otherwise.

    Example:

        >>> make_recipe({"encoders": {"text": {"model_type": "bert"}}, "dataset_name": "sample:image_text"})
    """
    _check_keys(values, "the recipe")
    return _build({key: _typed(key, value) for key, value in values.items()}, name)


def _build(values: dict[str, Any], name: str, needs_model: bool = True) -> Recipe:
    _check_tasks(values)
    values = with_one_modality({"output_dir": os.path.join("outputs", name), **values})
    used = dict(values)
    if "LOCAL_RANK" not in os.environ:  # one process, which upstream would take for one of several (`hf-dgl evaluate`)
        used.pop("ddp_backend", None)
    model, data, training = (
        owner(**{f.name: used[f.name] for f in dataclasses.fields(owner) if f.name in used}) for owner in OWNERS
    )
    if needs_model:
        model.check_named()
    return Recipe(model=model, data=data, training=training, values=values)


def _check_tasks(values: Mapping[str, Any]) -> None:
    """Refuses what upstream's scripts act on, and what would be ignored here in silence."""
    others = [name for name in ("do_eval", "do_predict") if values.get(name)]
    if values.get("do_train") is False or (others and not values.get("do_train")):
        given = "do_train: false" if "do_train" in values else f"{others[0]} without do_train"
        raise ValueError(
            f"{given}: `hf-dgl train` trains in any case, and scores validation and test split by itself. To score a "
            "trained model: `hf-dgl evaluate OUT`; to answer rows: `hf-dgl predict OUT`. Else take it out."
        )
    if values.get("label_names") not in (None, [], ["labels"]):
        raise ValueError(
            f"label_names: {values['label_names']}: the rows of a recipe bring `labels`. Which column they come from "
            "is said by `column_mapping: {label: COLUMN}` (`--label COLUMN`), the names of classes by `class_names`."
        )
    if values.get("output_dir") == "":
        raise ValueError("output_dir: expected a folder, got nothing. Type `--output_dir FOLDER`; `.` is this one.")


def _encoders_of(values: Mapping[str, Any]) -> Mapping[str, Any]:
    encoders = values.get("encoders")
    return encoders if isinstance(encoders, Mapping) else {}


def name_of_data(dataset_name: Any) -> str:
    """What the results of a command without recipe file are called: `my` for `data/my.csv`."""
    first = next(iter(dataset_name)) if isinstance(dataset_name, Mapping) and dataset_name else dataset_name
    return Path(str(first or "model").replace(":", "_")).stem or "model"


def read_recipe(file: str | os.PathLike[str]) -> dict[str, Any]:
    """The keys and values of a recipe file, or of a shipped recipe's name; ValueError on a key that does not exist."""
    path = find_recipe(file)
    values = read_yaml(path)
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise ValueError(f"{path}: expected `key: value` lines, got {found}.")
    _check_keys(values, str(path))
    return values


def read_overrides(words: Sequence[str], modalities: Sequence[str] = ()) -> dict[str, list[str]]:
    """The words after each `--key` of a command line; the last one wins when a key comes twice.

    Args:
        words: Of the command line.
        modalities: Names whose columns may be given as `--name COLUMN`, beside those in `--encoders`.

    Raises:
        ValueError: on a word before the first key, or an unknown key.

    Example:

        >>> read_overrides(["--bf16", "--alpha", "image=1", "text=2", "--method=joint"])
        {'bf16': [], 'alpha': ['image=1', 'text=2'], 'method': ['joint']}
        >>> read_overrides(["--data", "my.csv", "--image", "photo", "--label", "kind"])
        {'dataset_name': ['my.csv'], 'column_mapping': ['image=photo', 'label=kind']}
    """
    found: dict[str, list[str]] = {}
    key = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            key = name.replace("-", "_")
            if key.startswith("no_") and key not in HINTS and HINTS.get(key[3:]) in (bool, bool | None):
                key, equals, value = key[3:], "=", "false"  # upstream's spelling of switching a default off
            found[key] = [value] if equals else []
        elif key is None:
            raise ValueError(f"Did not expect {word!r} here: overrides are written `--key value`, after the recipe.")
        else:
            found[key].append(word)
    encoders = [word.partition("=")[0] for word in found.get("encoders", [])]
    short = {*modalities, *encoders, *MODALITY_WORDS, "label"} - set(HINTS)
    found = _without_short_forms(found, short)
    _check_keys(found, "the command line", sorted(short))
    return found


def _without_short_forms(found: Mapping[str, list[str]], columns: set[str]) -> dict[str, list[str]]:
    """`--data X` -> `--dataset_name X`; `--image photo --label kind` -> `--column_mapping image=photo label=kind`."""
    longer: dict[str, list[str]] = {}
    for key, words in found.items():
        if key in columns:
            if key == "label" and len(words) > 1:  # several targets
                longer.setdefault("column_mapping", []).append(f"label={json.dumps(words, ensure_ascii=False)}")
                continue
            if len(words) != 1:
                shown = f"got {' '.join(words)!r}" if words else "got nothing"
                raise ValueError(f"--{key}: expected the name of one column ({shown}), e.g. `--{key} 'my column'`.")
            longer.setdefault("column_mapping", []).append(f"{key}={words[0]}")
        elif key == "column_mapping":
            longer.setdefault(key, []).extend(words)
        elif key == "data":
            if "dataset_name" in found:
                raise ValueError("`--data` is short for `--dataset_name`: give one of them.")
            longer["dataset_name"] = words
        else:
            longer[key] = words
    return longer


def _check_keys(keys: Iterable[str], where: str, short_forms: Sequence[str] = ()) -> None:
    for key in keys:
        if key not in HINTS:
            near = did_you_mean(str(key), [*HINTS, *short_forms])
            columns = f" Columns are named by {', '.join(f'--{name}' for name in short_forms)}." if short_forms else ""
            raise ValueError(f"Unknown key {key!r} in {where}{near} `hf-dgl train --help` lists them all.{columns}")


def _from_words(key: str, words: list[str]) -> Any:
    """What a recipe would hold for these words of the command line."""
    if not words:
        if _action(key).nargs != "?" and bool not in members_of(key) and key != "resume_from_checkpoint":
            raise _wrong_type(key, "nothing")
        return True
    members = members_of(key)
    if words == ["null"] and type(None) in members:
        return None
    if dict in members and all("=" in word and not word.startswith("{") for word in words):
        split = [word.rsplit("=", 1) if key == "dataset_name" else word.split("=", 1) for word in words]
        if key != "dataset_name" or len(split) > 1 or _is_number(split[0][1]):  # else a path with a `=`
            return {name: _maybe_nested(key, value) for name, value in split}
    if len(words) == 1:
        return _maybe_nested(key, words[0]) if members & {dict, list} else words[0]
    if list in members:
        return words
    raise _wrong_type(key, " ".join(words))


def _maybe_nested(key: str, word: str) -> Any:
    return parse_yaml(word, f"--{key}") if word.startswith(("{", "[")) else word


def _typed(key: str, value: Any) -> Any:
    """`value` in the type of field `key`: YAML reads `1e-4` as text and `no` as False, a shell gives only text."""
    members = members_of(key)
    if value is None and type(None) in members:
        return None
    if value is True and _action(key).nargs == "?":
        return _action(key).const
    if isinstance(value, Mapping) and dict in members:
        return {str(name): _number(key, entry) if float in members else entry for name, entry in value.items()}
    if key.endswith("_kwargs") and isinstance(value, str) and not value.lstrip().startswith("{"):
        raise _wrong_type(key, value)  # upstream would take it for a mapping in JSON, and fail much later
    if isinstance(value, (list, tuple)) and list in members:
        return list(value)
    if value is None or isinstance(value, (Mapping, list, tuple)):
        raise _wrong_type(key, value)
    if {float, dict} <= members:  # a number, or one per modality: more than upstream's parser can express
        return _number(key, value)
    word = str(value)
    if isinstance(value, bool):
        word = "true" if value else "false" if bool in members else "no"
    try:
        typed = getattr(_value_parser().parse_known_args([f"--{key}={word}"])[0], key)
    except argparse.ArgumentError as error:
        raise _wrong_type(key, value) from error
    return typed[0] if isinstance(typed, list) and str in members else typed


@functools.cache
def _value_parser() -> argparse.ArgumentParser:
    return build_parser(exit_on_error=False)


def _action(key: str) -> argparse.Action:
    return next(action for action in _value_parser()._actions if action.dest == key)


def _number(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise _wrong_type(key, value) from error


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _wrong_type(key: str, value: Any) -> ValueError:
    if key.endswith("token"):
        return ValueError(f"{key}: expected a text, got a {type(value).__name__} (which is not shown: it is secret).")
    if (action := _action(key)).choices is not None:
        choices = [str(choice) for choice in action.choices]
        return ValueError(
            f"{key}: expected one of {choices}, got {redacted(repr(value))}{did_you_mean(str(value), choices)}"
        )
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", list: "a list"}
    members = members_of(key)
    expected = " or ".join(
        text for kind, text in names.items() if kind in members and not (kind is str and dict in members)
    )
    if dict in members:
        expected += (
            " or " if expected else ""
        ) + "a mapping (in a recipe indented `name: value` lines, here `name=value`)"
    return ValueError(f"{key}: expected {expected or 'nothing, in a recipe'}, got {redacted(repr(value))}.")


def _portable(value: Any) -> Any:
    """Without tokens, and paths below the working directory relative to it."""
    if isinstance(value, Mapping):
        kept = {name: entry for name, entry in value.items() if not str(name).endswith("token")}
        return {_portable(name): _portable(entry) for name, entry in kept.items()}
    if isinstance(value, list):
        return [_portable(entry) for entry in value]
    if isinstance(value, str) and os.path.isabs(value) and Path(value).is_relative_to(Path.cwd()):
        return os.path.relpath(value)
    return redacted(value) if isinstance(value, str) else value
