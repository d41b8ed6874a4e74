"""G-Blending against its published formula on toy numbers, and in the Trainer."""

from __future__ import annotations

import math

import pytest
import torch

from hf_dgl.method.baselines.g_blending import Blending, blend_weights
from hf_dgl.method.passes import MULTIMODAL
from tests.tiers import slow_but
from tests.training.small import build, small_rows
from tests.training.test_trainer import Rows, StopAt, make, same, weights

BEFORE = {MULTIMODAL: (2.0, 2.0), "image": (2.0, 2.1), "text": (2.0, 2.0)}
NOW = {MULTIMODAL: (0.5, 1.0), "image": (1.3, 1.6), "text": (1.2, 1.8)}
# G = 1.0, 0.5, 0.2;  O = 0.5, 0.2, 0.6;  G / O^2 = 4, 12.5, 0.5555...
BY_HAND = {MULTIMODAL: 4 / 17.0556, "image": 12.5 / 17.0556, "text": 0.5556 / 17.0556}


def test_weights_by_hand():
    found = blend_weights(BEFORE, NOW)
    assert found == pytest.approx(BY_HAND, rel=1e-4) and sum(found.values()) == pytest.approx(1)


def test_what_gained_nothing_gets_no_weight_and_if_nothing_gained_there_are_none():
    worse = NOW | {"image": (1.3, 2.2)}
    assert blend_weights(BEFORE, worse) == pytest.approx(
        {MULTIMODAL: 4 / 4.5556, "image": 0, "text": 0.5556 / 4.5556}, rel=1e-4
    )
    assert blend_weights(BEFORE, dict.fromkeys(BEFORE, (1.0, 2.5))) is None


def test_no_overfitting_at_all_is_no_division_by_zero():
    found = blend_weights({"image": (2.0, 2.0), "text": (2.0, 2.0)}, {"image": (1.0, 1.0), "text": (1.0, 1.5)})
    assert found == pytest.approx({"image": 1.0, "text": 0.0}, abs=1e-6) and math.isfinite(found["image"])


def step(blending, losses, rows=2):
    """`rows` equal steps; returns the loss of the last."""
    for _ in range(rows):
        terms = {name: torch.tensor(loss, requires_grad=True) for name, loss in losses.items()}
        total = blending.total(terms)
        blending.count(terms)
    return total.detach()


def test_a_run_by_hand():
    """Evaluation at step 0 (nothing trained: the gap is 0), then two super-epochs."""
    blending = Blending(["image", "text"])
    blending.end_of_super_epoch(dict.fromkeys(blending.names, 2.0))
    assert blending.weights == pytest.approx(dict.fromkeys(blending.names, 1 / 3))
    assert float(step(blending, {MULTIMODAL: 0.6, "image": 1.3, "text": 1.2})) == pytest.approx(3.1 / 3)
    blending.end_of_super_epoch({MULTIMODAL: 1.0, "image": 1.6, "text": 1.8})
    # G = 1, .4, .2;  O = .4, .3, .6;  G / O^2 = 6.25, 4.4444, .5556
    assert list(blending.weights.values()) == pytest.approx([6.25 / 11.25, 4.4444 / 11.25, 0.5556 / 11.25], rel=1e-4)
    total = step(blending, {MULTIMODAL: 0.4, "text": 1.0})  # no image in the batch
    assert float(total) == pytest.approx(0.4 * 6.25 / 11.25 + 0.5556 / 11.25, rel=1e-4)
    before = dict(blending.weights)
    blending.end_of_super_epoch({MULTIMODAL: 1.2, "image": 1.7, "text": 2.0})  # worse everywhere
    assert blending.weights == before


def test_the_state_goes_on():
    one = Blending(["image", "text"])
    one.end_of_super_epoch(dict.fromkeys(one.names, 2.0))
    step(one, {MULTIMODAL: 0.6, "image": 1.3, "text": 1.2})
    other = Blending(["image", "text"])
    other.load_state_dict(one.state_dict())
    for blending in (one, other):
        step(blending, {MULTIMODAL: 0.4, "image": 1.0, "text": 1.1}, rows=1)
        blending.end_of_super_epoch({MULTIMODAL: 1.0, "image": 1.6, "text": 1.8})
    assert one.weights == other.weights and one.weights[MULTIMODAL] != pytest.approx(1 / 3)


# ---- in the Trainer ----


def test_the_trainer_weighs_by_its_evaluations(tmp_path):
    """The weights that are logged follow from the losses that are logged."""
    trainer = make(
        tmp_path,
        method="g_blending",
        train_dataset=Rows(16),
        eval_dataset=Rows(8, seed=1),
        eval_strategy="steps",
        eval_steps=2,
        eval_on_start=True,
        logging_steps=2,
        max_steps=6,
    )
    trainer.train()
    trained = [log for log in trainer.state.log_history if "loss" in log]
    evaluated = [log for log in trainer.state.log_history if "eval_loss" in log]
    names = trainer.blending.names
    points = []
    for number, log in enumerate(evaluated[:4]):
        new = {name: log["eval_loss" if name == MULTIMODAL else f"eval_loss_{name}"] for name in names}
        points.append({n: (trained[number - 1][f"loss_{n}"] if number else new[n], new[n]) for n in names})
    expected = dict.fromkeys(names, 1 / 3)
    for number, log in enumerate(trained):
        if number:
            expected = blend_weights(points[number - 1], points[number]) or expected
        assert {name: log[f"weight_{name}"] for name in names} == pytest.approx(expected, rel=1e-3)
        assert log["loss"] == pytest.approx(sum(expected[name] * log[f"loss_{name}"] for name in names), rel=1e-3)
    assert expected != dict.fromkeys(names, 1 / 3)


@pytest.mark.parametrize("eval_steps", slow_but(3, of=[2, 3]), ids=["killed at an evaluation", "between two"])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path, eval_steps):
    settings = {
        "method": "g_blending",
        "eval_dataset": Rows(8, seed=1),
        "eval_strategy": "steps",
        "eval_steps": eval_steps,
        "save_strategy": "steps",
        "save_steps": 4,
        "max_steps": 7,
    }
    whole = make(tmp_path / "whole", **settings)
    whole.train()
    make(tmp_path / "parts", callbacks=[StopAt(4)], **settings).train()
    resumed = make(tmp_path / "parts", **settings)
    resumed.train(resume_from_checkpoint=True)
    same(weights(whole), weights(resumed))
    assert whole.blending.weights == resumed.blending.weights != dict.fromkeys(whole.blending.names, 1 / 3)


def test_it_needs_evaluations(tmp_path):
    trainer = make(tmp_path, method="g_blending", eval_dataset=Rows(8))
    with pytest.raises(ValueError, match="`method: g_blending` weighs the losses.*eval_strategy: epoch"):
        trainer.train()


def test_it_needs_one_validation_set_with_labels(tmp_path):
    """Else its weights would stay equal, without a word."""
    settings = {"method": "g_blending", "eval_strategy": "steps", "eval_steps": 1}
    two = {"a": small_rows(4), "b": small_rows(4)}
    with pytest.raises(ValueError, match=r"one validation set, got \['a', 'b'\]: pass `eval_dataset="):
        build(tmp_path, eval_dataset=two, **settings).train()
    unlabelled = [{"image": row["image"], "text": row["text"]} for row in small_rows(4)]
    with pytest.raises(ValueError, match=r"there are none of \['eval_loss', 'eval_loss_image', 'eval_loss_text'\]"):
        build(tmp_path, eval_dataset=unlabelled, **settings).train()
