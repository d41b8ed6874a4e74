"""Equal tuning without trainings: what is run, what is chosen by which scores, and what is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_dgl.analysis.comparison import run as module
from hf_dgl.analysis.comparison.plan import plan, row_of
from hf_dgl.analysis.comparison.run import compare
from hf_dgl.recipe.recipe import load_recipe
from tests.recipes import tiny_recipe

RATES = {"encoder_learning_rate": ["1e-3", "2e-3", "4e-3"]}
BEST = {"joint": 2e-3, "dgl": 4e-3, "unimodal-image": 1e-3, "unimodal-text": 4e-3}


def write(folder: Path, **values: Any) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(folder / "out", **values), sort_keys=False))
    return str(path)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`hf-dgl train` replaced: the validation split has one best rate, and the test split would choose another."""
    made: list[str] = []

    def call(words: Any, out: Path, log: Path, place: Any, *_: Any) -> None:
        made.append(out.parent.name)
        training = load_recipe(words[1], words[2:]).training
        name = training.method if training.modality is None else f"{training.method}-{training.modality}"
        rate = float(training.encoder_learning_rate or 0)
        if name == "dgl" and rate == 1e-3:
            raise RuntimeError("no luck")
        is_best = rate == BEST.get(name)
        validation = {"loss": 0.5 if rate == 1e-3 else 0.9, "accuracy": 0.8 if is_best else 0.7}
        test = {"accuracy": 0.5 if is_best else 0.99, "accuracy_image": 0.4, "accuracy_text": 0.3}
        (out.parent / "metrics.json").write_text(json.dumps({"test": test, "validation": validation}))

    monkeypatch.setattr(module, "_call", call)
    return made


def test_every_method_gets_its_own_best_by_validation_and_no_run_twice(tmp_path: Path, ran: list[str]) -> None:
    methods, seeds = ["joint", "dgl", "unimodal"], [3, 4]
    comparison = compare(write(tmp_path), methods, seeds, tmp_path / "out", tune=RATES)
    chosen = {
        (s.method, s.modality): float(dict(s.chosen or ())["encoder_learning_rate"]) for s in comparison.searches
    }
    assert chosen == {
        ("joint", None): 2e-3,
        ("dgl", None): 4e-3,
        ("unimodal", "image"): 1e-3,
        ("unimodal", "text"): 4e-3,
    }
    assert len(ran) == len(set(ran)) == 4 * 3 + 4  # the grid with the first seed; of the best, the second seed
    assert len(comparison.results) == 4 * 2 and {result.seed for result in comparison.results} == {3, 4}
    assert all(result.test["accuracy"] == 0.5 for result in comparison.results)  # of the others nothing is read
    assert [row[:2] for row in comparison.table().rows] == [["joint", "0.500 ± 0.000"], ["dgl", "0.500 ± 0.000"]]
    assert comparison.failures == {"dgl-encoder_learning_rate=1e-3-3": "no luck"}

    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    joint = found["searches"][0]
    assert joint["chosen"] == {"encoder_learning_rate": "2e-3"} and joint["seed"] == 3
    assert [trial["validation"] for trial in joint["trials"]] == [0.7, 0.8, 0.7]
    assert found["searches"][1]["trials"][0]["validation"] is None  # it failed
    assert {run["method"]: run["tuned"] for run in found["runs"]}["dgl"] == {"encoder_learning_rate": "4e-3"}
    assert "0.99" not in json.dumps(found)
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "## Tuning" in text and "0.99" not in text and "failed" in text
    assert "unimodal: image" in text

    ran.clear()
    again = compare(write(tmp_path), methods, seeds, tmp_path / "out", tune=RATES)
    assert again.results == comparison.results and ran == ["dgl-encoder_learning_rate=1e-3-3"]


def test_the_first_of_several_best_and_the_recipes_metric(tmp_path: Path, ran: list[str]) -> None:
    tune = {"encoder_learning_rate": ["8e-3", "6e-3"]}
    (search,) = compare(write(tmp_path), ["joint"], [0], tmp_path / "a", tune=tune).searches
    assert search.metric == "accuracy" and search.chosen == (("encoder_learning_rate", "8e-3"),)
    recipe = write(tmp_path, metric_for_best_model="loss", eval_strategy="steps", eval_steps=1)
    (search,) = compare(recipe, ["joint"], [0], tmp_path / "b", tune=RATES).searches
    assert search.metric == "loss" and search.chosen == (("encoder_learning_rate", "1e-3"),)  # the smallest


