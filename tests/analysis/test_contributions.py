"""Shapley's axioms, and the scores of subsets against a model's own forward."""

from __future__ import annotations

import doctest
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.dummy import DummyClassifier
from transformers import CONFIG_MAPPING

from hf_dgl.analysis import contributions as contribution
from hf_dgl.analysis.contributions import (
    constant_score,
    contributions,
    contributions_of_two,
    evaluate_contributions,
    shapley,
    subset_scores,
    subsets,
)
from hf_dgl.analysis.robustness import evaluate_robustness
from hf_dgl.models import CrossModalConfig, CrossModalForSequenceClassification
from hf_dgl.models.configuration_cross_modal import FUSION_TYPES
from hf_dgl.recipe.finetune import finetune
from hf_dgl.recipe.recipe import make_recipe
from tests.native_checkpoints import save_checkpoint
from tests.recipes import TINY_ENCODERS, tiny_recipe

quick = settings(deadline=None, max_examples=40)


@st.composite
def games(draw: Any) -> dict[frozenset[str], float]:
    names = ["a", "b", "c", "d"][: draw(st.integers(1, 4))]
    return {subset: draw(st.integers(-100, 100)) / 100 for subset in subsets(names)}


def players(game: Any) -> list[str]:
    return sorted(frozenset().union(*game))


@quick
@given(games())
def test_equal_to_the_mean_over_all_orders(game: Any) -> None:
    names = players(game)
    orders = list(permutations(names))
    for name, value in shapley(game).items():
        gains = []
        for order in orders:
            before = frozenset(order[: order.index(name)])
            gains.append(game[before | {name}] - game[before])
        assert value == pytest.approx(np.mean(gains))


@quick
@given(games())
def test_efficiency(game: Any) -> None:
    assert sum(shapley(game).values()) == pytest.approx(game[frozenset(players(game))] - game[frozenset()], abs=1e-9)


@quick
@given(games())
def test_symmetry(game: Any) -> None:
    names = players(game)
    if len(names) < 2:
        return
    swap = {names[0]: names[1], names[1]: names[0]}
    mirrored = {subset: frozenset(swap.get(name, name) for name in subset) for subset in game}
    even = {subset: (game[subset] + game[mirrored[subset]]) / 2 for subset in game}
    found = shapley(even)
    assert found[names[0]] == pytest.approx(found[names[1]], abs=1e-9)


@quick
@given(games())
def test_a_dummy_contributes_nothing_and_changes_nothing(game: Any) -> None:
    with_dummy = {subset | extra: value for subset, value in game.items() for extra in (set(), {"dummy"})}
    found = shapley(with_dummy)
    assert found.pop("dummy") == pytest.approx(0, abs=1e-9)
    assert found == pytest.approx(shapley(game), abs=1e-9)


@quick
@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_closed_form_of_two(none: int, image: int, text: int, both: int) -> None:
    metrics = {"accuracy": both, "accuracy_image": image, "accuracy_text": text, "f1_image": 7}
    found = contributions_of_two(metrics, "accuracy", none)
    assert found["image"] == pytest.approx((image - none + both - text) / 2)
    assert found["image"] - found["text"] == pytest.approx(image - text)  # the modality gap


def test_a_game_with_holes_and_other_than_two() -> None:
    with pytest.raises(ValueError, match=r"those of \[\['a', 'b'\]\] are missing"):
        shapley({frozenset(): 0, frozenset("a"): 1, frozenset("b"): 1})
    with pytest.raises(ValueError, match=r"two modalities, got \['image'\]"):
        contributions_of_two({"accuracy": 1, "accuracy_image": 1}, "accuracy", 0)


# ---- models --------------------------------------------------------------------------------------------------------


def build(fusion_type: str, *names: str, problem_type: str = "single_label_classification") -> Any:
    torch.manual_seed(0)
    encoders = {}
    for name in names:
        config = dict(TINY_ENCODERS[name])
        encoders[name] = CONFIG_MAPPING[config.pop("model_type")](**config, initializer_range=0.5)
    num_labels = 1 if problem_type == "regression" else 3
    config = CrossModalConfig(
        encoders=encoders, num_labels=num_labels, fusion_type=fusion_type, num_fusion_layers=1, initializer_range=0.5
    )
    config.problem_type = problem_type
    return CrossModalForSequenceClassification(config).eval()


def rows(*names: str, missing: str | None = None) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(10):
        row: dict[str, Any] = {
            "image": torch.randn(3, 16, 16, generator=generator),
            "audio": torch.randn(16, 16, generator=generator),
            "text": torch.randint(200, (5,), generator=generator),
        }
        row = {name: row[name] for name in names}
        made.append({**row, "lacks": missing if index % 3 == 0 else None, "label": index % 3})
    return made


