"""What a loss may be: every way that is not exact is an error at the first step, and nothing depends on the cut."""

from __future__ import annotations

import logging
from types import MethodType

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import default_collate

from hf_dgl import DGLTrainer, DGLTrainingArguments
from tests.tiers import each_once, slow_but
from tests.tiny import tiny_batch, tiny_model
from tests.training.test_losses import NAMES, WEIGHTS, Popped, focal, rows_of, summed, to_double

SINGLE = {"problem_type": "single_label_classification"}


def make(folder, cls=DGLTrainer, model=None, num_rows=16, labels=None, func=None, **settings):
    model = tiny_model(NAMES, **SINGLE).double() if model is None else model
    batch = to_double(tiny_batch(NAMES, batch_size=num_rows))
    if labels is not None:
        batch["labels"] = labels
    defaults = {
        "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0, "lr_scheduler_type": "constant", "max_steps": 4,
        "per_device_train_batch_size": num_rows, "train_sampling_strategy": "sequential", "save_strategy": "no",
        "report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_steps": 1,
    }  # fmt: skip
    arguments = DGLTrainingArguments(str(folder), **{**defaults, **settings})
    rows = [rows_of(batch, row) for row in range(num_rows)]
    return cls(model, arguments, default_collate, train_dataset=rows, eval_dataset=rows[:4], compute_loss_func=func)


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def logs(trainer):
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# ---- what is refused ----------------------------------------------------------------------------------------------


def overriding(compute):
    """A trainer whose `compute_loss` this is."""
    return type("Overriding", (DGLTrainer,), {"compute_loss": compute})


