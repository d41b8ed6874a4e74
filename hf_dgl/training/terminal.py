"""What a training shows in the terminal or notebook: a header, a row per evaluation, the bar."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import transformers.trainer
import yaml
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_utils import has_length

from hf_dgl.data.labels import SINGLE_LABEL
from hf_dgl.method.modalities import FUSION
from hf_dgl.reports.model_tree import count, inspect_model
from hf_dgl.reports.result_tables import HEADLINES, finite, plain_metrics

_NUM_CLASSES_SHOWN = 6


class Bars(ProgressCallback):
    """Upstream's bars of progress, without a dictionary at every log.

    Example:

        >>> Bars().watch(trainer)
        >>> trainer.train()
    """

    def watch(self, trainer: Any, test_dataset: Any = None) -> None:
        """Takes the place of upstream's callbacks, of which a notebook has one of its own."""
        for other in {ProgressCallback, PrinterCallback, transformers.trainer.DEFAULT_PROGRESS_CALLBACK}:
            trainer.remove_callback(other)
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.current_step = 0
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, dynamic_ncols=True, disable=args.disable_tqdm, leave=False)

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and has_length(eval_dataloader) and self.prediction_bar is None:
            self.prediction_bar = tqdm(
                total=len(eval_dataloader), leave=False, dynamic_ncols=True, disable=args.disable_tqdm
            )
        if self.prediction_bar is not None:
            self.prediction_bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.3g}", refresh=False)

    def close(self) -> None:
        """Takes the bars away."""
        for bar in (self.prediction_bar, self.training_bar):
            if bar is not None:
                bar.close()


class TrainingOutput(Bars):
    """In place of upstream's callback, which prints every log as a dictionary.

    Args:
        as_json: JSON lines in place of header and rows: `{"event": "begin"}`, `"log"`, `"evaluation"`, `"end"`.

    With `log_level: info` (or `debug`) the dictionaries are shown, too.

    Example:

        >>> output = TrainingOutput()
        >>> output.watch(trainer)
        >>> trainer.train()
        >>> output.close()
    """

    def __init__(self, as_json: bool = False) -> None:
        super().__init__()
        self._as_json, self._shows_logs = as_json, False
        self._rows: _Rows | None = None
        self._facts: dict[str, str] = {}

    def watch(self, trainer: Any, test_dataset: Any = None) -> None:
        """Takes the place of upstream's callbacks; notes what there is to say of the training."""
        super().watch(trainer)
        self._shows_logs = shows_logs(trainer.args)
        self._facts = header(trainer, test_dataset)
        self._rows = _Rows(trainer)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if not state.is_world_process_zero:
            return
        if self._as_json:
            self._say({"event": "begin", "steps": state.max_steps, **self._facts})
        else:
            steps = f"{state.max_steps:,} steps of {args.train_batch_size * args.world_size} rows"
            steps += f" x {args.gradient_accumulation_steps}" if args.gradient_accumulation_steps > 1 else ""
            facts = {**self._facts, "training": f"{steps}, on {args.device}"}
            width = max(map(len, facts))
            for name, value in facts.items():
                self._say(f"{name:<{width}}  {value}")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        super().on_evaluate(args, state, control, **kwargs)
        if self.training_bar is None or not state.is_world_process_zero or self._rows is None:
            return  # the one after training is in the final table
        if self._as_json:
            self._say({"event": "evaluation", "step": state.global_step, "epoch": state.epoch or 0.0, **metrics})
        else:
            if self._rows.is_empty:
                self._say(f"\n{self._rows.heading()}")
            self._say(self._rows.row(state.epoch or 0.0, state.global_step, metrics))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        super().on_log(args, state, control, logs=logs, **kwargs)
        if self.training_bar is None:
            return
        is_evaluation = any(key.startswith("eval_") for key in logs)
        if self._as_json and not is_evaluation:
            self._say({"event": "log", "step": state.global_step, **logs})
        elif self._shows_logs and not self._as_json:
            ProgressCallback.on_log(self, args, state, control, logs=logs, **kwargs)

    def _say(self, what: Any) -> None:
        line = what if isinstance(what, str) else json.dumps(finite(what), default=float)
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def shows_logs(args: Any) -> bool:
    """Whether whoever wrote the recipe asked for every log."""
    return args.log_level in ("debug", "info", "detail")


