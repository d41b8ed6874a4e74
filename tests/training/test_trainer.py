from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from hf_dgl.data.collator import CrossModalCollator
from hf_dgl.data.labels import LabelSpec
from hf_dgl.models import CrossModalForSequenceClassification, CrossModalProcessor
from hf_dgl.training.arguments import DGLTrainingArguments
from hf_dgl.training.groups import parameter_groups
from hf_dgl.training.trainer import DGLTrainer
from tests.devices import current, put
from tests.tiny import NUM_LABELS, tiny_model, tiny_processor, tiny_rows

pytestmark = pytest.mark.device

SINGLE = {"problem_type": "single_label_classification"}


def rows(num_rows=24, modalities=("image", "text")):
    return Dataset.from_list(
        [{**row, "label": int(row["label"])} for row in tiny_rows(modalities, num_rows)],
    )


class Rows(torch.utils.data.Dataset):
    """A plain list of raw rows."""

    def __init__(self, num_rows=24, modalities=("image", "text"), seed=0):
        self.rows = tiny_rows(modalities, num_rows, seed)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def labels():
    return LabelSpec.from_dataset(Dataset.from_dict({"label": [index % NUM_LABELS for index in range(9)]}))


def arguments(tmp_path, cls=DGLTrainingArguments, **kwargs):
    defaults = {
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": current().type == "cpu",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "seed": 7,
    }
    return cls(str(tmp_path), **{**defaults, **kwargs})


def make(tmp_path, model=None, modalities=("image", "text"), trainer=DGLTrainer, model_init=None, **kwargs):
    cls = DGLTrainingArguments if trainer is DGLTrainer else TrainingArguments
    names = {"train_dataset", "eval_dataset", "callbacks", "compute_metrics", "compute_loss_func", "modalities"}
    passed = {name: kwargs.pop(name) for name in names & kwargs.keys()}
    processor = tiny_processor(modalities)
    passed = {"train_dataset": Rows(modalities=modalities), **passed}
    if model is None and model_init is None:
        model = tiny_model(modalities, **SINGLE)
    return trainer(
        model=model,
        model_init=model_init,
        args=arguments(tmp_path, cls, **kwargs),
        data_collator=CrossModalCollator(processor, labels()),
        processing_class=processor,
        **passed,
    )


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(first, second, **tolerance):
    for name, value in first.items():
        torch.testing.assert_close(
            value, second[name], **({"rtol": 0, "atol": 0} | tolerance), msg=lambda m, n=name: n + m
        )


# ---- the methods ----


def test_joint_is_bit_identical_to_a_plain_trainer(tmp_path):
    results = []
    for trainer_class, kwargs in [(Trainer, {}), (DGLTrainer, {"method": "joint"})]:
        trainer = make(tmp_path, trainer=trainer_class, **kwargs)
        trainer.train()
        results.append((weights(trainer), [log.get("loss") for log in trainer.state.log_history]))
    same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_dgl_changes_what_joint_learns(tmp_path):
    results = []
    for method in ("joint", "dgl"):
        trainer = make(tmp_path, method=method)
        trainer.train()
        encoder = {name: value for name, value in weights(trainer).items() if "encoders.image" in name}
        results.append(torch.cat([value.flatten() for value in encoder.values()]))
    assert not torch.equal(*results)


@pytest.mark.parametrize("method", ["dgl", "auxiliary"])
def test_one_batch_of_eight_is_eight_of_one(tmp_path, method):
    results = []
    for batch, accumulation in [(8, 1), (1, 8)]:
        trainer = make(
            tmp_path,
            method=method,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            max_grad_norm=0,
        )
        trainer.train()
        results.append(weights(trainer))
    same(*results, atol=1e-6)


def test_label_smoothing_and_a_users_loss_reach_every_term(tmp_path):
    """Label smoothing by the Trainer equals the same loss given as `compute_loss_func`, and both are DGL's total."""

    def smoothed(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs["logits"], labels, label_smoothing=0.3)

    results = []
    for kwargs in [{"label_smoothing_factor": 0.3}, {"compute_loss_func": smoothed}]:
        trainer = make(tmp_path, **kwargs)
        trainer.train()
        log = trainer.state.log_history[0]
        total = log["loss_multimodal"] + log["loss_image"] + log["loss_text"]
        assert math.isclose(log["loss"], total, rel_tol=1e-5)
        results.append(weights(trainer))
    same(*results, atol=1e-5)


# ---- logs ----


