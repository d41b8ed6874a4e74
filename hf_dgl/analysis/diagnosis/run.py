"""The runs behind a diagnosis: a short joint one that is watched, and one of each modality without the others."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_dgl.analysis.contributions import constant_score
from hf_dgl.analysis.probes import linear_probes
from hf_dgl.data.labels import SINGLE_LABEL
from hf_dgl.method.methods import UNIMODAL
from hf_dgl.recipe.assembly import assemble, writes_text
from hf_dgl.recipe.finetune import build_trainer, prepare
from hf_dgl.recipe.output_folder import check_writable
from hf_dgl.recipe.recipe import Recipe, load_recipe, read_overrides
from hf_dgl.reports.drawing import check_drawing
from hf_dgl.training.metrics import SCORERS, labelled
from hf_dgl.training.terminal import Bars

from .callback import DiagnoseGradients
from .regime import Regime, find_regime
from .result import Diagnosis

MAX_STEPS = 300
"""A diagnosis takes as many steps as the recipe, at most so many."""

_POINTS = 60  # of the curves
_SHORT = (  # nothing is kept of the runs
    "--eval_strategy no --save_strategy no --load_best_model_at_end false --push_to_hub false --report_to none "
    "--logging_strategy steps"
).split()

Progress = Callable[[str, int, int], None]
"""Called with what begins, the number of things done, and the number of all."""


def diagnose(
    recipe: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    output_dir: str | os.PathLike[str] | None = None,
    progress: Progress = lambda name, done, total: None,
) -> Diagnosis:
    """Finds out on a recipe's model and data what joint training does to its encoders, and which method suits them.

    A joint run, a run of each modality without the others, and a joint run with a bilinear fusion, which finds within
    few steps what only the combination of modalities tells (a cross-attention fusion often needs many); each of the
    recipe's length, but at most [`MAX_STEPS`] steps (`--max_steps` says otherwise). All is judged on the validation
    split; the test split is never read. What is kept: diagnosis.json, diagnosis.md and diagnosis.png.

    A checkpoint with a fusion of its own cannot be taken apart: there is a joint run only, no unimodal runs, linear
    probes or regime.

    Args:
        recipe: Path of a recipe. Its `method` does not matter.
        overrides: Further words, as for `hf-dgl train`.
        output_dir: Where the files go. Default: `outputs/diagnose-<recipe>`.
        progress: Is told what begins.

    Raises:
        ValueError: a stream, no validation split, a single modality, or what [`assemble`] raises.

    Example:

        >>> diagnosis = diagnose("recipes/quickstart/image_text.yaml", ["--max_steps", "100"])
        >>> diagnosis.regime.name, diagnosis.method
        ('redundant', 'dgl')
        >>> print(diagnosis.to_markdown())
    """
    folder = Path(output_dir or Path("outputs") / f"diagnose-{Path(recipe).stem}")
    wanted = load_recipe(recipe, overrides)
    words = [*overrides, *_SHORT, "--method", "joint", "--output_dir", str(folder / "runs")]
    if wanted.values.get("multimodal_to_encoders") is not None:
        words += ["--multimodal_to_encoders", "null"]
    if wanted.data.streaming:
        raise ValueError("A diagnosis reads its rows several times, so it takes no stream: add `--streaming false`.")
    is_native = not isinstance(wanted.model.encoders, Mapping)
    modalities = [] if is_native else list(wanted.model.encoders or {})
    if not is_native and len(modalities) < 2:
        raise ValueError(f"There is one modality only ({modalities}): a diagnosis needs at least two in `encoders`.")
    steps = wanted.training.max_steps if "max_steps" in read_overrides(overrides, modalities) else None
    check_drawing()
    check_writable(folder)
    total = 1 + len(modalities) + (not is_native)
    progress("joint", 0, total)
    joint = _Run(load_recipe(recipe, words), steps, is_watched=True)
    of_modality = {}
    for done, name in enumerate(modalities, start=1):
        progress(f"{name} alone", done, total)
        run = load_recipe(recipe, [*words, "--method", UNIMODAL, "--modality", name])
        of_modality[name] = _Run(run, joint.steps, rows=joint.rows)
    bilinear = None
    if not is_native:
        progress("bilinear fusion", total - 1, total)
        bilinear = _Run(load_recipe(recipe, [*words, "--fusion_type", "bilinear"]), joint.steps)
    progress("", total, total)
    diagnosis = _diagnosis(str(recipe), joint, of_modality, bilinear)
    if wanted.training.process_index == 0:
        diagnosis.save(folder)
        with suppress(OSError):  # it holds the names of broken rows, if there were any
            (folder / "runs").rmdir()
    return diagnosis


class _Run:
    """A short training, and what it leaves: curves, outputs for the validation rows, probes.

    Args:
        recipe: With `method: joint`.
        steps: How many; None: the recipe's own, at most [`MAX_STEPS`].
        rows: Validation rows to predict; None: the recipe's own, and also with each modality shuffled.
        is_watched: Whether its gradients are measured.
    """

    def __init__(self, recipe: Recipe, steps: int | None, rows: Any = None, is_watched: bool = False) -> None:
        prepare(recipe.training)
        parts = assemble(recipe)
        if "validation" not in parts.splits:
            raise ValueError("There is no validation split to judge by: name one with `validation_split`.")
        training = recipe.training
        self.steps = training.max_steps = steps or min(MAX_STEPS, _own_steps(recipe, len(parts.splits["train"])))
        training.logging_steps = max(1, self.steps // _POINTS)
        self.callback = DiagnoseGradients(every=max(1, training.logging_steps // 2))
        trainer = build_trainer(training, parts.model, parts.processor, parts.splits, parts.collator)
        if is_watched:
            trainer.add_callback(self.callback)
        with closing(Bars()) as bars:
            bars.watch(trainer)
            trainer.train()
        assert trainer.disentangled is not None
        self.modalities = list(trainer.disentangled.partition.modalities)
        self.unmeasured = {name: cut.obstacle for name, cut in trainer.disentangled.cuts.items() if not cut.reuse}
        self.problem_type = parts.model.config.problem_type or SINGLE_LABEL
        self.chance = math.nan if trainer.explained is None else float(trainer.explained.chance.value())
        self.is_scored = not writes_text(parts.processor)
        self.outputs: dict[str, np.ndarray] = {}
        self.shuffled: dict[str, np.ndarray] = {}
        self.probes: dict[str, float] = {}
        if not self.is_scored:
            return
        self.num_labels = parts.model.config.num_labels
        columns = list(parts.processor.modalities)
        self.rows = _readable(parts.splits["validation"], columns) if rows is None else rows
        self.labels, self.outputs = _predict(trainer, self.rows, columns)
        if rows is None and set(columns) == set(self.modalities):
            self.shuffled = {n: _predict(trainer, Shuffled(self.rows, n), columns)[1]["logits"] for n in columns}
        if getattr(parts.model.config, "modalities", None):
            data = (parts.splits["train"], parts.splits["validation"])
            self.probes = linear_probes(parts.model, parts.collator, *data, training.per_device_eval_batch_size)


def _readable(rows: Any, columns: Sequence[str]) -> Any:
    """The rows that have one of the columns at least."""
    kept = [index for index in range(len(rows)) if any(rows[index].get(name) is not None for name in columns)]
    return torch.utils.data.Subset(rows, kept)


def _predict(trainer: Any, rows: Any, columns: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels of the readable rows; outputs with all modalities (`logits`) and with each alone, of all rows: NaN where
    a row has nothing to answer from."""
    readable = _readable(rows, columns)
    found = trainer.predict_each_modality(readable)
    outputs = {}
    for name, part in found.predictions.items():
        part = part[0] if isinstance(part, tuple) else part
        outputs[name] = np.full((len(rows), *part.shape[1:]), np.nan)
        outputs[name][readable.indices] = part
    return np.asarray(found.label_ids), outputs