KEYS = {"image": "pixel_values", "audio": "input_values", "text": "input_ids"}


def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {"labels": torch.tensor([row["label"] for row in batch])}
    for name in KEYS:
        if name in batch[0]:
            made[name] = {KEYS[name]: torch.stack([row[name] for row in batch])}
            if any(row["lacks"] == name for row in batch):
                made[name]["present"] = torch.tensor([row["lacks"] != name for row in batch])
    return made


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
@pytest.mark.parametrize("names", [("image", "text"), ("image", "audio", "text")], ids=len)
def test_subsets_of_every_fusion(fusion_type: str, names: tuple[str, ...]) -> None:
    model, data = build(fusion_type, *names), rows(*names)
    found = subset_scores(model, collate, data, batch_size=4)
    assert set(found) == set(subsets(names))
    batch = collate(data)
    labels = batch.pop("labels")
    for subset in subsets(names)[1:]:
        logits = model(**{name: batch[name] for name in subset}).logits
        assert found[subset] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert found[frozenset()] == pytest.approx(0.4)  # four rows of class 0
    shares = contributions(model, collate, data)
    assert list(shares) == list(names)
    assert sum(shares.values()) == pytest.approx(found[frozenset(names)] - 0.4)


def test_rows_that_have_nothing_of_a_subset_are_answered_by_the_constant() -> None:
    model, data = build("concat", "image", "text"), rows("image", "text", missing="text")
    model.classifier.bias.data[2] = 100.0  # so it always says 2; the most frequent class is 0
    found = subset_scores(model, collate, data, batch_size=3)
    assert found[frozenset({"image"})] == pytest.approx(0.3)
    assert found[frozenset({"text"})] == pytest.approx(0.3 + 0.4)  # the rows without text are those of class 0


def test_rows_without_label_do_not_count() -> None:
    model, data = build("sum", "image", "text"), rows("image", "text")
    extra = [{**row, "label": -100} for row in data[:4]]
    assert subset_scores(model, collate, data + extra) == pytest.approx(subset_scores(model, collate, data))


def test_error_that_modalities_take_away() -> None:
    model, data = build("sum", "image", "text", problem_type="regression"), rows("image", "text")
    found = subset_scores(model, lambda batch: {**collate(batch), "labels": collate(batch)["labels"].float()}, data)
    assert found[frozenset()] == pytest.approx(0.7)  # labels 0 1 2 0 1 2 0 1 2 0, whose median is 1


def test_constant_answers() -> None:
    labels = np.random.default_rng(0).integers(4, size=50)
    dummy = DummyClassifier(strategy="most_frequent").fit(labels[:, None], labels)
    assert constant_score(labels, "single_label_classification", 4) == dummy.score(labels[:, None], labels)
    hot = np.array([[1, 0], [1, 1], [0, 0], [1, 0]], dtype=np.float32)
    assert constant_score(hot, "multi_label_classification", 2) == pytest.approx((0.75 + 0.25) / 2)
    assert constant_score(np.array([0.0, 1.0, 5.0]), "regression", 1) == pytest.approx(5 / 3)


def test_a_model_that_cannot_leave_modalities_out() -> None:
    with pytest.raises(ValueError, match="Linear cannot be called with any subset"):
        contributions(torch.nn.Linear(1, 1), collate, [])


def test_a_checkpoint_with_a_fusion_of_its_own_by_the_closed_form(tmp_path: Path) -> None:
    save_checkpoint("flava", tmp_path / "flava")
    values = tiny_recipe(tmp_path / "out", model_name_or_path=str(tmp_path / "flava"), max_steps=1)
    recipe = make_recipe({key: value for key, value in values.items() if key not in ("encoders", "num_fusion_layers")})
    scores = finetune(recipe).metrics["test"]
    found = evaluate_contributions(tmp_path / "out", recipe)
    assert list(found["subsets"]) == ["none", "image", "text", "image+text"]
    assert found["subsets"]["text"] == scores["accuracy_text"] and 0.1 <= found["subsets"]["none"] <= 0.3
    assert sum(found["contributions"].values()) == pytest.approx(scores["accuracy"] - found["subsets"]["none"])
    robust = evaluate_robustness(tmp_path / "out", recipe, missing=[0.0, 1.0], calibration=True)
    assert robust["missing"]["0"] == scores["accuracy"] and 0 <= robust["missing"]["1"] <= 1
    assert set(robust["calibration"]) == {"fused", "image", "text"}


def test_examples() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner()
    for function in (shapley, subsets, contributions_of_two, constant_score):
        for example in finder.find(function, globs={**vars(contribution)}):
            runner.run(example)
    assert runner.summarize().failed == 0 and runner.tries > 4