def test_terms_and_group_norms_are_logged(tmp_path):
    trainer = make(tmp_path, alpha=0.5, logging_steps=3)
    trainer.train()
    log = trainer.state.log_history[0]
    terms = [log[f"loss_{name}"] for name in ("multimodal", "image", "text")]
    assert math.isclose(log["loss"], terms[0] + 0.5 * (terms[1] + terms[2]), rel_tol=1e-5)
    norms = [log[f"grad_norm_{name}"] for name in ("fusion", "image", "text")]
    assert math.isclose(log["grad_norm"], math.hypot(*norms), rel_tol=1e-5)


@pytest.mark.parametrize("method", ["dgl", "joint"])
def test_gradients_are_logged_and_change_nothing(tmp_path, method):
    """Bit by bit, with accumulation, dropout and clipping: what the run learns is the same."""
    results = []
    for log_gradients in (False, True):
        trainer = make(
            tmp_path,
            model=tiny_model(("image", "text"), fusion_dropout=0.1, **SINGLE),
            method=method,
            log_gradients=log_gradients,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=2,
            logging_steps=1,
            max_steps=6,
        )
        trainer.train()
        results.append(weights(trainer))
        logs = [log for log in trainer.state.log_history if "loss" in log]
        measured = [log for log in logs if {"grad_ratio_image", "grad_cosine_text"} <= log.keys()]
        assert len(measured) == (0 if not log_gradients else 6 if method == "dgl" else 2)  # joint: every tenth batch
    assert all(log["grad_ratio_image"] > 0 and -1 <= log["grad_cosine_image"] <= 1 for log in measured)
    same(*results)


@pytest.mark.parametrize("log_gradients", [False, True])
@pytest.mark.parametrize("method", ["dgl", "ogm_ge", "g_blending"])
def test_nothing_waits_for_the_device_in_a_step(tmp_path, monkeypatch, method, log_gradients):
    """Neither routing nor the record of the terms reads a value of the device (counted as `.item()`-like calls)."""
    settings = {"eval_dataset": Rows(8), "eval_strategy": "epoch", "max_steps": 1, "log_gradients": log_gradients}
    trainer = make(tmp_path, method=method, **settings)
    trainer.train()
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    model = trainer.model.train()
    counted: list[str] = []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, _o=original, _n=name, **k: (counted.append(_n), _o(self, *a, **k))[1]
        )
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    trainer._clip_grad_norm(model)
    with_dgl = list(counted)
    counted.clear()
    trainer.disentangled.remove()
    model(**inputs).loss.backward()
    per_forward = len(counted)
    assert len(with_dgl) <= 3 * per_forward  # nothing beyond what the model itself does in each of its three passes


# ---- evaluation ----


def test_evaluation_reports_fused_and_each_modality(tmp_path):
    trainer = make(tmp_path, eval_dataset=Rows(11, seed=1), per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    for name in ("accuracy", "f1"):
        for suffix in ("", "_image", "_text"):
            assert 0 <= metrics[f"eval_{name}{suffix}"] <= 1
    model, collator = trainer.model.eval(), trainer.data_collator
    batch = put(collator(Rows(11, seed=1).rows))
    truth = batch.pop("labels")
    for suffix, inputs in [("", batch), ("_image", {"image": batch["image"]}), ("_text", {"text": batch["text"]})]:
        expected = (model(**inputs).logits.argmax(-1) == truth).float().mean().item()
        assert math.isclose(metrics[f"eval_accuracy{suffix}"], expected, rel_tol=1e-6)


def test_a_users_metrics_are_computed_for_each_modality(tmp_path):
    def compute_metrics(prediction):
        assert isinstance(prediction.predictions, np.ndarray)
        return {"mean_logit": float(prediction.predictions.mean())}

    trainer = make(tmp_path, eval_dataset=Rows(5), compute_metrics=compute_metrics)
    metrics = trainer.evaluate()
    assert {"eval_mean_logit", "eval_mean_logit_image", "eval_mean_logit_text"} <= metrics.keys()
    assert metrics["eval_mean_logit"] != metrics["eval_mean_logit_image"]


def test_rows_and_batches_without_a_modality_do_not_count_for_it(tmp_path):
    dataset = Rows(6)
    for row in dataset.rows[:3]:
        row["image"] = None
    trainer = make(tmp_path, eval_dataset=dataset, per_device_eval_batch_size=2)
    predictions = trainer.predict(dataset).predictions
    assert np.isnan(predictions["image"][:3]).all() and np.isfinite(predictions["image"][3:]).all()
    assert np.isfinite(predictions["text"]).all() and np.isfinite(predictions["logits"]).all()


def test_three_modalities(tmp_path):
    names = ("image", "text", "audio")
    trainer = make(tmp_path, modalities=names, eval_dataset=Rows(5, names), max_steps=1)
    trainer.train()
    assert {f"eval_accuracy_{name}" for name in names} <= trainer.evaluate().keys()


def test_early_stopping_and_the_best_checkpoint(tmp_path):
    trainer = make(
        tmp_path,
        eval_dataset=Rows(8),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1)],
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        max_steps=6,
        learning_rate=0.0,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy_image",
    )
    trainer.train()
    assert trainer.state.global_step == 2  # nothing improves at learning rate 0
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")