def header(trainer: Any, test_dataset: Any = None) -> dict[str, str]:
    """What is about to be trained, a line per fact: data, label, model, method, output folder.

    Args:
        trainer: A `DGLTrainer` before its training.
        test_dataset: What is scored at the end.

    Example:

        >>> header(trainer)["method"]
        'dgl, alpha 1'
    """
    args, config = trainer.args, trainer.model.config
    assert trainer.disentangled is not None
    groups = inspect_model(trainer.disentangled).groups
    total, trained = sum(g.parameters for g in groups.values()), sum(g.trainable for g in groups.values())
    parts = [f"{name} {_kind(config, name)}{count(group.parameters)}" for name, group in groups.items()]
    model = f"{', '.join(parts)}; {'all' if trained == total else count(trained)} of {count(total)} parameters trained"
    data = (yaml.safe_load(trainer.recipe) or {}).get("dataset_name", "") if trainer.recipe else ""
    facts = {
        "data": f"{_named(data)}{_rows_of(trainer.train_dataset)} rows to train on, "
        f"{_rows_of(trainer.eval_dataset)} to validate, {_rows_of(test_dataset)} to test",
        "label": _label(config),
        "model": model,
        "method": _method(args, trainer.disentangled),
        "output": str(args.output_dir),
    }
    return {name: value for name, value in facts.items() if value}


def _named(dataset_name: str | Mapping[str, float]) -> str:
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name)
    return f"{' + '.join(names)}: " if any(names) else ""


def _rows_of(dataset: Any) -> str:
    if dataset is None:
        return "none"
    return f"{len(dataset):,}" if has_length(dataset) else "streamed"


def _kind(config: Any, name: str) -> str:
    """`vit (google/vit-base-patch16-224) ` of an encoder, as far as the configuration tells."""
    if name == FUSION:
        fusion = getattr(config, "fusion_type", None)
        return f"{fusion} " if fusion else ""
    encoder = (getattr(config, "encoders", None) or {}).get(name)
    if encoder is None:
        return ""
    read = encoder.get if isinstance(encoder, Mapping) else lambda key, default=None: getattr(encoder, key, default)
    source = read("_name_or_path", "") or read("name_or_path", "")
    return f"{read('model_type', '')}{f' ({source})' if source else ''} "


def _label(config: Any) -> str:
    problem_type = getattr(config, "problem_type", None)
    if problem_type == "regression":
        return "a number"
    names = [str(name) for name in (getattr(config, "id2label", None) or {}).values()]
    if problem_type is None or not names:
        return ""
    more = ", ..." if len(names) > _NUM_CLASSES_SHOWN else ""
    several = ", several at a time" if problem_type == "multi_label_classification" else ""
    return f"{len(names)} classes ({', '.join(names[:_NUM_CLASSES_SHOWN])}{more}){several}"


def _method(args: Any, disentangled: Any) -> str:
    alpha = {name: weight for name, weight in disentangled.alpha.items() if weight}
    shown = (
        f"{next(iter(alpha.values())):g}"
        if len(set(alpha.values())) == 1
        else ", ".join(f"{name} {weight:g}" for name, weight in alpha.items())
    )
    return f"{args.method or 'dgl'}{f', alpha {shown}' if alpha else ''}"


class _Rows:
    """The table of evaluations, a row at a time."""

    def __init__(self, trainer: Any) -> None:
        problem_type = getattr(trainer.model.config, "problem_type", None) or SINGLE_LABEL
        metric, title = next(iter(HEADLINES[problem_type].items()))
        self._modalities = list(trainer.disentangled.partition.modalities)
        self._metric, self._title = metric, title
        chosen = str(trainer.args.metric_for_best_model or metric).removeprefix("eval_")
        greater = trainer.args.greater_is_better
        self._chosen = chosen
        self._sign = -1 if (chosen in ("mae", "mse", "loss") if greater is None else not greater) else 1
        self._best = -math.inf
        self.is_empty = True
        columns = {"epoch": 6, "step": 7, "loss": 9, f"{title} fused": 0}
        columns |= {f"{name} alone": 0 for name in self._modalities}
        self._widths = {name: max(width, len(name) + 2) for name, width in columns.items()}

    def heading(self) -> str:
        """`epoch   step     loss  accuracy fused  image alone  text alone`."""
        return "".join(f"{name:>{width}}" for name, width in self._widths.items())

    def row(self, epoch: float, step: int, metrics: Mapping[str, float]) -> str:
        """One evaluation, and whether it is the best so far."""
        self.is_empty = False
        values = plain_metrics(metrics, "eval")
        keys = ["loss", self._metric, *(f"{self._metric}_{name}" for name in self._modalities)]
        cells = [f"{epoch:.2f}", f"{step:,}", *(_number(values.get(key)) for key in keys)]
        line = "".join(f"{cell:>{width}}" for cell, width in zip(cells, self._widths.values(), strict=True))
        score = self._sign * values.get(self._chosen, math.nan)
        if not score > self._best:
            return line
        self._best = score
        return f"{line}  best {self._chosen} so far"


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"