def _own_steps(recipe: Recipe, num_rows: int) -> int:
    training = recipe.training
    if training.max_steps > 0:
        return training.max_steps
    batches = math.ceil(num_rows / (training.train_batch_size * training.world_size))
    return math.ceil(training.num_train_epochs * math.ceil(batches / training.gradient_accumulation_steps))


class Shuffled(torch.utils.data.Dataset):
    """Rows of which one column is shuffled: what a model makes of them tells how far it relies on that column.

    Args:
        rows: With an index.
        column: The one that is shuffled, always in the same way.

    Example:

        >>> rows = [{"a": i, "b": i} for i in range(5)]
        >>> [row["b"] for row in Shuffled(rows, "a")] == list(range(5))
        True
    """

    def __init__(self, rows: Any, column: str) -> None:
        self._rows, self._column = rows, column
        self._order = np.random.default_rng(0).permutation(len(rows))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self):
            raise IndexError(index)
        return {**self._rows[index], self._column: self._rows[int(self._order[index])][self._column]}


def _diagnosis(recipe: str, joint: _Run, of_modality: Mapping[str, _Run], bilinear: _Run | None) -> Diagnosis:
    own: Regime | None = None
    regime: Regime | None = None
    scores: dict[str, float] = {}
    if joint.is_scored:
        outputs = {"joint": joint.outputs["logits"]}
        outputs |= {f"{name} in joint": joint.outputs[name] for name in joint.modalities}
        outputs |= {f"{name} trained alone": run.outputs["logits"] for name, run in of_modality.items()}
        scores = {name: _score(found, joint.labels, joint.problem_type) for name, found in outputs.items()}
        counts = labelled(joint.labels, joint.problem_type)
        scores["constant"] = constant_score(joint.labels[counts], joint.problem_type, joint.num_labels)
    if bilinear is not None:
        alone = {name: run.outputs["logits"] for name, run in of_modality.items()}
        own, other = (
            find_regime(alone, run.outputs["logits"], run.shuffled, joint.labels, joint.problem_type)
            for run in (joint, bilinear)
        )
        regime = max(own, other, key=lambda found: found.explained.joint)
    return Diagnosis(
        recipe=recipe,
        modalities=joint.modalities,
        steps=joint.steps,
        history=joint.callback.history,
        chance=joint.chance,
        metric=SCORERS[joint.problem_type][1] if joint.is_scored else "",
        scores=scores,
        probes_joint=joint.probes,
        probes_alone={name: run.probes[name] for name, run in of_modality.items()},
        regime=regime,
        own=own,
        unmeasured=joint.unmeasured,
    )


def _score(outputs: np.ndarray, labels: np.ndarray, problem_type: str) -> float:
    """The main metric over the rows that have outputs and a label."""
    kept = labelled(labels, problem_type) & np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
    score, metric = SCORERS[problem_type]
    return score(outputs[kept], labels[kept])[metric] if kept.any() else math.nan
