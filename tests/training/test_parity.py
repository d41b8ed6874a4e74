"""`method: joint` is `transformers.Trainer`, and `dgl` keeps its promises: one table of settings.

| in each row | is compared |
|---|---|
| `joint` and upstream | weights, logs, data order, events and control flags, predictions, metrics: bit for bit |
| `dgl`, 1 x 8 = 2 x 4 = 4 x 2 | weights: bit for bit where upstream's are, else within upstream's own difference |
| `dgl`, resumed = uninterrupted | weights, logs, data order: bit for bit where upstream's weights are |

Ours may log more (`loss_image`, `eval_accuracy_image`), nothing else. The rows named in `FAST` run in the fast tier.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from torch.nn import functional
from transformers import EarlyStoppingCallback, TrainerCallback, default_data_collator

from hf_dgl.training import saving_trainer
from hf_dgl.training.trainer import DGLTrainer
from tests.training.small import Small, Trainer, assert_same, build, small_model, small_rows, weights

REGRESSION, MULTI = "regression", "multi_label_classification"
BASE: dict[str, Any] = {
    "max_steps": 6,
    "num_train_epochs": 2,  # 24 rows, 8 at a time
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "save_strategy": "steps",
    "save_steps": 4,
    "logging_steps": 2,
}
EVAL = {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": small_rows(10, seed=1)}
EPOCHS = {"eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "epoch"}
BEST = {**EVAL, "save_steps": 2, "load_best_model_at_end": True, "metric_for_best_model": "loss"}


@dataclass
class Row:
    """Settings of `build`; `make(model)` gives those that each run needs anew; `model` those of the model."""

    settings: dict[str, Any] = field(default_factory=dict)
    make: Callable[[Any], dict[str, Any]] = lambda model: {}
    model: dict[str, Any] = field(default_factory=dict)
    mixin: type | None = None  # overrides methods of the Trainer
    cuts: bool = True  # whether the batch may be cut in other ways
    resumes: bool = True


def row(make=None, model=None, mixin=None, cuts=True, resumes=True, **settings):
    return Row(settings, make or (lambda model: {}), model or {}, mixin, cuts, resumes)


# ---- what users pass ----


def accuracy(prediction):
    return {"accuracy": float(np.mean(np.argmax(prediction.predictions, -1) == prediction.label_ids))}


def of_all(prediction):
    sums = [float(np.sum(part)) for part in (prediction.predictions, prediction.inputs, prediction.losses)]
    return dict(zip("pil", sums, strict=True))


def of_lists(prediction):
    assert isinstance(prediction.predictions, list)
    return {"rows": sum(map(len, prediction.predictions)), "first": float(prediction.predictions[0].sum())}


class ByBatch:
    def __init__(self):
        self.rows, self.right = 0, 0

    def __call__(self, prediction, compute_result):
        self.rows += len(prediction.label_ids)
        self.right += int((prediction.predictions.argmax(-1) == prediction.label_ids).sum())
        if not compute_result:
            return {}
        share = self.right / self.rows
        self.__init__()
        return {"accuracy": share}


def argmax(logits, labels):
    return logits.argmax(-1)


def hits(prediction):
    return {"hits": float(np.mean(prediction.predictions == prediction.label_ids))}


def summed(outputs, labels, num_items_in_batch=None):
    loss = functional.cross_entropy(outputs["logits"], labels, reduction="sum")
    return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)


class Weighing:
    """The documented way to weigh classes."""

    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        weight = torch.tensor([1.0, 2.0, 3.0], dtype=outputs.logits.dtype)
        loss = functional.cross_entropy(outputs.logits, labels, weight, reduction="none").mean()
        return (loss, outputs) if return_outputs else loss


class Backwards:
    """Rows in an order of its own."""

    def _get_train_sampler(self, train_dataset=None):
        return list(reversed(range(len(self.train_dataset))))


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(small_rows(24))


class Evaluate(TrainerCallback):
    """Asks for what the strategies do not."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = control.should_save = control.should_log = state.global_step == 3
        return control


