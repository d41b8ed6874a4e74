"""Every option of upstream's evaluation: for the fused predictions as upstream, and once for each modality alone.

The reference of a modality is `transformers.Trainer` itself, of a model that is given that modality only.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Trainer

from tests.training.small import MODALITIES, Small, SmallOutput, build, small_model, small_rows
from tests.training.test_trainer import Rows, make

ROWS = 10  # in batches of 4: the last one is not full


class OneInput(Small):
    """The small model as it is with the other input's features left out."""

    kept = ""

    def forward(self, image=None, text=None, labels=None):
        features = [self.image_encoder(image.to(self.dtype)), self.text_encoder(text.to(self.dtype))]
        features = [
            f if name == self.kept else torch.zeros_like(f) for name, f in zip(MODALITIES, features, strict=True)
        ]
        logits = self.head(self.layer_norm(torch.cat(features, -1)))
        return SmallOutput(None if labels is None else self._loss(logits, labels), logits)


def of_upstream(folder, kept, **settings):
    model = small_model()
    if kept:
        model.__class__ = type(f"Only{kept}", (OneInput,), {"kept": kept})
    return build(folder, upstream=True, model=model, **settings)


class Seen:
    """A `compute_metrics` that keeps all it is given."""

    def __init__(self):
        self.calls = []

    def __call__(self, prediction):
        self.calls.append((prediction.predictions, prediction.label_ids, prediction.inputs, prediction.losses))
        return {"calls": len(self.calls)}


class SeenByBatch(Seen):
    """One that adds up batches: mixed batches would make its score another one."""

    def __init__(self):
        super().__init__()
        self.total = 0.0

    def __call__(self, prediction, compute_result):
        super().__call__(prediction)
        assert isinstance(prediction.predictions, torch.Tensor)
        self.total += float(prediction.predictions.double().sum())
        if compute_result:
            total, self.total = self.total, 0.0
            return {"total": total}
        return {}


def same(first, second):
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            same(first[key], second[key])
    elif isinstance(first, (tuple, list)):
        assert len(first) == len(second)
        for pair in zip(first, second, strict=True):
            same(*pair)
    elif first is not None:
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def argmax(logits, labels):
    assert labels is not None and len(labels) == len(logits)
    return logits.argmax(-1)


def two_outputs(logits, labels):
    return logits, logits.argmax(-1)


OPTIONS = {
    "nothing": {},
    "preprocessed": {"preprocess_logits_for_metrics": argmax},
    "preprocessed to two": {"preprocess_logits_for_metrics": two_outputs},
    "inputs and loss": {"include_for_metrics": ["inputs", "loss"]},
    "in batches": {"eval_do_concat_batches": False},
    "in batches, all": {"eval_do_concat_batches": False, "include_for_metrics": ["inputs", "loss"]},
    "to the CPU": {"eval_accumulation_steps": 1},
    "full bf16": {"bf16_full_eval": True},
}


@pytest.mark.parametrize("method", ["joint", "dgl"])
@pytest.mark.parametrize("option", OPTIONS)
def test_each_is_given_what_upstream_would_give(tmp_path, option, method):
    settings = {**OPTIONS[option], "eval_dataset": small_rows(ROWS, seed=1)}
    seen = Seen()
    trainer = build(tmp_path, method=method, compute_metrics=seen, **settings)
    metrics = trainer.evaluate()
    assert [metrics[f"eval_calls{end}"] for end in ("", "_image", "_text")] == [1, 2, 3]
    for kept, call in zip(("", "image", "text"), seen.calls, strict=True):
        expected = Seen()
        wanted = of_upstream(tmp_path, kept, compute_metrics=expected, **settings).evaluate()
        same(call, expected.calls[0])
        if not kept:
            assert metrics["eval_loss"] == wanted["eval_loss"]


@pytest.mark.parametrize("option", ["nothing", "preprocessed", "inputs and loss"])
def test_metrics_that_add_up_batches(tmp_path, option):
    settings = {**OPTIONS[option], "eval_dataset": small_rows(ROWS, seed=1), "batch_eval_metrics": True}
    seen = SeenByBatch()
    trainer = build(tmp_path, method="dgl", compute_metrics=seen, **settings)
    first, second = trainer.evaluate(), trainer.evaluate()
    for key, kept in {"eval_total": "", "eval_total_image": "image", "eval_total_text": "text"}.items():
        reference = of_upstream(tmp_path, kept, compute_metrics=(expected := SeenByBatch()), **settings)
        assert first[key] == second[key] == reference.evaluate()["eval_total"]
        calls = {"": seen.calls[:3], "image": seen.calls[3:6], "text": seen.calls[6:9]}[kept]
        for call, wanted in zip(calls, expected.calls, strict=True):
            same(call, wanted)


