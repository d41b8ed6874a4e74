"""OGM-GE against its published equations: by hand, against joint training's gradients, and in the Trainer."""

from __future__ import annotations

import math

import pytest
import torch

from hf_dgl.architectures import modalities_of
from hf_dgl.architectures.attach import disentangle
from hf_dgl.method.baselines.ogm_ge import Modulation, coefficients, true_class_scores
from tests.oracle import Concat, Interleaved, ThreeConcat, TiedEncoders, gradients, make_toy, toy_batch
from tests.tiny import tiny_batch, tiny_model
from tests.training.test_trainer import SINGLE, Rows, StopAt, make, same, weights

pytestmark = pytest.mark.device

# ---- the equations, by hand ----


def test_scores_and_coefficients_by_hand():
    """Probabilities of the true classes .8 and .6 (image), .5 and .2 (text): rho = 1.4 / .7 = 2 and 1 / 2."""
    labels = torch.tensor([0, 1])
    image = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log()
    text = torch.tensor([[0.5, 0.5], [0.8, 0.2]]).log()
    scores = torch.stack([true_class_scores(logits, labels) for logits in (image, text)])
    torch.testing.assert_close(scores, torch.tensor([[1.4, 2.0], [0.7, 2.0]], dtype=torch.float64))
    found = coefficients(scores[:, 0], alpha=0.3)
    torch.testing.assert_close(found, torch.tensor([1 - math.tanh(0.3 * 2), 1.0], dtype=torch.float64))
    torch.testing.assert_close(found[0], torch.tensor(0.4629504), atol=1e-7, rtol=0, check_dtype=False)
    assert coefficients(scores[:, 0].flip(0), alpha=0.3).tolist() == found.flip(0).tolist()


def test_equal_modalities_are_left_alone():
    assert coefficients(torch.tensor([0.5, 0.5]), 0.8).tolist() == [1, 1]  # "rho > 1" in equation 10


def test_three_modalities_go_by_the_weakest():
    expected = [1 - math.tanh(0.1 * 4), 1.0, 1 - math.tanh(0.1 * 1.5)]
    torch.testing.assert_close(coefficients(torch.tensor([0.8, 0.2, 0.3]), 0.1), torch.tensor(expected))


def test_a_modality_that_is_not_there_has_no_say():
    assert coefficients(torch.tensor([0.8, math.nan]), 0.5).tolist() == [1, 1]
    found = coefficients(torch.tensor([0.8, math.nan, 0.4]), 0.5)
    torch.testing.assert_close(found, torch.tensor([1 - math.tanh(1.0), 1.0, 1.0]))


def test_rows_that_do_not_count():
    logits = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9]]).log()
    labels, rows = torch.tensor([0, -100, 1]), torch.tensor([True, True, False])
    torch.testing.assert_close(true_class_scores(logits, labels, rows), torch.tensor([0.8, 1.0]).double())


def test_of_a_linear_head_on_concatenation_the_scores_differ_from_the_papers_by_half_a_bias():
    model = tiny_model(("image", "text"), fusion_type="concat").double().train()
    batch = tiny_batch(("image", "text"))
    batch["image"] = {key: value.double() for key, value in batch["image"].items()}
    head = model.classifier
    torch.nn.init.normal_(head.bias)
    pooled = []
    model.cross_modal.fusion.register_forward_hook(lambda module, args, out: pooled.append(out))
    with joint(model, modalities_of(model)) as handle:
        Modulation(handle)
        alone = model(**batch).unimodal
    width = pooled[0].shape[-1] // 2
    for half, name in enumerate(("image", "text")):
        part = slice(half * width, (half + 1) * width)
        papers = pooled[0][:, part] @ head.weight[:, part].T + head.bias / 2
        torch.testing.assert_close(alone[name].logits, papers + head.bias / 2)


# ---- gradients: k_m times those of joint training ----


def joint(model, modalities):
    return disentangle(model, modalities, alpha=0.0, multimodal_to_encoders=1.0)


def logits_of(output):
    return {name: one["logits"] for name, one in output["unimodal"].items()}