def twice(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    first, second = model(**inputs), model(**inputs)  # R-Drop
    return first.loss + (first.logits - second.logits).square().mean()


def never(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    return self.disentangled.model(**inputs).loss  # past what it is given


def penalised(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    return model(**inputs).loss + 0.01 * sum(parameter.square().sum() for parameter in model.parameters())


def of_a_head(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    self.scale = getattr(self, "scale", torch.nn.Parameter(torch.ones(())))
    return cross_entropy(model(**inputs).logits * self.scale, inputs["labels"])


def in_place(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    inputs["labels"] -= 0
    return model(**inputs).loss


def of_its_own_generator(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    self.draw = getattr(self, "draw", torch.Generator().manual_seed(0))
    order = torch.randperm(len(inputs["labels"]), generator=self.draw)
    image = {"pixel_values": inputs["image"]["pixel_values"][order]}
    return model(image=image, text=inputs["text"], labels=inputs["labels"]).loss


class Centre(torch.nn.Module):
    """A centre that moves with the rows, as in centre losses, momentum encoders and queues."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))

    def forward(self, logits):
        self.mean.mul_(0.9).add_(0.1 * logits.detach().mean(0))
        return (logits - self.mean).square().mean()


def of_a_moving_centre(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    self.centre = getattr(self, "centre", None) or Centre()
    outputs = model(**inputs)
    return outputs.loss + self.centre(outputs.logits)


def that_counts(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    self.calls = getattr(self, "calls", 0) + 1
    return model(**inputs).loss * min(1, self.calls / 10)


def that_remembers(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    outputs = model(**inputs)
    self.metrics = getattr(self, "metrics", {"train": {"norm": []}})
    self.metrics["train"]["norm"].append(float(outputs.logits.detach().norm()))
    self.last = outputs.logits.detach()
    return outputs.loss


REFUSED = [
    (twice, "exactly once: it did 2 times"),
    (never, "exactly once: it did 0 times"),
    (penalised, "The loss reads 'classifier.*beside the output of the model.*weight_decay"),
    (of_a_head, "The loss reads 'a tensor that requires gradients' beside the output"),
    (in_place, "writes into a tensor of its inputs"),
    (of_its_own_generator, "other arguments each time"),
    (of_a_moving_centre, r"changes centre\.mean\. It is run once for each pass.*self.current_pass == 'multimodal'"),
    (that_counts, r"changes calls\. It is run once"),
    (that_remembers, r"changes last, metrics\['train'\]\['norm'\] \(its size\)\. It is run once"),
]


@pytest.mark.parametrize(("compute", "message"), REFUSED, ids=[compute.__name__ for compute, _ in REFUSED])
def test_what_cannot_be_exact_is_an_error_at_the_first_step(compute, message, tmp_path):
    before = tiny_model(NAMES, **SINGLE).double()
    trainer = make(tmp_path, overriding(compute), before)
    start = weights(trainer).clone()
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert torch.equal(weights(trainer), start) and trainer.state.global_step == 0
    assert trainer.model is before  # not what stands in for it


@pytest.mark.parametrize("compute", [twice, penalised, of_its_own_generator], ids=lambda compute: compute.__name__)
def test_joint_training_takes_any_loss(compute, tmp_path):
    assert len(logs(make(tmp_path, overriding(compute), method="joint", max_steps=2))) == 2


def test_label_smoothing_of_a_regression_is_refused_at_the_start(tmp_path):
    model = tiny_model(NAMES, num_labels=1, problem_type="regression")
    with pytest.raises(ValueError, match="`label_smoothing_factor: 0.1` smooths.*`regression`: set it to 0"):
        make(tmp_path, model=model, label_smoothing_factor=0.1)


def test_noise_needs_one_table_of_embeddings(tmp_path):
    with pytest.raises(ValueError, match="`neftune_noise_alpha` adds noise.*CrossModal.*encoders have one each"):
        make(tmp_path, neftune_noise_alpha=5.0)


@pytest.mark.parametrize("method", ["dgl", "joint"])
def test_a_removed_handle_trains_nothing(method, tmp_path):
    trainer = make(tmp_path, method=method)
    trainer.disentangled.remove()
    with pytest.raises(ValueError, match="was removed, so its model would be trained jointly"):
        trainer.train()


def test_a_handle_of_another_trainer_trains_nothing(tmp_path):
    trainer, other = make(tmp_path), make(tmp_path)
    trainer.disentangled = other.disentangled
    with pytest.raises(ValueError, match="is attached to another model"):
        trainer.train()


def test_a_loss_function_that_changes_what_it_keeps_is_an_error(tmp_path):
    class Queue:
        def __init__(self):
            self.rows = []

        def __call__(self, outputs, labels, num_items_in_batch=None):
            self.rows.append(outputs["logits"].detach())
            return cross_entropy(outputs["logits"], labels)

        method = __call__

    for func in (Queue(), Queue().method):
        with pytest.raises(ValueError, match=r"changes compute_loss_func\.rows \(its size\)"):
            make(tmp_path, func=func).train()


@pytest.mark.parametrize("method", ["adaptive_dgl", "ogm_ge", "g_blending"])
def test_a_training_step_past_what_the_method_does_is_an_error(method, tmp_path):
    """It would be `joint`, or fixed weights, without a word."""

    class Past(DGLTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = model(**self._prepare_inputs(inputs)).loss
            self.accelerator.backward(loss)
            return loss.detach()

    with pytest.raises(ValueError, match=f"`method: {method}` weighs .*Take `loss = self.compute_loss"):
        make(tmp_path, Past, method=method, eval_strategy="epoch").train()


# ---- what is taken ------------------------------------------------------------------------------------------------


def test_a_function_set_on_the_trainer_is_an_override_too(tmp_path):
    runs = [make(tmp_path, Popped), make(tmp_path)]
    runs[1].compute_loss = MethodType(Popped.compute_loss, runs[1])
    for trainer in runs:
        trainer.train()
    assert torch.equal(*map(weights, runs))


def test_what_a_loss_keeps_may_change_in_the_multimodal_pass(tmp_path):
    """And what it logs is logged once: of all modalities, in training and in evaluation."""

    def kept(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        if self.current_pass == "multimodal":
            self.seen = [*getattr(self, "seen", []), outputs.loss.item()]
        self.log({"seen": outputs.loss.item()})
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    trainer, plain = make(tmp_path, overriding(kept), max_steps=2), make(tmp_path, max_steps=2)
    terms = [entry["loss_multimodal"] for entry in logs(trainer)]
    assert terms == [entry["loss_multimodal"] for entry in logs(plain)] and trainer.seen == pytest.approx(terms)
    trainer.evaluate()
    assert [entry["seen"] for entry in trainer.state.log_history if "seen" in entry] == trainer.seen
    assert len(trainer.seen) == 3 and torch.equal(weights(trainer), weights(plain))
    assert trainer.current_pass == "multimodal"


def test_random_numbers_of_the_loss_are_the_same_in_each_pass(tmp_path):
    """Mixup in `compute_loss`: the labels are permuted as the rows were, and NumPy and Python draw alike."""
    import random
    from queue import SimpleQueue

    import numpy as np

    queue = SimpleQueue()  # what a list would keep is looked at, and refused

    def mixup(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        order, part = torch.randperm(len(labels)), random.random() + np.random.rand()
        pixels = inputs["image"]["pixel_values"]
        inputs["image"]["pixel_values"] = part * pixels + (1 - part) * pixels[order]
        logits = model(**inputs).logits
        queue.put((part, order.tolist(), float(torch.rand(()))))
        return part * cross_entropy(logits, labels) + (1 - part) * cross_entropy(logits, labels[order])

    trainer = make(tmp_path, overriding(mixup), max_steps=2)
    trainer.train()
    seen = [queue.get() for _ in range(queue.qsize())]
    assert len(seen) == 6 and seen[0] == seen[1] == seen[2] != seen[3] == seen[4] == seen[5]


def test_evaluation_asks_the_override_for_each_modality(tmp_path):
    trainer = make(tmp_path, Popped, prediction_loss_only=True)
    metrics = trainer.evaluate()
    batch = default_collate(trainer.eval_dataset)
    labels = batch.pop("labels")
    with torch.no_grad():
        for suffix, kept in [("", NAMES), ("_image", ["image"]), ("_text", ["text"])]:
            logits = trainer.model.eval()(**{name: batch[name] for name in kept}).logits
            expected = float(cross_entropy(logits, labels, weight=WEIGHTS))
            assert metrics[f"eval_loss{suffix}"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("func", slow_but(None, of=[None, summed]))
def test_a_model_that_returns_tuples(func, tmp_path):
    results = []
    for as_dict in (True, False):
        model = tiny_model(NAMES, **SINGLE).double()
        model.config.return_dict = as_dict
        trainer = make(tmp_path, model=model, func=func, eval_strategy="epoch")
        found = logs(trainer)
        assert {"loss_image", "explained_text"} <= set(found[-1])
        scores = trainer.evaluate()
        results.append((weights(trainer), scores["eval_accuracy_image"], scores["eval_accuracy"]))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1:] == results[1][1:]


# ---- nothing depends on how a batch is cut ------------------------------------------------------------------------


def _name(value):
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("method", "func"), each_once(["adaptive_dgl", "dgl"], [summed, None, focal], name=_name))
def test_what_is_logged_does_not_depend_on_the_cut(method, func, tmp_path):
    """The labels are told by the image, so that the weights of `adaptive_dgl` move."""
    labels = torch.arange(16) % 3
    found = []
    for batch_size, parts in [(16, 1), (2, 8)]:
        trainer = make(
            tmp_path, labels=labels, func=func, method=method, per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=parts, max_steps=6, learning_rate=0.1,
        )  # fmt: skip
        found.append((logs(trainer), weights(trainer)))
    (one, first), (other, second) = found
    torch.testing.assert_close(first, second, rtol=0, atol=1e-7)
    for left, right in zip(one, other, strict=True):
        for key in left:
            if key.startswith(("loss_", "explained_", "alpha_")):
                assert left[key] == pytest.approx(right[key], abs=1e-6), key
    terms = one[-1]
    alpha = {name: terms.get(f"alpha_{name}", 1.0) for name in NAMES}
    if method == "dgl":
        total = terms["loss_multimodal"] + sum(alpha[name] * terms[f"loss_{name}"] for name in NAMES)
        assert terms["loss"] == pytest.approx(total, rel=1e-5)


def test_what_is_explained_does_not_depend_on_the_loss(tmp_path):
    """At learning rate 0 nothing but the loss differs."""
    found = []
    for settings in [{}, {"func": focal}, {"label_smoothing_factor": 0.5}, {"cls": Popped}]:
        entry = logs(make(tmp_path, learning_rate=0.0, max_steps=1, **settings))[-1]
        found.append({key: value for key, value in entry.items() if key.startswith("explained_")})
    assert len(found[0]) == 3 and found.count(found[0]) == len(found)


@pytest.mark.parametrize("method", ["dgl", "ogm_ge"])
def test_what_is_explained_does_not_depend_on_logits_being_written_into(method, tmp_path):
    def scaled(outputs, labels):
        return cross_entropy(outputs.logits * 50, labels)

    def in_place(outputs, labels):
        return cross_entropy(outputs.logits.mul_(50), labels)

    found = []
    for loss in (scaled, in_place):

        def compute(self, model, inputs, return_outputs=False, num_items_in_batch=None, loss=loss):
            labels = inputs.pop("labels")
            return loss(model(**inputs), labels)

        trainer = make(tmp_path, overriding(compute), method=method, max_steps=2, learning_rate=0.01)
        trainer.train()
        found.append((weights(trainer), trainer.explained.state_dict()["running"]))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def test_terms_are_means_over_rows_in_uneven_batches(tmp_path):
    """10 rows in batches of 4, 4 and 2: the mean over rows, not over batches."""
    whole, cut = (
        logs(make(tmp_path, num_rows=10, learning_rate=0.0, max_steps=1, **settings))[0]
        for settings in [{}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}]
    )
    for name in ("multimodal", *NAMES):
        assert whole[f"loss_{name}"] == pytest.approx(cut[f"loss_{name}"], abs=1e-9)


def test_labels_that_say_nothing_of_the_problem_type_are_told_once(tmp_path, caplog):
    """Soft labels for a loss of the user's own: nothing is explained, and nothing fails."""

    def soft(outputs, labels, num_items_in_batch=None):
        return cross_entropy(outputs["logits"], labels.softmax(-1))

    labels = torch.randn(16, 3, dtype=torch.float64)
    with caplog.at_level(logging.WARNING, logger="hf_dgl"):
        found = logs(make(tmp_path, labels=labels, func=soft, max_steps=2))
    assert "explained_image" not in found[-1] and "loss_image" in found[-1]
    with pytest.raises(ValueError, match="What 'multimodal' explains cannot be measured: labels are class ids"):
        make(tmp_path, labels=labels, func=soft, method="adaptive_dgl").train()


# ---- fp16 ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def a_scaler(monkeypatch):
    """What fp16 has on a GPU: a scaler that skips steps whose gradients are not finite."""
    monkeypatch.setattr(DGLTrainer, "_scaler_skips", True)

    def put_on(trainer):
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        return trainer

    return put_on


def infinite_in(*steps):
    """A loss that is infinite in these steps (of three passes each)."""
    calls = iter(range(10_000))

    def loss(outputs, labels, num_items_in_batch=None):
        value = cross_entropy(outputs["logits"], labels)
        return value * torch.inf if next(calls) // 3 in steps else value

    return loss


@pytest.mark.parametrize("logging_steps", slow_but(1, of=[1, 4]))
def test_one_infinite_loss_that_the_scaler_skips_does_not_end_a_run(logging_steps, a_scaler, tmp_path):
    trainer = a_scaler(make(tmp_path, func=infinite_in(1), logging_steps=logging_steps, save_strategy="epoch"))
    trainer.train()
    assert trainer.state.global_step == 4 and weights(trainer).isfinite().all()
    found = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(found) == 4 // logging_steps
    finite = [value for entry in found for key, value in entry.items() if key.startswith(("loss_", "explained_"))]
    assert finite and all(abs(value) < 10 for value in finite)


def test_a_loss_that_is_never_finite_ends_the_run(a_scaler, tmp_path):
    trainer = a_scaler(make(tmp_path, func=infinite_in(*range(3, 100)), max_steps=50))
    with pytest.raises(FloatingPointError, match="many batches in a row is not finite at step 13"):
        trainer.train()


def test_without_a_scaler_an_infinite_loss_ends_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match="at step 2"):
        make(tmp_path, func=infinite_in(1)).train()
