"""The report of a training run: one HTML file, from what the Trainer and `finetune` left in the output folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment
from transformers.trainer import TRAINER_STATE_NAME

from .curves import as_svg, panels
from .result_tables import HEADLINES, Table, results_table

REPORT = "report.html"

_TEST_FIRST = ("test", "validation", "before")  # a narrow screen shows little more
_TEMPLATE = Path(__file__).parent / "templates" / "report.html"


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Writes `report.html`: results, curves of the losses, scores and gradient norms, every evaluation, the whole log.

    One file that needs no other and no network; light or dark as the reader's machine is.

    Args:
        folder: Of a Trainer: `trainer_state.json`, and, if they are there, `metrics.json` and `config.json`.

    Returns:
        The file.

    Raises:
        ValueError: if there is no `trainer_state.json`.

    Example:

        >>> write_report("outputs/image_text")
        PosixPath('outputs/image_text/report.html')
    """
    folder = Path(folder)
    if not (folder / TRAINER_STATE_NAME).is_file():
        raise ValueError(
            f"Got {folder}, expected a folder with {TRAINER_STATE_NAME}: the output folder of `hf-dgl train`, or one "
            "of its checkpoints."
        )
    state = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    metrics, config = (_read_json(folder / name) for name in ("metrics.json", "config.json"))
    recipe = yaml.safe_load(text) if (text := _read(folder / "recipe.yaml")) else {}
    log = state["log_history"]
    problem_type = config.get("problem_type") or "single_label_classification"
    modalities = config.get("modalities") or _modalities_in(log)
    drawn = panels(log, modalities, problem_type, len(config.get("id2label") or ()) or None)
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_read(_TEMPLATE))
    content = page.render(
        title=folder.absolute().name,
        facts=_facts(state, metrics.get("train", {}), recipe),
        results=results_table(metrics, modalities, problem_type, _TEST_FIRST) if metrics else None,
        score=drawn["scores"].y_label if "scores" in drawn else None,
        has_test="test" in metrics,
        plots=[as_svg(panel) for panel in drawn.values()],
        has_norms="gradient_norms" in drawn,
        evaluations=_evaluations(log, modalities, problem_type),
        log=_whole_log(log),
    )
    (folder / REPORT).write_text(content, encoding="utf-8")
    return folder / REPORT


def _facts(state: Mapping[str, Any], train: Mapping[str, float], recipe: Mapping[str, Any]) -> dict[str, str]:
    """What a reader wants to know first; what is not known is left out."""
    seconds = train.get("train_runtime")
    facts = {
        "method": recipe.get("method"),
        "alpha": recipe.get("alpha"),
        "data": ", ".join(Path(name).name for name in _names(recipe.get("dataset_name"))) or None,
        "steps": f"{state['global_step']:,}",
        "epochs": f"{state['epoch']:g}" if state.get("epoch") is not None else None,
        "batch size of a process": state.get("train_batch_size"),
        "training time": f"{seconds / 60:.1f} minutes" if seconds else None,
        "rows per second": f"{train['train_samples_per_second']:,.0f}" if seconds else None,
        f"best step by {str(recipe.get('metric_for_best_model') or 'loss').removeprefix('eval_')}": state.get(
            "best_global_step"
        ),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _evaluations(log: Sequence[Mapping[str, Any]], modalities: Sequence[str], problem_type: str) -> Table | None:
    """A row per evaluation: loss, and the first headline metric fused and of each modality alone."""
    metric, title = next(iter(HEADLINES[problem_type].items()))
    keys = {"loss": "eval_loss", f"{title} fused": f"eval_{metric}"}
    keys |= {f"{name} alone": f"eval_{metric}_{name}" for name in modalities}
    rows = {entry["step"]: entry for entry in log if "eval_loss" in entry}
    columns = [name for name, key in keys.items() if any(key in entry for entry in rows.values())]
    found = [
        [step, entry.get("epoch", 0.0), *(entry.get(keys[name]) for name in columns)] for step, entry in rows.items()
    ]
    return Table(["step", "epoch", *columns], _aligned(found)) if found else None


def _whole_log(log: Sequence[Mapping[str, Any]]) -> Table:
    """Everything that was logged while training."""
    entries = [entry for entry in log if "loss" in entry]
    columns = list(dict.fromkeys(key for entry in entries for key in entry))
    columns = ["step", "epoch", *sorted(set(columns) - {"step", "epoch"})]
    return Table(columns, _aligned([[entry.get(key) for key in columns] for entry in entries]))


def _modalities_in(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """As named in the terms of the loss, for models whose configuration does not list them."""
    names = dict.fromkeys(key.removeprefix("loss_") for entry in log for key in entry if key.startswith("loss_"))
    return [name for name in names if name != "multimodal"]


def _aligned(rows: Sequence[Sequence[Any]]) -> list[list[str]]:
    """Cells as text, each column with one number of decimals."""
    forms = []
    for column in zip(*rows, strict=True):
        sizes = [abs(value) for value in column if isinstance(value, float) and math.isfinite(value)]
        if not sizes:
            forms.append(",")
        else:
            forms.append(
                ",.3f" if 0.1 <= max(sizes) < 1000 or not any(sizes) else ".3e" if max(sizes) < 0.1 else ",.1f"
            )
    return [[_cell(value, form) for value, form in zip(row, forms, strict=True)] for row in rows]


def _form(column: Sequence[Any]) -> str:
    """How the numbers of a column are written."""
    largest = max((abs(value) for value in column if isinstance(value, float) and math.isfinite(value)), default=None)
    if largest is None:
        return ","
    return ".3e" if 0 < largest < 0.1 else ",.3f" if largest < 1000 else ",.1f"


def _cell(value: Any, form: str) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    return f"{value:{form}}"


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(_read(path) or "{}")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _names(dataset_name: Any) -> list[str]:
    """Of one data set, or of several that are mixed (name -> weight)."""
    return [dataset_name] if isinstance(dataset_name, str) else list(dataset_name or ())