def test_model_init_attaches_to_each_new_model(tmp_path):
    trainer = make(tmp_path, model_init=lambda trial=None: tiny_model(("image", "text"), **SINGLE))
    first = trainer.model
    trainer.train()
    assert trainer.model is not first and trainer.disentangled.model is trainer.model
    assert "loss_image" in trainer.state.log_history[0]


# ---- optimisation by group ----


def test_encoder_learning_rate_by_modality(tmp_path):
    trainer = make(tmp_path, encoder_learning_rate={"image": 0.5, "text": 0.25}, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rate_of) == sum(1 for _ in trainer.model.parameters())
    for name, parameter in trainer.model.named_parameters():
        expected = 0.5 if "encoders.image" in name else 0.25 if "encoders.text" in name else 1e-2
        assert rate_of[id(parameter)] == expected
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}


def test_an_unknown_modality_in_encoder_learning_rate(tmp_path):
    trainer = make(tmp_path, encoder_learning_rate={"imag": 0.5})
    with pytest.raises(ValueError, match="unknown modality 'imag': did you mean 'image'"):
        trainer.create_optimizer()


@pytest.mark.parametrize("clip_by_group", [True, False])
def test_clipping(tmp_path, clip_by_group):
    trainer = make(tmp_path, clip_by_group=clip_by_group, max_grad_norm=0.01)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.compute_loss(trainer.model.train(), inputs).backward()
    trainer._clip_grad_norm(trainer.model)
    groups = parameter_groups(trainer.disentangled.partition)
    assert set(groups) == {"image", "text", "fusion"}
    norms = {n: torch.stack([p.grad.norm() for p in ps if p.grad is not None]).norm() for n, ps in groups.items()}
    total = torch.stack(list(norms.values())).norm()
    if clip_by_group:
        for norm in norms.values():
            assert math.isclose(norm, 0.01, rel_tol=1e-3)
    else:
        assert math.isclose(total, 0.01, rel_tol=1e-3)


# ---- what is left on disk ----


def test_a_checkpoint_reloads_to_identical_logits(tmp_path):
    trainer = make(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    for name in ("config.json", "model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"):
        assert (folder / name).is_file()
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["CrossModalForSequenceClassification"]
    trainer.save_model()
    reloaded = put(CrossModalForSequenceClassification.from_pretrained(tmp_path))
    processor = CrossModalProcessor.from_pretrained(tmp_path)
    batch = put(CrossModalCollator(processor)(Rows(4).rows))
    trainer.disentangled.remove()
    with torch.no_grad():
        assert torch.equal(reloaded(**batch).logits, trainer.model.eval()(**batch).logits)


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path):
    whole = make(tmp_path / "whole", save_strategy="steps", save_steps=2, max_steps=5)
    whole.train()
    make(tmp_path / "parts", save_strategy="steps", save_steps=2, max_steps=5, callbacks=[StopAt(2)]).train()
    resumed = make(tmp_path / "parts", save_strategy="steps", save_steps=2, max_steps=5)
    resumed.train(resume_from_checkpoint=True)
    same(weights(whole), weights(resumed))


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


# ---- mistakes ----


def test_a_nan_loss_stops_the_run_and_saves_nothing(tmp_path):
    model = tiny_model(("image", "text"), **SINGLE)

    def loss(outputs, labels, num_items_in_batch=None):
        return outputs["logits"].sum() * torch.nan

    trainer = make(tmp_path, model=model, compute_loss_func=loss, save_strategy="steps", save_steps=1)
    with pytest.raises(FloatingPointError, match="at step 1.*learning_rate"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"train_dataset": []}, "`train_dataset` is empty"),
        (
            {"train_dataset": DatasetDict(train=Dataset.from_dict({"a": [1]}))},
            r"DatasetDict with the splits \['train'\]",
        ),
        ({"method": "dlg"}, "Unknown method 'dlg': did you mean 'dgl'"),
        ({"method": "joint", "multimodal_to_encoders": 0.5}, "`method: joint` passes the whole"),
        ({"alpha": {"video": 1.0}}, "`alpha` names an unknown modality 'video'"),
    ],
)
def test_mistakes(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **kwargs)


def test_plain_training_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="DGLTrainingArguments"):
        DGLTrainer(model=tiny_model(("image", "text")), args=arguments(tmp_path, TrainingArguments))


def test_an_unknown_architecture_says_what_to_declare(tmp_path):
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Declare them, e.g. `modalities="):
        DGLTrainer(model=model, args=arguments(tmp_path))