def test_a_grid_of_keys_that_not_every_method_has(tmp_path: Path, ran: list[str]) -> None:
    tune = {"alpha": ["1", "2"], "encoder_learning_rate": ["2e-3", "4e-3"]}
    comparison = compare(write(tmp_path), ["joint", "dgl", "ogm_ge"], [0], tmp_path / "out", tune=tune)
    assert [len(search.trials) for search in comparison.searches] == [2, 4, 2]
    assert dict(comparison.searches[1].chosen or ()) == {"alpha": "1", "encoder_learning_rate": "4e-3"}
    assert comparison.keys == []  # no rows of their own
    alone = compare(write(tmp_path), ["joint", "dgl"], [0], tmp_path / "more", tune={"alpha": ["1", "2"]})
    assert [search.method for search in alone.searches] == ["dgl"] and len(alone.results) == 2


def test_swept_and_tuned(tmp_path: Path, ran: list[str]) -> None:
    sweeps = {"learning_rate": ["1e-3", "1e-4"]}
    comparison = compare(write(tmp_path), ["joint"], [0, 1], tmp_path / "out", sweeps=sweeps, tune=RATES)
    assert len(comparison.searches) == 2 and len(ran) == 2 * 3 + 2
    assert [row[:2] for row in comparison.table().rows] == [["joint", "1e-3"], ["joint", "1e-4"]]


def test_a_method_whose_search_fails_has_no_row(tmp_path: Path, ran: list[str]) -> None:
    tune = {"encoder_learning_rate": ["1e-3"]}
    comparison = compare(write(tmp_path), ["joint", "dgl"], [0, 1], tmp_path / "out", tune=tune)
    assert [search.chosen is None for search in comparison.searches] == [False, True]
    assert {result.method for result in comparison.results} == {"joint"}
    assert list(comparison.failures) == ["dgl-encoder_learning_rate=1e-3-0"]


def test_rows_with_keys_of_their_own(tmp_path: Path, ran: list[str]) -> None:
    rows = ["joint", "joint+modality_dropout=0.3", "dgl"]
    sweeps = {"modality_dropout": ["0", "0.5"]}
    runs = plan(write(tmp_path), [*rows, "unimodal"], [0], tmp_path, sweeps=sweeps)
    names = [run.folder.name for run in runs]
    assert "joint+modality_dropout=0.3-0" in names and "unimodal-image-0" in names and len(names) == 2 + 1 + 2 + 2
    own = next(run for run in runs if run.method == rows[1])
    training = load_recipe(tmp_path / "tiny.yaml", own.words).training
    assert training.method == "joint" and training.modality_dropout == 0.3
    comparison = compare(write(tmp_path), rows, [0, 1, 2], tmp_path / "out", tune=RATES)
    assert [row[0] for row in comparison.table().rows] == rows
    assert {row[0] for row in comparison.differences().rows} == set(rows[1:])  # it is measured against plain joint
    assert [search.method for search in comparison.searches] == rows


def test_row_of() -> None:
    assert row_of("dgl") == ("dgl", ())
    assert row_of("joint+weight_decay=1e+2+freeze=text") == ("joint", (("weight_decay", "1e+2"), ("freeze", "text")))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tune": {"seed": ["1"]}}, "`seed` is not tuned: that is what --seeds is for"),
        ({"tune": {"alpha": []}}, "no values to tune for `alpha`: write e.g. `--tune alpha=1,2`"),
        ({"tune": {"alhpa": ["1"]}}, "Unknown key 'alhpa'"),
        ({"tune": {"alpha": ["1"]}, "sweeps": {"alpha": ["1"]}}, "swept .* and tuned"),
        ({"methods": ["joint+modality_dropout"]}, "expected METHOD\\+KEY=VALUE"),
        ({"methods": ["joint+modality_dropuot=0.3"]}, "did you mean 'modality_dropout'"),
        ({"methods": ["joint", "joint+alpha=2"]}, "`alpha` has no effect under `joint`"),
        ({"methods": ["joint+seed=1"]}, "that is what --seeds is for"),
        ({"methods": ["jiont+modality_dropout=0.3"]}, "did you mean 'joint'"),
        ({"methods": ["joint", "unimodal+alpha=1"]}, "takes no keys of its own"),
        ({"missing": [25.0]}, "shares of the rows from 0 to 1"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path: Path, ran: list[str], kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(write(tmp_path), **{"output_dir": tmp_path / "out", **kwargs})
    assert not ran
