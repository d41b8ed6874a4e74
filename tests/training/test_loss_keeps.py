"""Losses that keep something, begin to do so later, or read what hooks have kept: in a Trainer and in a loop."""

from __future__ import annotations

import functools
import logging

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import default_collate
from transformers import BatchFeature, default_data_collator

from hf_dgl import DGLTrainer, disentangle
from tests.training.small import MODALITIES, Small, assert_same, build, small_model, small_rows, weights

LATE = 2  # steps without


class WithOptions(Small):
    """Takes whatever it is given, as many forwards do: upstream then believes that it reads `num_items_in_batch`."""

    def forward(self, image=None, text=None, labels=None, **kwargs):
        return super().forward(image, text, labels)


def make(folder, compute, model=None, method="dgl", **settings):
    cls = type("Own", (DGLTrainer,), {"compute_loss": compute})
    model = small_model() if model is None else model
    return build(folder, trainer=cls, model=model, method=method, **settings)


def with_options():
    plain = small_model()
    model = WithOptions(plain.config)
    model.load_state_dict(plain.state_dict())
    return model


def queue_after_warmup(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    outputs = model(**inputs)
    if self.state.global_step >= LATE:
        self.queue.append(outputs.logits.detach())
    return outputs.loss


def penalty_after_warmup(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    loss = model(**inputs).loss
    if self.state.global_step >= LATE:
        loss = loss + sum(parameter.square().sum() for parameter in model.parameters())
    return loss


@pytest.mark.parametrize(
    ("compute", "message"),
    [(queue_after_warmup, r"changes queue \(its size\)\."), (penalty_after_warmup, "reads 'head.*' beside")],
    ids=["queue", "penalty"],
)
def test_what_begins_later_is_seen_later(compute, message, tmp_path):
    trainer = make(tmp_path, compute, max_steps=8)
    trainer.queue = []
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert LATE <= trainer.state.global_step <= LATE + 1


@pytest.mark.parametrize("keeps", [lambda features: features, torch.Tensor.detach], ids=["graph", "values"])
def test_what_a_hook_keeps_is_of_the_last_pass(keeps, tmp_path):
    kept = {}
    model = small_model()
    model.layer_norm.register_forward_hook(lambda module, args, output: kept.update(features=keeps(output)))

    def compute(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**inputs).loss * (1 + kept["features"].square().mean())

    with pytest.raises(ValueError, match=r"While the model runs, kept\['features'\] changes.*hook"):
        make(tmp_path, compute, model).train()


def test_a_hook_may_keep_what_it_sees_in_the_multimodal_pass(tmp_path):
    kept = []
    model = small_model()

    def note(module, args, output):
        if model.training and trainer.current_pass == "multimodal":
            kept.append(float(output.detach().abs().mean()))

    def compute(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = model(**inputs).loss
        return loss * (1 + kept[-1])

    model.layer_norm.register_forward_hook(note)
    trainer = make(tmp_path, compute, model, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2 and trainer.current_pass == "multimodal"
    assert len(kept) == 1 + 2  # the trial that reads the graph, and each step


@pytest.mark.parametrize("method", ["joint", "dgl"])
def test_a_trial_of_the_loss_leaves_no_trace_in_what_it_keeps(method, tmp_path):
    def count(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.current_pass == "multimodal":
            self.calls += 1
        return model(**inputs).loss

    trainer = make(tmp_path, count, with_options(), method, max_steps=2, gradient_accumulation_steps=3)
    trainer.calls = 0
    trainer.train()
    assert trainer.calls == 2 * 3


def needs_gradients(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    image = inputs["image"].requires_grad_()
    outputs = model(**inputs)
    (gradient,) = torch.autograd.grad(outputs.logits.sum(), image, create_graph=True)
    return outputs.loss + gradient.square().mean()


def counts(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    self.calls = getattr(self, "calls", 0) + 1
    return model(**inputs).loss


@pytest.mark.parametrize(("compute", "message"), [(needs_gradients, "needs gradients"), (counts, "changes calls")])
def test_where_no_trial_can_be_it_is_to_be_said_how_the_loss_counts(compute, message, tmp_path):
    settings = {"max_steps": 1, "gradient_accumulation_steps": 2, "method": "joint"}
    with pytest.raises(ValueError, match=f"`compute_loss` {message}.*loss_is_scaled_for_ga = False"):
        make(tmp_path, compute, with_options(), **settings).train()
    trainer = make(tmp_path, compute, with_options(), **settings)
    trainer.loss_is_scaled_for_ga = False
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("guarded", [False, True])
def test_an_evaluation_tells_of_what_changes_in_each_run(guarded, tmp_path, caplog):
    def counts_in_evaluation(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not guarded or self.current_pass == "multimodal":
            self.evaluated = getattr(self, "evaluated", 0) + 1
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    trainer = make(tmp_path, counts_in_evaluation, method="joint", eval_dataset=small_rows(4))
    with caplog.at_level(logging.WARNING, logger="hf_dgl"):
        trainer.evaluate()
    told = [record.message for record in caplog.records if "computes the loss changes evaluated." in record.message]
    assert (trainer.evaluated, len(told)) == ((1, 0) if guarded else (3, 1))


def test_a_batch_is_of_the_class_that_the_collator_gives(tmp_path):
    """What upstream hands to `compute_loss`, whatever the method: a dictionary with attributes, or a tuple."""

    def compute(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        image, text, labels = inputs if isinstance(inputs, tuple) else (inputs.image, inputs.text, inputs.labels)
        return cross_entropy(model(image=image, text=text).logits, labels)

    for method in ("joint", "dgl"):
        ends = []
        for kind in (BatchFeature, lambda batch: tuple(batch[name] for name in ("image", "text", "labels"))):
            collator = functools.partial(collated, kind)
            trainer = make(tmp_path, compute, method=method, max_steps=2, data_collator=collator)
            trainer.train()
            ends.append(weights(trainer))
        assert_same(*ends)


def collated(kind, rows):
    return kind(default_data_collator(rows))


# ---- one's own loop -----------------------------------------------------------------------------------------------


def weights_of(model):
    return sum(parameter.square().sum() for parameter in model.parameters())


def test_a_criterion_of_ones_own_loop_keeps_to_the_same_rules():
    model = small_model().train()
    batch, queue = default_collate(small_rows(6)), []
    handle = disentangle(model, MODALITIES)
    output = model(**batch)

    def plain(out):
        return cross_entropy(out.logits, batch["labels"])

    assert handle.loss(output, plain).item() == pytest.approx(output.loss.item())
    for criterion, message in [
        (lambda out: plain(out) + weights_of(model), "reads 'head.*' beside the output"),
        (lambda out: plain(output), "reads 'head.*' beside the output"),
        (lambda out: (queue.append(out), plain(out))[1], r"changes queue \(its size\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            handle.loss(model(**batch), criterion)


def test_joint_training_in_ones_own_loop_takes_any_criterion():
    model = small_model().train()
    handle = disentangle(model, MODALITIES, alpha=0.0, multimodal_to_encoders=1.0)
    output = model(**default_collate(small_rows(6)))
    assert handle.loss(output, lambda out: out.loss + weights_of(model)).requires_grad


@pytest.mark.parametrize("guarded", [False, True])
def test_a_forward_that_keeps_something_beside_buffers_is_told(guarded, caplog):
    """Transformers' `model.loss_function` may be any function or object."""
    rows = []

    def loss_function(logits, labels):
        if not guarded or handle.running_pass == "multimodal":
            rows.append(logits.detach())
        return cross_entropy(logits, labels)

    model = small_model().train()
    model._loss = loss_function
    handle = disentangle(model, MODALITIES)
    with caplog.at_level(logging.WARNING, logger="hf_dgl"):
        for _ in range(2):
            model(**default_collate(small_rows(6))).loss.backward()
    told = [record.message for record in caplog.records if "changes _loss.rows (its size)." in record.message]
    assert (len(rows), len(told)) == ((2, 0) if guarded else (1 + 2 * 3, 1))  # the trial that reads the graph, too
