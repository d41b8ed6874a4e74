from __future__ import annotations

import json

import pytest

from hf_dgl.cli import main
from hf_dgl.compare import Spread, compare, comparison_table

TINY = ["--max_steps", "1", "--max_train_samples", "32", "--max_eval_samples", "16", "--eval_strategy", "no"]
TINY += ["--save_strategy", "no", "--load_best_model_at_end", "false"]
RECIPE = "recipes/quickstart/image_text.yaml"


def test_runs_are_gathered_and_not_repeated(tmp_path, capsys):
    words = ["compare", RECIPE, "--methods", "joint,dgl", "--seeds", "0", "--jobs", "2"]
    words += ["--compare_dir", str(tmp_path), *TINY]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| method | accuracy fused | accuracy image alone | accuracy text alone |"
    found = json.loads((tmp_path / "dgl-0" / "metrics.json").read_text())["test"]
    assert lines[3].startswith(f"| dgl | {found['accuracy']:.3f} ± 0.000 | {found['accuracy_image']:.3f} ± 0.000 |")
    written = (tmp_path / "dgl-0" / "metrics.json").stat().st_mtime_ns
    assert main(words) == 0
    assert (tmp_path / "dgl-0" / "metrics.json").stat().st_mtime_ns == written
    assert "method: joint" in (tmp_path / "joint-0" / "recipe.yaml").read_text()


def test_table():
    table = comparison_table(
        {"dgl": {"accuracy": Spread(0.9, 0.01), "f1": Spread(0, 0), "accuracy_text": Spread(0.7, 0)}}
    )
    assert table.columns == ["method", "accuracy fused", "accuracy text alone"]
    assert table.rows == [["dgl", "0.900 ± 0.010", "0.700 ± 0.000"]]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"methods": ["jint"]}, "Unknown method 'jint': did you mean 'joint'"),
        ({"seeds": []}, "nothing to compare"),
        ({"overrides": ["--test_split", "null"]}, "no test split"),
        ({"overrides": ["--learning_rat", "1"]}, "Unknown key 'learning_rat'"),
    ],
)
def test_mistakes(kwargs, message):
    with pytest.raises(ValueError, match=message):
        compare(RECIPE, **kwargs)


def test_a_failed_run_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="failed:\n(.|\n)*cross_attention"):
        compare(RECIPE, ["dgl"], [0], tmp_path, [*TINY, "--fusion_type", "cross_atention"])


def test_spread_over_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_dgl.compare._run", lambda *_: None)
    monkeypatch.setattr("hf_dgl.compare._test_metrics", lambda out: {"accuracy": 0.5 + 0.1 * int(out.name[-1])})
    spread = compare(RECIPE, ["dgl"], [0, 2], tmp_path)["dgl"]["accuracy"]
    assert spread.mean == pytest.approx(0.6) and spread.deviation == pytest.approx(0.2 / 2**0.5)
