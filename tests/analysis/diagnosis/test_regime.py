"""The regime from predictions, and from made-up numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_dgl.analysis.diagnosis.regime import REGIMES, Explained, calibrated_losses, find_regime

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
ROWS = 400


def explained(alone: tuple[float, float], late: float, joint: float, missed: tuple[float, float]) -> Explained:
    return Explained(
        dict(zip("ab", alone, strict=True)), late, joint, dict(zip("ab", missed, strict=True))
    )  # fmt: skip


@pytest.mark.parametrize(
    ("regime", "numbers", "useless"),
    [
        ("redundant", explained((0.5, 0.4), 0.7, 0.68, (0.9, 0.5)), []),
        ("redundant", explained((0.5, 0.4), 0.7, 0.3, (0.3, 0.1)), []),  # joint training is behind
        ("redundant", explained((0.5, 0.4), 0.7, 0.75, (0.9, 0.5)), []),  # hardly ahead
        ("mixed", explained((0.5, 0.0), 0.5, 0.95, (1.5, 0.5)), []),
        ("mixed", explained((0.3, 0.3), 0.5, 0.7, (1.5, 0.5)), []),
        ("synergy", explained((0.0, 0.01), 0.01, 0.9, (1.0, 1.0)), []),
        ("useless", explained((0.6, 0.0), 0.6, 0.58, (0.9, 0.01)), ["b"]),
        ("redundant", explained((0.6, 0.0), 0.6, 0.58, (0.9, 0.2)), []),  # it is used for something
        ("unclear", explained((0.01, 0.0), 0.02, 0.0, (0.0, 0.0)), ["a", "b"]),
        ("unclear", explained((-0.2, 0.0), -0.1, -0.3, (0.0, 0.0)), ["a", "b"]),
    ],
)
def test_made_up_numbers(regime: str, numbers: Explained, useless: list[str]) -> None:
    assert numbers.regime() == regime and regime in REGIMES
    if regime != "unclear":
        assert numbers.useless() == useless


def sees(truth: np.ndarray, classes: int, scale: float = 4.0) -> np.ndarray:
    """Logits that tell a class, too sure of themselves."""
    return scale * np.eye(classes)[truth]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def guess(rng: np.random.Generator, label: np.ndarray, share: float, classes: int) -> np.ndarray:
    return np.where(rng.random(len(label)) < share, rng.integers(classes, size=len(label)), label)


def test_noisy_views_of_one_class_are_redundant_though_each_explains_half(rng: np.random.Generator) -> None:
    label = rng.integers(4, size=ROWS)
    views = {name: sees(guess(rng, label, 0.4, 4), 4, 9.0) for name in "ab"}
    joint = views["a"] + views["b"]
    found = find_regime(views, joint, {"a": views["b"], "b": views["a"]}, label, SINGLE)
    assert found.name == "redundant" and found.votes["redundant"] > 0.95
    assert found.explained.late > max(found.explained.alone.values()) + 0.1
    for name, (low, high) in found.intervals.items():
        value = found.explained.alone.get(name, found.explained.late if name == "late fusion" else None)
        assert low < (found.explained.joint if value is None else value) < high


def test_parity_is_synergy(rng: np.random.Generator) -> None:
    a, b = rng.integers(2, size=(2, ROWS))
    blind = {"a": rng.normal(size=(ROWS, 2)), "b": rng.normal(size=(ROWS, 2))}
    shuffled = {name: sees(rng.integers(2, size=ROWS), 2) for name in "ab"}
    found = find_regime(blind, sees(a ^ b, 2), shuffled, a ^ b, SINGLE)
    assert found.name == "synergy" and found.dominant is None


def test_a_modality_that_is_not_missed_does_not_dominate(rng: np.random.Generator) -> None:
    label = rng.integers(3, size=ROWS)
    view, blind = sees(label, 3), np.zeros((ROWS, 3))
    shuffled = {"a": sees(rng.permutation(label), 3), "b": view}
    found = find_regime({"a": view, "b": blind}, view, shuffled, label, SINGLE)
    assert found.name == "useless" and found.explained.useless() == ["b"] and found.dominant == "a"


def test_quantities_and_label_sets(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, ROWS))
    product, shuffled = a * b, {"a": rng.normal(size=ROWS), "b": rng.normal(size=ROWS)}
    assert find_regime({"a": a, "b": b}, product, shuffled, product, REGRESSION).name == "synergy"
    total = 100 + 7 * (a + b)
    added = find_regime(
        {"a": 100 + 7 * a, "b": 100 + 7 * b}, total, {"a": 100 + 7 * b, "b": 100 + 7 * a}, total, REGRESSION
    )
    assert added.name == "redundant" and added.explained.late > 0.98  # units do not matter
    sets = (np.stack([a > 0, b > 0], axis=1)).astype(np.float32)
    views = {"a": np.stack([5 * np.sign(a), 0 * a], axis=1), "b": np.stack([0 * b, 5 * np.sign(b)], axis=1)}
    swapped = {"a": views["b"], "b": views["a"]}
    found = find_regime(views, views["a"] + views["b"], swapped, sets, MULTI)
    assert found.name == "redundant" and found.explained.alone["a"] == pytest.approx(0.5, abs=0.1)


def test_rows_that_lack_a_modality_or_a_label(rng: np.random.Generator) -> None:
    label = rng.integers(3, size=ROWS)
    views = {"a": sees(label, 3), "b": sees(label, 3)}
    views["b"][::2] = np.nan
    joint, swapped = sees(label, 3), {"a": views["b"], "b": views["a"]}
    with_gaps = label.copy()
    with_gaps[:50] = -100
    found = find_regime(views, joint, swapped, with_gaps, SINGLE)
    assert found.num_rows == ROWS - 50 and 0.3 < found.explained.alone["b"] < 0.6
    with pytest.raises(ValueError, match="at least 10 validation rows"):
        find_regime(views, joint, swapped, np.where(np.arange(ROWS) < 5, label, -100), SINGLE)


def test_calibration_mends_what_is_too_sure_but_invents_nothing(rng: np.random.Generator) -> None:
    label = rng.integers(2, size=ROWS)
    told = guess(rng, label, 0.5, 2)
    loss, sure = (calibrated_losses([sees(told, 2, scale)], label, SINGLE)[0].mean() for scale in (1.0, 30.0))
    share = np.mean(told == label)
    assert loss == pytest.approx(-share * math.log(share) - (1 - share) * math.log(1 - share), abs=0.02)
    assert sure == pytest.approx(loss, abs=0.02)
    blind = calibrated_losses([rng.normal(size=(ROWS, 2))], label, SINGLE)[0].mean()
    assert blind > math.log(2) - 0.005  # held out: noise explains nothing
    assert calibrated_losses([], label, SINGLE)[0].mean() == pytest.approx(math.log(2), abs=0.01)
