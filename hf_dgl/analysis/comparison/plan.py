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
        method, seed, settings, modality: As in [`Result`].
        folder: Its output.
        words: For `hf-dgl train`, behind the recipe.
    """

    method: str
    seed: int
    settings: tuple[tuple[str, str], ...]
    modality: str | None
    folder: Path
    words: tuple[str, ...]


def plan(
    recipe: str | os.PathLike[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    overrides: Sequence[str] = (),
    sweeps: Mapping[str, Sequence[str]] | None = None,
) -> list[Run]:
    """The runs of a comparison, all of them checked against the recipe.

    Args, Raises: As [`hf_dgl.analysis.comparison.run.compare`]; `folder` is its output_dir.

    Example:

        >>> runs = plan("my.yaml", ["joint", "dgl"], [0], Path("out"), sweeps={"alpha": ["1", "2"]})
        >>> [run.folder.name for run in runs]
        ['joint-0', 'dgl-alpha=1-0', 'dgl-alpha=2-0']
    """
    sweeps = sweeps or {}
    _check(methods, seeds, sweeps)
    if load_recipe(recipe, overrides).data.test_split is None:
        raise ValueError("The recipe has no test split to compare on: set `test_split`.")
    runs: dict[Path, Run] = {}
    for method, values, seed in itertools.product(methods, itertools.product(*sweeps.values()), seeds):
        settings = tuple((key, v) for key, v in zip(sweeps, values, strict=True) if _applies(key, method))
        swept = [word for key, value in settings for word in (f"--{key}", value)]
        loaded = load_recipe(recipe, [*overrides, *swept])
        if loaded.training.push_to_hub:  # they would all land in one repository
            swept += ["--push_to_hub", "false"]
        for modality, words in _trainings(method, loaded).items():
            out = folder / _name(method, modality, settings, seed)
            of_run = (*overrides, *swept, *words, "--seed", str(seed), "--output_dir", str(out))
            load_recipe(recipe, of_run)  # mistakes are told before anything is trained
            runs[out] = Run(method, seed, settings, modality, out, of_run)
    return list(runs.values())


def _check(methods: Sequence[str], seeds: Sequence[int], sweeps: Mapping[str, Sequence[str]]) -> None:
    known = list(ALL_METHODS)
    for method in methods:
        if method not in known:
            raise ValueError(f"Unknown method {method!r}{did_you_mean(method, known)} Known: {known}.")
    if not seeds or not set(methods) - {UNIMODAL}:
        raise ValueError("There is nothing to compare: give at least one seed, and one method besides `unimodal`.")
    for key, values in sweeps.items():
        if key in _OWN_KEYS:
            raise ValueError(f"`{key}` is not swept: that is what {_OWN_KEYS[key]} is for.")
        if not values:
            raise ValueError(f"There are no values to sweep for `{key}`: write e.g. `--sweep {key}=1,2`.")


def _trainings(method: str, recipe: Recipe) -> dict[str | None, list[str]]:
    """The words for a method's training; for `unimodal`, for that of each modality."""
    has_share = recipe.values.get("multimodal_to_encoders") is not None
    plain = ["--multimodal_to_encoders", "null"] if has_share and method in AS_PUBLISHED else []
    if method == UNIMODAL:
        return {name: [*plain, "--method", method, "--modality", name] for name in encoders_of(recipe.values)}
    return {None: [*plain, "--method", method]}


def _applies(key: str, method: str) -> bool:
    """Whether a swept key is the user's to choose under this method."""
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
