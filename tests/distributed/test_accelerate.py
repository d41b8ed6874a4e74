"""Two processes against one on the joined batch, as launched, and by `accelerate launch` with the shipped file."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from hf_dgl.recipe.finetune import finetune
from hf_dgl.recipe.recipe import load_recipe
from tests.processes import hf_dgl_as_launched
from tests.recipes import tiny_recipe


def write_recipe(folder: Path, **values: Any) -> Path:
    """Without dropout, whose random numbers differ between the processes; with an uneven last batch in evaluation."""
    recipe = copy.deepcopy(
        tiny_recipe(folder / "one", optim="sgd", learning_rate=0.1, max_steps=3, max_eval_samples=19)
    )
    for encoder in recipe["encoders"].values():
        encoder.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**recipe, "fusion_dropout": 0.0, **values}))
    return path


def accelerate_launch(words: list[str], folder: Path) -> str:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu.yaml"]
    done = subprocess.run(
        [*launcher, "-m", "hf_dgl", *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


PLAIN: dict[str, Any] = {}
LORA: dict[str, Any] = {"peft": {"r": 4, "modules": "fusion"}}


@pytest.mark.parametrize(
    ("launch", "extra"),
    [
        pytest.param(hf_dgl_as_launched, PLAIN, id="plain"),
        pytest.param(hf_dgl_as_launched, LORA, id="lora", marks=pytest.mark.slow),
        pytest.param(accelerate_launch, PLAIN, id="accelerate launch", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_what_one_does(tmp_path: Path, launch: Any, extra: dict[str, Any]) -> None:
    recipe = write_recipe(tmp_path, **extra)
    one = finetune(load_recipe(recipe))
    words = ["train", str(recipe), "--per_device_train_batch_size=4", f"--output_dir={tmp_path}/two"]
    printed = launch(words, tmp_path)
    assert printed.count("before, after: validation split") == printed.count("The model is in") == 1
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    first, second = (load_file(tmp_path / out / "model.safetensors") for out in ("one", "two"))
    assert first.keys() == second.keys()
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-6
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    for stage in ("before", "validation", "test"):  # 19 rows, 8 at a time on each of two processes
        assert metrics[stage] == pytest.approx(one.metrics[stage], abs=1e-6)
