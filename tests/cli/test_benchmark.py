"""`hf-dgl benchmark`: of a shape, of a recipe, and what mistakes print."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import yaml

from hf_dgl.analysis.benchmark.shapes import Shape
from hf_dgl.cli import main
from hf_dgl.cli.benchmark import _SIZES
from tests.recipes import tiny_recipe

TINY = "--image_layers 1 --text_layers 1 --hidden_size 16 --image_size 32 --text_length 4 --batch_size 2".split()


def test_every_size_is_an_option() -> None:
    assert sorted(_SIZES) == sorted(field.name for field in dataclasses.fields(Shape))


def test_shape_with_files(tmp_path: Any, capsys: Any) -> None:
    written = tmp_path / "cost.json"
    plot = tmp_path / "cost.png"
    words = ["--steps", "1", "--device", "cpu", "--json", str(written), "--plot", str(plot), "--depths", "1"]
    assert main(["benchmark", *TINY, "--audio_length", "16", *words]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("joint", "DGL", "paper", "floor", "above the floor: 0.0%"))
    result = json.loads(written.read_text())
    assert result["ratios"]["joint"] == {"flops": 1.0, "seconds": 1.0, "memory": 1.0}
    assert 1 < result["ratios"]["dgl"]["flops"] < result["ratios"]["two_backward"]["flops"]
    assert [point["num_modalities"] for point in result["sweep"]] == [2, 3]
    assert plot.stat().st_size > 0


def test_recipe_with_overrides_and_sizes(tmp_path: Any, capsys: Any) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path)))
    written = tmp_path / "cost.json"
    words = ["--steps", "1", "--device", "cpu", "--text_layers", "2", "--per_device_train_batch_size", "3"]
    assert main(["benchmark", str(path), *words, "--json", str(written)]) == 0
    out, result = capsys.readouterr().out, json.loads(written.read_text())
    assert "batch_size: 3" in out
    assert f"{1e3 * result['first_step']:.1f} ms, {result['first_step_ratio']:.2f} times a later one" in out
    assert result["fetching_share"] == result["fetching"][0] / result["costs"]["dgl"]["seconds"][0] > 0
    assert f"fetching a batch, with dataloader_num_workers=0: {1e3 * result['fetching'][0]:.1f} ms" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lenght=3"], "Did not understand '--lenght=3'"),
        (["no_such.yaml"], "no_such.yaml"),
        (["--steps", "-1"], "--steps: expected 0 or more, got -1"),
        (["--depths", "2", "0"], "--depths: expected 1 or more, got [2, 0]"),
        (["--hidden_size", "100", "--num_heads", "7"], "num_heads=7"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: Any) -> None:
    assert main(["benchmark", *words]) == 2
    assert message in capsys.readouterr().err