@pytest.mark.parametrize("toy", [Concat, ThreeConcat, Interleaved, TiedEncoders])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_gradients_are_the_coefficients_times_those_of_joint_training(toy, accumulate):
    """Both from plain autograd and the toy's own unimodal forward: nothing of hf_dgl is in the expectation."""
    model = make_toy(toy)
    batch = toy_batch(model)
    model(**batch)["loss"].backward()
    expected = gradients(model)
    model.zero_grad()
    with torch.no_grad():
        rows = torch.arange(len(batch["labels"]))
        true = {n: model(**batch, only=n)["logits"].softmax(-1)[rows, batch["labels"]].sum() for n in model.modalities}
    weakest = min(true.values())
    factor = {n: 1 - math.tanh(0.5 * s / weakest) if s > weakest else 1.0 for n, s in true.items()}
    assert len({float(value) for value in factor.values()}) > 1
    with joint(model, model.declared()) as handle:
        modulation, owners = Modulation(handle, alpha=0.5, noise=False), handle.partition.owners
        size = len(rows) // accumulate
        for start in range(0, len(rows), size):
            part = {key: value[start : start + size] for key, value in batch.items()}
            output = model(**part)
            (output["loss"] / accumulate).backward()
            modulation.count(logits_of(output), part["labels"])
        modulation.modulate(step=0)
    for name, gradient in gradients(model).items():
        k = factor[next(iter(owners[name]))] if len(owners[name]) == 1 else 1.0
        torch.testing.assert_close(gradient, k * expected[name], rtol=1e-10, atol=1e-12, msg=name)


def test_a_pass_for_the_scores_trains_nothing_and_adds_nothing_to_the_loss():
    model = make_toy(Concat)
    batch = toy_batch(model)
    plain = model(**batch)["loss"]
    with joint(model, model.declared()) as handle:
        Modulation(handle)
        output = model(**batch)
        assert torch.equal(output["loss"], plain)
        assert not any(one["logits"].requires_grad for one in output["unimodal"].values())


def test_noise_has_the_deviation_of_the_gradient_and_reaches_both_encoders_only():
    """Over many draws: mean = the modulated gradient, deviation = that of the whole unmodulated tensor."""
    model = make_toy(Concat)
    batch = toy_batch(model)
    with joint(model, model.declared()) as handle:
        modulation = Modulation(handle, alpha=0.5, noise=True, seed=3)
        output = model(**batch)
        output["loss"].backward()
        before, draws = gradients(model), []
        for step in range(400):
            modulation.count(logits_of(output), batch["labels"])
            modulation.modulate(step)
            draws.append(gradients(model))
            for name, parameter in model.named_parameters():
                parameter.grad = before[name].clone()
        factors = modulation.logs()
        owners = handle.partition.owners
    for name, gradient in before.items():
        drawn = torch.stack([draw[name] for draw in draws])
        if not owners[name]:
            assert torch.equal(drawn, gradient.expand_as(drawn))  # the fusion is left alone
            continue
        (modality,) = owners[name]
        centred = drawn - factors[f"ogm_coefficient_{modality}"] * gradient
        assert float(centred.std() / gradient.std()) == pytest.approx(1.0, abs=0.05), name
        assert float(centred.mean().abs() / gradient.std()) < 0.05, name
        assert not torch.equal(drawn[0], drawn[1])


def test_the_same_seed_and_step_draw_the_same_noise():
    found = []
    for seed, step in [(1, 5), (1, 5), (2, 5), (1, 6)]:
        model = make_toy(Concat)
        with joint(model, model.declared()) as handle:
            modulation, batch = Modulation(handle, seed=seed), toy_batch(model)
            output = model(**batch)
            output["loss"].backward()
            modulation.count(logits_of(output), batch["labels"])
            modulation.modulate(step)
        found.append(torch.cat([gradient.flatten() for gradient in gradients(model).values()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2]) and not torch.equal(found[0], found[3])


def test_a_loss_scaler_scales_the_modulated_gradient_and_its_noise():
    """So it does not matter whether gradients are unscaled before or after (the scale is a power of two)."""
    found = []
    for scale in (1.0, 1024.0):
        model = make_toy(Concat)
        with joint(model, model.declared()) as handle:
            modulation, batch = Modulation(handle, alpha=0.5), toy_batch(model)
            output = model(**batch)
            (scale * output["loss"]).backward()
            modulation.count(logits_of(output), batch["labels"])
            modulation.modulate(step=0)
        found.append({name: gradient / scale for name, gradient in gradients(model).items()})
    same(*found)


# ---- in the Trainer ----


def gradients_before_the_step(tmp_path, **kwargs):
    """What a run's first optimiser step sees."""
    trainer = make(tmp_path, optim="sgd", max_steps=1, train_dataset=Rows(8), **kwargs)
    found: dict = {}

    def remember(optimizer, *_):
        found.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})

    trainer.create_optimizer().register_step_pre_hook(remember)
    trainer.train()
    return found, trainer


