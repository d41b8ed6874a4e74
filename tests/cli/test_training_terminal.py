"""What `hf-dgl train` shows, refuses to overwrite, and does on Ctrl-C."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import TrainerState

from hf_dgl.cli import main
from hf_dgl.cli.interruption import how_to_go_on
from hf_dgl.cli.train import FIRST_KEYS
from hf_dgl.training.trainer import DGLTrainer
from tests.recipes import tiny_recipe

EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}


def write(folder: Path, **values: Any) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**tiny_recipe(folder / "out"), **EVERY_STEP, **values}))
    return str(path)


def test_header_rows_and_what_next(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # a narrow terminal cuts no number
    folder = tmp_path / "my runs"
    assert main(["train", write(folder)]) == 0
    text = capsys.readouterr().out
    out, lines = str(folder / "out"), text.splitlines()
    facts = {line.split("  ")[0]: line for line in lines if "  " in line}
    assert "sample:image_text: 40 rows to train on, 20 to validate, 20 to test" in facts["data"]
    assert "10 classes (zero, one, two, " in facts["label"]
    assert "image vit " in facts["model"] and "fusion cross_attention" in facts["model"]
    assert facts["method"].endswith("dgl, alpha 1") and out in facts["output"]
    assert "3 steps of 8 rows" in facts["training"]
    start = next(index for index, line in enumerate(lines) if line.lstrip().startswith("epoch"))
    heading, rows = lines[start], lines[start + 1 : start + 5]
    assert heading.split() == "epoch step loss accuracy fused image alone text alone".split()
    assert [row.split()[1] for row in rows] == ["0", "1", "2", "3"]
    ends = [
        heading.index(name) + len(name) for name in ("epoch", "step", "loss", "fused", "image alone", "text alone")
    ]
    for row in rows:
        assert all(row[end - 1] != " " and (len(row) == end or row[end] == " ") for end in ends)
    assert rows[0].endswith("best accuracy so far")
    assert "{'" not in text and "eval_runtime" not in text and "…" not in text
    assert f"The model is in {out}" in text and f"hf-dgl predict '{out}' --image FILE --text" in text


@pytest.mark.slow
def test_json_lines(tmp_path: Path, capsys: Any) -> None:
    assert main(["train", write(tmp_path), "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events if event["event"] != "log"] == [
        *("begin", "evaluation", "evaluation", "evaluation", "evaluation", "end")
    ]
    assert {"eval_accuracy_image", "step", "epoch"} <= events[-2].keys() | events[1].keys()
    assert events[-1]["metrics"]["test"]["accuracy"] >= 0 and events[-1]["output_dir"] == str(tmp_path / "out")


@pytest.mark.slow
def test_every_log_on_request(tmp_path: Path, capsys: Any) -> None:
    recipe = write(tmp_path, max_steps=1, log_level="info")
    assert main(["train", recipe]) == 0
    assert "'loss_image': " in capsys.readouterr().out


@pytest.mark.slow
def test_a_finished_model_is_not_overwritten(tmp_path: Path, capsys: Any) -> None:
    recipe, out = write(tmp_path, max_steps=1), tmp_path / "out"
    assert main(["train", recipe]) == 0
    before = (out / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["train", recipe, "--method", "joint"]) == 2
    said = capsys.readouterr().err
    assert f"{out} already holds a model" in said and "--overwrite_output_dir" in said
    assert f"--output_dir {out}-2" in said and (out / "model.safetensors").read_bytes() == before
    assert main(["train", recipe, "--method", "joint", "--overwrite_output_dir"]) == 0
    assert (out / "model.safetensors").read_bytes() != before
    assert "overwrite_output_dir" not in (out / "recipe.yaml").read_text()
    (out / "model.safetensors").unlink()
    (out / "metrics.json").unlink()
    capsys.readouterr()
    assert main(["train", recipe]) == 2  # a killed run left a checkpoint
    said = capsys.readouterr().err
    assert "checkpoint-1 of a run that did not end" in said and "--resume_from_checkpoint true" in said


@pytest.mark.parametrize("place", ["file/below", "file", "/proc/nobody/writes/here"])
def test_an_impossible_folder_is_told_before_training(place: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("")
    assert main(["train", write(tmp_path), "--output_dir", str(tmp_path / place)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "Choose another: `--output_dir FOLDER`" in printed.err


@pytest.mark.parametrize("saves", ["steps", pytest.param("no", marks=pytest.mark.slow)])
def test_ctrl_c_is_one_line_and_keeps_a_checkpoint(saves: str, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    recipe = write(tmp_path, save_strategy=saves, save_steps=100, max_steps=4)
    original, calls = DGLTrainer.training_step, []

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DGLTrainer, "training_step", step)
    handler = signal.getsignal(signal.SIGINT)
    assert main(["train", recipe, "--overwrite_output_dir"]) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-dgl train: ")]
    if saves == "no":
        assert line == "hf-dgl train: stopped at step 1; no checkpoint had been saved yet."
        return
    told, _, command = line.partition("go on with: ")
    assert told == "hf-dgl train: stopped at step 2; " and "--overwrite_output_dir" not in command
    assert (tmp_path / "out" / "checkpoint-2").is_dir()
    assert main(shlex.split(command)[1:]) == 0
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 4


def test_ctrl_c_of_other_commands(monkeypatch: Any, capsys: Any) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_dgl.recipe.environment.version_of", stop)
    assert main(["env"]) == 130
    assert capsys.readouterr().err == "hf-dgl env: stopped.\n"


def test_tokens_are_not_in_what_to_type(tmp_path: Path) -> None:
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path)), state=SimpleNamespace(global_step=2))
    (tmp_path / "checkpoint-2").mkdir()
    save_file({"x": torch.ones(1)}, tmp_path / "checkpoint-2" / "model.safetensors")
    state = TrainerState(epoch=1.0, global_step=2, max_steps=4)
    state.save_to_json(str(tmp_path / "checkpoint-2" / "trainer_state.json"))
    words = ["my recipe.yaml", "--hub_token", "secret", "--token=secret", "--seed", "1"]
    told = how_to_go_on(words, trainer)
    assert told == (
        "stopped at step 2; go on with (and the token, which is not shown): "
        "hf-dgl train 'my recipe.yaml' --seed 1 --resume_from_checkpoint true"
    )


def test_before_there_is_a_trainer() -> None:
    assert how_to_go_on(["quickstart/image_text"], None) == "stopped before training."


@pytest.mark.parametrize(("words", "is_all"), [([], False), (["all"], True)])
def test_help_begins_with_what_matters(words: list[str], is_all: bool, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help", *words])
    text = capsys.readouterr().out
    keys = [line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith("  --")]
    assert ("--dataloader_num_workers" in keys) == is_all
    if not is_all:
        assert sorted(keys) == sorted(f"--{key}" for key in FIRST_KEYS) and len(FIRST_KEYS) == 30
        assert text.count("\n") < 200 and "hf-dgl train --help all" in text


def test_recipes_are_listed_and_copied(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 0
    assert "quickstart/image_text " in capsys.readouterr().out
    assert main(["recipes", "copy", "quickstart/image_text"]) == 0
    assert "hf-dgl train image_text.yaml" in capsys.readouterr().out
    assert "sample:image_text" in (tmp_path / "image_text.yaml").read_text()
    assert main(["recipes", "copy", "quickstart/image_text"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["recipes", "copy"]) == 2 and main(["recipes", "list", "x"]) == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell: str, capsys: Any) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "quickstart/image_text" in script and "learning_rate" in script and "overwrite_output_dir" in script