class StopAt(TrainerCallback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_step_end(self, args, state, control, **kwargs):
        control.should_epoch_stop = state.global_step == 2
        control.should_training_stop = state.global_step == 5


def halves(model):
    return [{"params": list(model.image_encoder.parameters()), "lr": 0.1}, {"params": model.head.parameters()}]


def own_optimizer(model):
    return {"optimizers": (torch.optim.SGD(halves(model), lr=0.02, momentum=0.9), None)}


def own_schedule(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    return {"optimizers": (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step))}


def frozen(model):
    model.text_encoder.requires_grad_(False)
    return {}


def without_lengths(rows):
    return default_data_collator([{key: row[key] for key in ("image", "text", "labels")} for row in rows])


def with_lengths(model):
    rows = [{**row, "image": row["image"].tolist(), "text": row["text"].tolist()} for row in small_rows(24)]
    data = Dataset.from_list([{**row, "length": i % 7} for i, row in enumerate(rows)])
    return {"train_dataset": data, "data_collator": without_lengths, "test": data.select(range(7))}


def two_sets(model):
    return {"eval_dataset": {"a": small_rows(6, seed=1), "b": small_rows(5, seed=2)}}


SCHEDULES = {
    "linear": {"warmup_steps": 2},
    "cosine": {"warmup_steps": 0.4},
    "cosine_with_restarts": {"lr_scheduler_kwargs": {"num_cycles": 2}},
    "polynomial": {"lr_scheduler_kwargs": {"power": 2.0}},
    "constant": {},
    "constant_with_warmup": {"warmup_steps": 3},
    "inverse_sqrt": {"warmup_steps": 1},
    "cosine_with_min_lr": {"lr_scheduler_kwargs": {"min_lr": 0.01}},
    "warmup_stable_decay": {"warmup_steps": 1, "lr_scheduler_kwargs": {"num_decay_steps": 2, "num_stable_steps": 2}},
    "reduce_lr_on_plateau": {**EVAL, "metric_for_best_model": "loss", "lr_scheduler_kwargs": {"patience": 0}},
}
OPTIMIZERS = ["adamw_torch", "sgd", "adafactor", "rmsprop", "adagrad", "adamw_torch_fused"]

ROWS: dict[str, Row] = {
    "defaults": row(),
    "dropout": row(model={"dropout": 0.3}, cuts=False),
    "regression": row(model={"problem_type": REGRESSION}),
    "multi-label": row(model={"problem_type": MULTI}),
    **{f"optim {name}": row(optim=name, weight_decay=0.1) for name in OPTIMIZERS},
    "optim_args": row(optim="sgd", optim_args="momentum=0.9"),
    "optimizer of the user's own": row(own_optimizer),
    "optimizer and schedule of the user's own": row(own_schedule),
    "optimizer by class": row(optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1, "momentum": 0.5})),
    **{f"schedule {name}": row(lr_scheduler_type=name, **more) for name, more in SCHEDULES.items()},
    "clipping": row(max_grad_norm=0.05),
    "no clipping": row(max_grad_norm=0.0),
    "accumulation that does not divide an epoch": row(
        per_device_train_batch_size=4, gradient_accumulation_steps=4, num_train_epochs=3, max_steps=-1, cuts=False
    ),
    "last batches dropped": row(per_device_train_batch_size=7, dataloader_drop_last=True, cuts=False),
    "last batches not full": row(per_device_train_batch_size=7, cuts=False),
    "part of an epoch": row(max_steps=-1, num_train_epochs=1.5),
    "epochs": row(**{**EVAL, **EPOCHS, "max_steps": -1}),
    "logs: first step": row(logging_first_step=True, logging_steps=4),
    "logs: none": row(logging_strategy="no"),
    "logs: as they are": row(logging_nan_inf_filter=False),
    "evaluation: steps": row(**EVAL),
    "evaluation: at the start, delayed": row(**EVAL, eval_on_start=True, eval_delay=3, resumes=False),
    "evaluation: losses only": row(**EVAL, prediction_loss_only=True),
    "evaluation: two sets": row(two_sets, eval_strategy="steps", eval_steps=3),
    "evaluation: to the CPU": row(**EVAL, compute_metrics=accuracy, eval_accumulation_steps=1),
    "evaluation: in bf16": row(**EVAL, compute_metrics=accuracy, bf16_full_eval=True),
    "save: the best": row(**{**BEST, "save_strategy": "best", "save_total_limit": 1}),
    "save: two at most": row(save_steps=1, save_total_limit=2, resumes=False),
    "save: weights only": row(save_only_model=True, resumes=False),
    "save: epochs, evaluation: steps": row(**{**EVAL, "save_strategy": "epoch"}),
    "save: steps, evaluation: epochs": row(**{**EVAL, "eval_strategy": "epoch", "save_steps": 3}),
    "best at the end": row(**BEST),
    "best by an own metric": row(**{**BEST, "metric_for_best_model": "accuracy"}, compute_metrics=accuracy),
    "early stopping": row(
        lambda model: {"callbacks": [EarlyStoppingCallback(1)]}, **{**BEST, "learning_rate": 0.5}, cuts=False
    ),
    "metrics: own": row(**EVAL, compute_metrics=accuracy),
    "metrics: preprocessed": row(**EVAL, compute_metrics=hits, preprocess_logits_for_metrics=argmax),
    "metrics: by batch": row(lambda model: {"compute_metrics": ByBatch()}, **EVAL, batch_eval_metrics=True),
    "metrics: of inputs and losses": row(**EVAL, compute_metrics=of_all, include_for_metrics=["inputs", "loss"]),
    "metrics: in lists": row(**EVAL, compute_metrics=of_lists, eval_do_concat_batches=False),
    "workers: 1": row(dataloader_num_workers=1, **EVAL, cuts=False),
    "workers: 2, persistent": row(dataloader_num_workers=2, dataloader_persistent_workers=True, cuts=False),
    "seed": row(seed=11, model={"dropout": 0.3}, cuts=False),
    "seed of the data": row(data_seed=5),
    "in sequence": row(train_sampling_strategy="sequential"),
    "by a column of lengths": row(with_lengths, train_sampling_strategy="group_by_length"),
    "a sampler of the user's own": row(mixin=Backwards),
    "a stream": row(lambda model: {"train_dataset": Stream()}),
    "a stream, in parts": row(lambda model: {"train_dataset": Stream()}, gradient_accumulation_steps=2,
                              per_device_train_batch_size=4, cuts=False),
    "columns removed": row(with_lengths, remove_unused_columns=True),
    "bf16": row(bf16=True, model={"dtype": torch.float32}),
    "float32": row(model={"dtype": torch.float32}, **EVAL),
    "label smoothing": row(label_smoothing_factor=0.2, **EVAL),
    "loss function": row(compute_loss_func=summed, **EVAL),
    "loss of a subclass": row(mixin=Weighing, **EVAL),
    "frozen encoder": row(frozen),
    "model_init": row(model={"by_init": True}, **EVAL),
    "callbacks that steer": row(
        lambda model: {"callbacks": [Evaluate()]}, eval_dataset=small_rows(6), save_strategy="no", resumes=False
    ),
    "callbacks that stop": row(lambda model: {"callbacks": [StopAt(2)]}, resumes=False),
    "input tokens": row(include_num_input_tokens_seen="all", **EVAL),
    "batch size found": row(auto_find_batch_size=True),
    "data not skipped": row(ignore_data_skip=True, resumes=False),
    "callback states restored": row(
        lambda model: {"callbacks": [EarlyStoppingCallback(9)]}, **BEST, restore_callback_states_from_checkpoint=True
    ),
}  # fmt: skip