@pytest.mark.parametrize(("accumulation", "max_grad_norm"), [(1, 0.0), (4, 100.0)])
def test_a_step_of_the_trainer_is_modulated_once(tmp_path, max_grad_norm, accumulation):
    settings = {
        "max_grad_norm": max_grad_norm,
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    plain, _ = gradients_before_the_step(tmp_path, method="joint", **settings)
    found, trainer = gradients_before_the_step(tmp_path, method="ogm_ge", ogm_noise=False, ogm_alpha=0.8, **settings)
    log = trainer.state.log_history[0]
    factors = {name: log[f"ogm_coefficient_{name}"] for name in ("image", "text")}
    assert min(factors.values()) < 0.5 and max(factors.values()) == 1.0
    for name, gradient in plain.items():
        factor = next((k for modality, k in factors.items() if f"encoders.{modality}." in name), 1.0)
        torch.testing.assert_close(found[name], factor * gradient, rtol=1e-4, atol=1e-8, msg=name)


def test_gradients_are_modulated_before_they_are_clipped(tmp_path):
    found, _ = gradients_before_the_step(tmp_path, method="ogm_ge", max_grad_norm=0.01)
    total = torch.stack([gradient.norm() for gradient in found.values()]).norm()
    assert float(total) == pytest.approx(0.01, rel=1e-3)  # noise included


@pytest.mark.parametrize(("start", "end", "steps"), [(1.0, None, 2), (0.5, 1.5, 2)])
def test_the_epochs_that_are_modulated(tmp_path, start, end, steps):
    """Two steps per epoch, two epochs."""
    settings = {"method": "ogm_ge", "ogm_start_epoch": start, "ogm_end_epoch": end}
    trainer = make(tmp_path, train_dataset=Rows(16), max_steps=4, **settings)
    trainer.train()
    assert sum("ogm_coefficient_image" in log for log in trainer.state.log_history) == steps


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path):
    settings = {"method": "ogm_ge", "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = make(tmp_path / "whole", **settings)
    whole.train()
    make(tmp_path / "parts", callbacks=[StopAt(2)], **settings).train()
    resumed = make(tmp_path / "parts", **settings)
    resumed.train(resume_from_checkpoint=True)
    same(weights(whole), weights(resumed))


def test_bf16(tmp_path):
    trainer = make(tmp_path, method="ogm_ge", bf16=True)
    trainer.train()
    assert all(value.isfinite().all() for value in weights(trainer).values())
    assert 0 < trainer.state.log_history[0]["ogm_coefficient_image"] <= 1


def test_rows_without_a_modality_do_not_count_for_it(tmp_path):
    dataset = Rows(8)
    for row in dataset.rows[:4]:
        row["image"] = None
    trainer = make(tmp_path, method="ogm_ge", train_dataset=dataset, ogm_noise=False)
    inputs = trainer._prepare_inputs(trainer.data_collator(dataset.rows))
    trainer.compute_loss(trainer.model.train(), inputs)
    assert trainer.modulation._scores[:, 1].tolist() == [4, 8]


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification", None])
def test_it_is_for_classes_only(tmp_path, problem_type):
    model = tiny_model(("image", "text"), problem_type=problem_type)
    with pytest.raises(ValueError, match="probabilities of the true class.*got " + repr(problem_type)):
        make(tmp_path, model=model, method="ogm_ge")


def test_alpha_below_zero(tmp_path):
    with pytest.raises(ValueError, match="ogm_alpha: expected a number from 0 to 1000, got -1"):
        make(tmp_path, model=tiny_model(("image", "text"), **SINGLE), method="ogm_ge", ogm_alpha=-1.0)
