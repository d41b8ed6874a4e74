"""Which runs a comparison is made of, and the words of the command line that each of them is."""

from __future__ import annotations

import itertools
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_dgl.method.methods import ALL_METHODS, AS_PUBLISHED, OGM_GE, UNIMODAL
from hf_dgl.method.modalities import did_you_mean
from hf_dgl.recipe.recipe import Recipe, load_recipe
from hf_dgl.recipe.unimodal import encoders_of

_OWN_KEYS = {"method": "--methods", "modality": "--methods unimodal", "seed": "--seeds", "output_dir": "--output_dir"}


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        method, seed, settings, modality, tuned: As in [`Result`].
        folder: Its output.
        words: For `hf-dgl train`, behind the recipe.
    """

    method: str
    seed: int
    settings: tuple[tuple[str, str], ...]
    modality: str | None
    folder: Path
    words: tuple[str, ...]
    tuned: tuple[tuple[str, str], ...] = ()

    @property
    def marker(self) -> Path:
        """Is there once the run has come to its end; holds the recipe that was run."""
        return self.folder / "complete.yaml"

    @property
    def is_finished(self) -> bool:
        """Whether some run came to its end there. (The model is saved after metrics.json.)"""
        return self.marker.is_file() and (self.folder / "metrics.json").is_file()


def plan(
    recipe: str | os.PathLike[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    overrides: Sequence[str] = (),
    sweeps: Mapping[str, Sequence[str]] | None = None,
    tune: Mapping[str, Sequence[str]] | None = None,
) -> list[Run]:
    """The runs that a comparison may be made of, all of them checked against the recipe.

    With `tune`, those of every point of the grid: see [`hf_dgl.analysis.comparison.tuning`] for which are run.

    Args, Raises: As [`hf_dgl.analysis.comparison.run.compare`]; `folder` is its output_dir.

    Example:

        >>> runs = plan("my.yaml", ["joint", "dgl"], [0], Path("out"), sweeps={"alpha": ["1", "2"]})
        >>> [run.folder.name for run in runs]
        ['joint-0', 'dgl-alpha=1-0', 'dgl-alpha=2-0']
    """
    sweeps, tune = sweeps or {}, tune or {}
    _check(methods, seeds, sweeps, tune)
    if load_recipe(recipe, overrides).data.test_split is None:
        raise ValueError("The recipe has no test split to compare on: set `test_split`.")
    runs: dict[Path, Run] = {}
    points = itertools.product(itertools.product(*sweeps.values()), itertools.product(*tune.values()))
    for row, (swept, tuned), seed in itertools.product(methods, list(points), seeds):
        method, own = row_of(row)
        settings = _that_apply(sweeps, swept, method, own)
        chosen = _that_apply(tune, tuned, method, own)
        more = [word for key, value in (*own, *settings, *chosen) for word in (f"--{key}", value)]
        loaded = load_recipe(recipe, [*overrides, *more])
        if loaded.training.push_to_hub:  # they would all land in one repository
            more += ["--push_to_hub", "false"]
        for modality, words in _trainings(method, loaded).items():
            out = folder / _name(row, modality, (*settings, *chosen), seed)
            of_run = (*overrides, *more, *words, "--seed", str(seed), "--output_dir", str(out))
            if out not in runs:
                load_recipe(recipe, of_run)  # mistakes are told before anything is trained
                runs[out] = Run(row, seed, settings, modality, out, of_run, chosen)
    return list(runs.values())


def row_of(words: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """What stands for a row of the table: a method, or one with keys of the recipe that are its own.

    Raises:
        ValueError: a word behind `+` that is not `KEY=VALUE`.

    Example:

        >>> row_of("joint+modality_dropout=0.3")
        ('joint', (('modality_dropout', '0.3'),))
    """
    method, *more = re.split(r"\+(?=[A-Za-z_])", words)
    own = []
    for word in more:
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise ValueError(f"--methods: expected METHOD+KEY=VALUE, e.g. joint+modality_dropout=0.3, got {words!r}.")
        own.append((key, value))
    return method, tuple(own)


def _that_apply(
    keys: Mapping[str, Sequence[str]], values: Sequence[str], method: str, own: Sequence[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    """The keys, with these values, that are not fixed by the method or the row."""
    return tuple(
        (key, value) for key, value in zip(keys, values, strict=True) if _applies(key, method) and key not in dict(own)
    )


def _check(
    methods: Sequence[str],
    seeds: Sequence[int],
    sweeps: Mapping[str, Sequence[str]],
    tune: Mapping[str, Sequence[str]],
) -> None:
    for row in methods:
        _check_row(*row_of(row))
    if not seeds or not set(methods) - {UNIMODAL}:
        raise ValueError("There is nothing to compare: give at least one seed, and one method besides `unimodal`.")
    for option, done, keys in (("sweep", "swept", sweeps), ("tune", "tuned", tune)):
        for key, values in keys.items():
            if key in _OWN_KEYS:
                raise ValueError(f"`{key}` is not {done}: that is what {_OWN_KEYS[key]} is for.")
            if not values:
                raise ValueError(f"There are no values to {option} for `{key}`: write e.g. `--{option} {key}=1,2`.")
    if both := sorted(set(sweeps) & set(tune)):
        raise ValueError(f"`{both[0]}` is swept (a row per value) and tuned (the best value): remove one of them.")


def _check_row(method: str, own: Sequence[tuple[str, str]]) -> None:
    known = list(ALL_METHODS)
    if method not in known:
        raise ValueError(f"Unknown method {method!r}{did_you_mean(method, known)} Known: {known}.")
    if method == UNIMODAL and own:
        raise ValueError("--methods: `unimodal` is one training per modality, and takes no keys of its own.")
    for key, _ in own:
        if key in _OWN_KEYS:
            raise ValueError(f"--methods: `{key}` is no key of one row: that is what {_OWN_KEYS[key]} is for.")
        if not _applies(key, method):
            raise ValueError(f"--methods: `{key}` has no effect under `{method}`, or is fixed by it: remove it.")


def _trainings(method: str, recipe: Recipe) -> dict[str | None, list[str]]:
    """The words for a method's training; for `unimodal`, for that of each modality."""
    has_share = recipe.values.get("multimodal_to_encoders") is not None
    plain = ["--multimodal_to_encoders", "null"] if has_share and method in AS_PUBLISHED else []
    if method == UNIMODAL:
        return {name: [*plain, "--method", method, "--modality", name] for name in encoders_of(recipe.values)}
    return {None: [*plain, "--method", method]}


def _applies(key: str, method: str) -> bool:
    """Whether a swept key is the user's to choose under this method."""
    if key == "modality_dropout":
        return method != UNIMODAL
    if key == "alpha":
        return ALL_METHODS[method].alpha is None
    if key == "multimodal_to_encoders":
        return method not in AS_PUBLISHED
    return not key.startswith("ogm_") or method == OGM_GE


def _name(method: str, modality: str | None, settings: Sequence[tuple[str, str]], seed: int) -> str:
    """A folder's name; with a checksum, where a value has characters that do not belong into one."""
    wanted = "-".join([method, *([modality] if modality else []), *(f"{key}={value}" for key, value in settings)])
    name = re.sub(r"[^\w.=+-]", "_", wanted)[:120]
    return f"{name if name == wanted else f'{name}-{zlib.crc32(wanted.encode()):08x}'}-{seed}"
