import logging
from collections import Counter
from decimal import Decimal

import datasets
import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_dgl.data.splits import add_missing_splits, limit_rows, pick_splits, stratified_sample


def table(num_rows, num_classes=2):
    return Dataset.from_dict({"text": [str(i) for i in range(num_rows)], "label": np.arange(num_rows) % num_classes})


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60), st.integers(0, 60), st.integers(0, 3))
def test_stratified_sample_keeps_shares_and_leaves_one_of_each(keys, num_rows, seed):
    drawn = stratified_sample(keys, num_rows, seed)
    assert len(set(drawn)) == len(drawn) <= num_rows
    assert drawn.tolist() == sorted(drawn) == stratified_sample(keys, num_rows, seed).tolist()
    total, taken = Counter(keys), Counter(keys[i] for i in drawn)
    reachable = sum(total.values()) - len(total)
    assert len(drawn) == min(num_rows, reachable)
    for key, count in total.items():
        share = len(drawn) * (count - 1) / max(reachable, 1)
        assert abs(taken[key] - share) <= 1
        assert taken[key] < count


def test_missing_splits_are_taken_from_training_and_said(caplog):
    logging.getLogger("hf_dgl.data.splits").propagate = True
    with caplog.at_level("WARNING"):
        splits = add_missing_splits({"train": table(100)}, wants_test=True, seed=0)
    assert {name: len(part) for name, part in splits.items()} == {"train": 70, "validation": 10, "test": 20}
    rows = [text for part in splits.values() for text in part["text"]]
    assert len(rows) == len(set(rows)) == 100
    assert Counter(splits["test"]["label"][:]) == {0: 10, 1: 10}
    assert "no validation split: 10 of its 100 training rows were set aside" in caplog.text
    assert "stratified by label, seed 0" in caplog.text


def test_splits_that_are_there_stay():
    source = {"train": table(50), "test": table(7)}
    splits = add_missing_splits(source, wants_test=True, seed=0)
    assert len(splits["test"]) == 7
    assert len(splits["train"]) + len(splits["validation"]) == 50
    assert "test" not in add_missing_splits({"train": table(50)}, wants_test=False, seed=0)


def test_same_seed_same_split():
    first, again, other = (
        add_missing_splits({"train": table(60)}, True, seed)["test"]["text"][:] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    "labels",
    [
        [0.1 * i for i in range(40)],
        [[i % 2, 1] for i in range(40)],
        ["a", "b"] * 20,
        [51_000 + i for i in range(40)],  # prices: no two rows are alike
        [Decimal(f"{i}.50") for i in range(40)],
        [f"{i}.5" for i in range(39)] + ["N/A"],
    ],
)
def test_every_kind_of_label_can_be_split(labels):
    splits = add_missing_splits({"train": Dataset.from_dict({"label": labels})}, True, 0)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [28, 4, 8]


def test_too_few_rows_to_split():
    with pytest.raises(ValueError, match="has 2 rows, too few to take a test split.*test_split=<name>"):
        add_missing_splits({"train": table(2)}, wants_test=True, seed=0)


def test_split_names():
    source = {"training": table(3), "dev": table(2)}
    picked = pick_splits(source, "x", "training", "validation", "test")
    assert picked == {"train": source["training"], "validation": source["dev"]}
    with pytest.raises(
        ValueError, match=r"no split 'train': did you mean 'training'\?.*\['training', 'dev'\].*train_split"
    ):
        pick_splits(source, "x", "train", "validation", None)
    with pytest.raises(ValueError, match=r"no split 'devv'.*validation_split=<name>"):
        pick_splits(source, "x", "training", "devv", None)
    with pytest.raises(ValueError, match="split 'dev' of 'x' is used twice"):
        pick_splits(source, "x", "training", "dev", "dev")


def test_limit_rows_draws_at_random_and_keeps_the_order():
    limited = limit_rows(table(1000, 10), 100, seed=0)
    places = [int(text) for text in limited["text"]]
    assert len(limited) == 100
    assert places == sorted(places)
    assert max(places) > 800
    assert len(limit_rows(table(5), 100, 0)) == len(limit_rows(table(5), None, 0)) == 5
    with pytest.raises(ValueError, match="at least 1, got 0"):
        limit_rows(table(5), 0, seed=0)
    assert isinstance(limited, datasets.Dataset)