FAST = [
    "defaults",
    "optimizer of the user's own",
    "schedule reduce_lr_on_plateau",
    "epochs",
    "save: steps, evaluation: epochs",
    "best by an own metric",
    "metrics: by batch",
    "a stream",
    "bf16",
    "label smoothing",
    "loss of a subclass",
    "callbacks that steer",
]

NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ROWS]


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    """We write a card into each checkpoint: most of a run's time here."""
    monkeypatch.setattr(saving_trainer, "create_model_card", lambda *args, **kwargs: ModelCard("A card."))


# ---- a run, and what is seen of it ----


class Events(TrainerCallback):
    """Every event, with the step and the control flags that it finds."""

    def __init__(self):
        self.seen: list[Any] = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda args, state, control, **kwargs: self.seen.append(
                (name, state.global_step, state.epoch, tuple(sorted(vars(control).items())))
            )
        return super().__getattribute__(name)


@dataclass
class Outcome:
    weights: dict[str, torch.Tensor]
    logs: list[dict[str, Any]]
    data: list[Any]
    events: list[Any]
    predicted: Any


def run(folder, name, upstream=False, method="joint", cut=None, resume=None) -> Outcome:
    chosen = ROWS[name]
    kind = {"dtype": torch.float64, **chosen.model}
    dtype, by_init = kind.pop("dtype"), kind.pop("by_init", False)
    data: list[Any] = []

    def model():
        found = small_model(**kind).to(dtype)
        chosen.make(found)  # freezes
        found.register_forward_pre_hook(
            lambda module, args, kwargs: data.append(kwargs["image"][:, 0].tolist()) if module.training else None,
            with_kwargs=True,
        )
        return found

    events, problem_type = Events(), kind.get("problem_type")
    rows = {} if problem_type is None else {"train_dataset": small_rows(24, problem_type)}
    settings = {**BASE, **rows, **chosen.settings}
    if cut is not None:
        size = settings["per_device_train_batch_size"] * settings.get("gradient_accumulation_steps", 1)
        settings |= {"per_device_train_batch_size": size // cut, "gradient_accumulation_steps": cut}
    built = None if by_init else model()
    settings |= {"model_init": model} if by_init else {}
    made = {} if built is None else chosen.make(built)
    settings |= {**made, "callbacks": [*made.get("callbacks", []), events]}
    test = settings.pop("test", small_rows(7, *([] if problem_type is None else [problem_type]), seed=4))
    base = Trainer if upstream else DGLTrainer
    cls = base if chosen.mixin is None else type("Own", (chosen.mixin, base), {})
    trainer = build(folder, upstream, model=built, trainer=cls, method=method, **settings)
    if not upstream and "compute_metrics" not in settings:
        trainer.compute_metrics = None  # upstream has none of its own
    data.clear()
    trainer.train(resume_from_checkpoint=resume)
    logs = [{key: value for key, value in log.items() if _is_no_timing(key)} for log in trainer.state.log_history]
    final = weights(trainer)  # before an evaluation in bf16 casts them
    predicted = None
    if method == "joint" and resume is None and cut is None:
        found = trainer.predict(test)
        metrics = {key: value for key, value in found.metrics.items() if _is_no_timing(key)}
        predicted = (found.predictions, found.label_ids, metrics)
    return Outcome(final, logs, data, events.seen, predicted)


def _is_no_timing(key):
    return not key.endswith(("runtime", "per_second", "preparation_time", "total_flos"))


def as_upstream(ours, theirs):
    """Ours without what we measure beside upstream's."""
    assert len(ours) == len(theirs)
    return [{key: mine[key] for key in other} for mine, other in zip(ours, theirs, strict=True)]


def assert_equal(first, second):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for pair in zip(first, second, strict=True):
            assert_equal(*pair)
    elif isinstance(first, float) and math.isnan(first):
        assert math.isnan(second)
    else:
        np.testing.assert_array_equal(first, second)


def difference(first, second):
    return max(float((value.double() - second[name].double()).abs().max()) for name, value in first.items())


# ---- the table ----


@pytest.mark.parametrize("name", NAMES)
def test_joint_is_upstream(tmp_path, name):
    theirs, ours = run(tmp_path / "theirs", name, upstream=True), run(tmp_path / "ours", name)
    assert_same(theirs.weights, ours.weights)
    assert_equal(theirs.logs, as_upstream(ours.logs, theirs.logs))
    assert theirs.data == ours.data and theirs.events == ours.events
    for mine, other in zip(ours.predicted, theirs.predicted, strict=True):
        assert_equal({key: mine[key] for key in other} if isinstance(other, dict) else mine, other)
    assert sum(map(len, theirs.data)) >= 20 and len(theirs.events) > 20


@pytest.mark.parametrize("name", [name for name in NAMES if ROWS[getattr(name, "values", [name])[0]].cuts])
def test_dgl_however_a_batch_is_cut(tmp_path, name):
    ours, theirs = (
        [
            run(tmp_path / f"{upstream}{cut}", name, upstream, "dgl", cut if cut > 1 else None).weights
            for cut in (1, 2, 4)
        ]
        for upstream in (False, True)
    )
    for cut in (1, 2):
        allowed = difference(theirs[0], theirs[cut])
        found = difference(ours[0], ours[cut])
        assert found == 0 if allowed == 0 else found <= max(100 * allowed, 1e-9)


@pytest.mark.parametrize("name", [name for name in NAMES if ROWS[getattr(name, "values", [name])[0]].resumes])
def test_dgl_resumed_is_the_uninterrupted_run(tmp_path, name):
    def both(upstream):
        folder = tmp_path / str(upstream)
        whole = run(folder, name, upstream, "dgl")
        checkpoint = min(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        return whole, run(folder, name, upstream, "dgl", resume=str(checkpoint))

    whole, resumed = both(upstream=True)
    if any(not torch.equal(value, resumed.weights[key]) for key, value in whole.weights.items()):
        pytest.skip("upstream does not resume to the same weights here")
    whole, resumed = both(upstream=False)
    assert_same(whole.weights, resumed.weights)
    assert whole.data[len(whole.data) - len(resumed.data) :] == resumed.data
    assert_equal(whole.logs[:-1], resumed.logs[:-1])


@pytest.mark.parametrize(
    "step", [1, 2, pytest.param(3), *(pytest.param(s, marks=pytest.mark.slow) for s in (4, 5, 6))]
)
def test_resumed_at_every_checkpoint(tmp_path, monkeypatch, step):
    """Also from the last step of an epoch (3), after which upstream draws other random numbers."""
    settings = {**EVAL, "eval_strategy": "epoch", "save_steps": 1, "model": {"dropout": 0.3}}
    monkeypatch.setitem(ROWS, "every", row(**settings))
    for method in ("joint", "dgl"):
        folder = tmp_path / method
        whole = run(folder, "every", method=method)
        resumed = run(folder, "every", method=method, resume=str(folder / f"checkpoint-{step}"))
        assert_same(whole.weights, resumed.weights)
        assert_equal(whole.logs[:-1], resumed.logs[:-1])


def test_the_table_is_large_enough():
    assert len(ROWS) >= 60 and len(FAST) == 12 and set(FAST) <= set(ROWS) and Small is not None