def test_a_function_that_is_set_later_and_one_given_by_position(tmp_path):
    rows = small_rows(ROWS)
    trainer = build(tmp_path, method="dgl", eval_dataset=rows)
    assert "eval_accuracy_image" in trainer.evaluate()
    seen = Seen()
    trainer.compute_metrics = seen
    assert trainer.evaluate()["eval_calls_text"] == 3 and trainer.compute_metrics is seen
    trainer.preprocess_logits_for_metrics = argmax
    trainer.evaluate()
    assert seen.calls[-1][0].dtype == np.int64
    trainer.compute_metrics = None
    assert {"eval_loss", "eval_loss_image", "eval_loss_text"} <= trainer.evaluate().keys()
    positional = type(trainer)(
        trainer.model, trainer.args, None, rows, rows, None, None, None, seen, modalities=trainer._declared
    )
    assert positional.evaluate()["eval_calls"] == len(seen.calls) - 2


def test_our_own_metrics_whatever_is_collected(tmp_path):
    rows = small_rows(ROWS, seed=1)
    expected = build(tmp_path, method="dgl", eval_dataset=rows).evaluate()
    scores = {key: value for key, value in expected.items() if "accuracy" in key or "f1" in key or "gap" in key}
    assert len(scores) == 10
    for option in ({"batch_eval_metrics": True}, {"eval_do_concat_batches": False}, {"eval_accumulation_steps": 2}):
        found = build(tmp_path, method="dgl", eval_dataset=rows, **option).evaluate()
        assert {key: found[key] for key in scores} == scores
    trainer = build(tmp_path, eval_dataset=rows, preprocess_logits_for_metrics=argmax)
    with pytest.raises(ValueError, match="Pass a `compute_metrics` that goes with your `preprocess_logits"):
        trainer.evaluate()


@pytest.mark.parametrize("option", ["nothing", "preprocessed", "preprocessed to two", "in batches"])
def test_what_predict_returns(tmp_path, option):
    rows, settings = small_rows(ROWS, seed=1), OPTIONS[option]
    upstream = of_upstream(tmp_path, "", **settings)
    expected = upstream.predict(rows)
    joint = build(tmp_path, method="joint", compute_metrics=Seen(), **settings)
    found = joint.predict(rows)
    same(found.predictions, expected.predictions)
    same(found.label_ids, expected.label_ids)
    image = of_upstream(tmp_path, "image", **settings).predict(rows).predictions
    for each in (
        build(tmp_path, method="dgl", compute_metrics=Seen(), **settings).predict(rows).predictions,
        joint.predict_each_modality(rows).predictions,
    ):
        if option == "in batches":
            each = {name: [batch[name] for batch in each] for name in each[0]}
        same(each["logits"], expected.predictions)
        same(each["image"], image)
    batch = joint.data_collator(rows[:4])
    ours, theirs = (trainer.prediction_step(trainer.model, batch, False) for trainer in (joint, upstream))
    for first, second in zip(ours, theirs, strict=True):
        assert torch.equal(first, second)


def test_a_subclass_that_predicts_in_its_own_way(tmp_path):
    class Own(type(build(tmp_path))):
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            return None, torch.ones(len(inputs["labels"]), 2), inputs["labels"]

    seen = Seen()
    assert build(tmp_path, trainer=Own, compute_metrics=seen, eval_dataset=small_rows(6)).evaluate()["eval_calls"] == 1
    np.testing.assert_array_equal(seen.calls[0][0], np.ones((6, 2)))
    assert issubclass(Own, Trainer)


def test_inputs_of_a_model_whose_inputs_are_grouped(tmp_path):
    """Rows that lack a modality are left out of what that modality is given: labels, inputs and losses, too."""
    data = Rows(6)
    for row in data.rows[:3]:
        row["image"] = None
    seen = Seen()
    trainer = make(
        tmp_path,
        eval_dataset=data,
        compute_metrics=seen,
        include_for_metrics=["inputs", "loss"],
        per_device_eval_batch_size=4,
    )
    trainer.evaluate()
    for (predictions, labels, inputs, losses), rows in zip(seen.calls, (6, 3, 6), strict=True):
        assert len(predictions) == len(labels) == len(inputs["text"]["input_ids"]) == len(losses) == rows
        assert set(inputs) == {"image", "text"} and "labels" not in inputs
