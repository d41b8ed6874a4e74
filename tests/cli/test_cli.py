"""`hf-dgl`: every command's help, the round trip train -> evaluate -> predict, and what the user's mistakes print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from hf_dgl.cli import main
from tests.processes import hf_dgl_as_launched
from tests.recipes import tiny_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("recipe")
    path = folder / "digits.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(folder / "out")))
    return str(path)


@pytest.fixture(scope="module")
def trained(recipe: str) -> str:
    assert main(["train", recipe]) == 0
    return str(Path(recipe).parent / "out")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("picture") / "digit.png"
    Image.new("RGB", (16, 16), "white").save(path)
    return str(path)


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hf_dgl", *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, timeout=300)


@pytest.mark.parametrize(
    "command", [[], ["train"], ["evaluate"], ["predict"], ["env"]], ids=lambda words: " ".join(words)
)
def test_help(command: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: hf-dgl{' ' if command else ''}{' '.join(command)}")
    if not command:
        assert all(name in text for name in ("train", "evaluate", "predict", "env"))


def test_train_help_lists_the_keys_of_a_recipe(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    keys = [text.index(f"\n  --{key} ") for key in ("alpha", "encoders", "dataset_name", "learning_rate")]
    assert keys == sorted(keys)
    assert "default: None" not in text and "(default: 1.0)" in text


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ([], "hf-dgl train quickstart/image_text"),
        (["demo"], ".[demo]"),
        (["export"], ".[onnx]"),
        (["evaluate"], "[--key value ...]"),
        (["compare"], "[--key value ...]"),
        (["benchmark"], "[--key value ...]"),
    ],
)
def test_help_says_what_to_type(command: list[str], told: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    assert told in " ".join(capsys.readouterr().out.split())


def test_train_prints_the_table(recipe: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["train", recipe, f"--output_dir={tmp_path}", "--method", "joint"]) == 0
    text = capsys.readouterr().out
    for word in ("fused", "image alone", "text alone", "before", "after", "test", str(tmp_path)):
        assert word in text
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["method"] == "joint"


def test_evaluate_prints_json_and_nothing_else(recipe: str, trained: str, capsys: Any) -> None:
    capsys.readouterr()
    assert main(["evaluate", trained, "--recipe", recipe]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores == pytest.approx(json.loads(Path(trained, "metrics.json").read_text())["test"])
    assert {"accuracy", "accuracy_image", "accuracy_text", "f1"} <= set(scores)
    assert main(["evaluate", trained, "--split", "validation", "--max_eval_samples", "10"]) == 0  # OUT/recipe.yaml
    assert json.loads(capsys.readouterr().out)["accuracy"] in [n / 10 for n in range(11)]


def test_evaluate_with_modalities_missing_and_calibration(recipe: str, trained: str, capsys: Any) -> None:
    capsys.readouterr()
    assert main(["evaluate", trained, "--missing", "0", "1", "--calibration", "--recipe", recipe]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["missing"]["0"] == pytest.approx(scores["accuracy"]) and 0 <= scores["missing"]["1"] <= 1
    assert set(scores["calibration"]) == {"fused", "image", "text"}


def test_predict(trained: str, picture: str, capsys: Any) -> None:
    capsys.readouterr()
    assert main(["predict", trained, "--image", picture, "--text", "an even digit"]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    both = json.loads(line)
    assert set(both["modalities"]) == {"image", "text"}
    assert main(["predict", trained, "--text=an even digit"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["score"] == pytest.approx(both["modalities"]["text"]["score"], abs=1e-5)
    assert "modalities" not in alone  # its scores are the answer's


def test_env(capsys: Any) -> None:
    assert main(["env"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert {"python", "platform", "hf-dgl", "torch", "transformers", "accelerator"} <= set(lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "nowhere.yaml"], "There is no recipe 'nowhere.yaml'"),
        (["train", "RECIPE", "--learnin_rate", "1"], "did you mean 'learning_rate'?"),
        (["train", "RECIPE", "--learning_rate", "fast"], "learning_rate: expected a number, got 'fast'"),
        (["train", "RECIPE", "--overwrite_output_dir", "--dataset_name", "sample:image_txt"], "image_txt"),
        (["train", "RECIPE", "--overwrite_output_dir", "--column_mapping", "image=img"], "img"),
        (["evaluate", "RECIPE_DIR", "--recipe", "RECIPE"], "RECIPE_DIR"),
        (["evaluate", "OUT", "--recipe", "RECIPE", "--split", "dev2"], "dev2"),
        (["evaluate", "OUT", "--missing", "25"], "shares of the rows from 0 to 1"),
        (["predict", "OUT"], "give at least one of --image, --text"),
        (["predict", "OUT", "--audio", "a.wav"], "This model takes: --image, --text"),
        (["predict", "OUT", "--image", "nowhere.png"], "nowhere.png"),
        (["env", "x"], "takes no further words"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_print_one_message_and_exit_with_2(
    recipe: str, trained: str, words: list[str], message: str, capsys: Any
) -> None:
    names = {"RECIPE": recipe, "OUT": trained, "RECIPE_DIR": str(Path(recipe).parent)}
    capsys.readouterr()
    assert main([names.get(word, word) for word in words]) == 2
    printed = capsys.readouterr()
    assert names.get(message, message) in printed.err
    assert printed.err.startswith(f"hf-dgl {words[0]}: ") and "Traceback" not in printed.err
    assert printed.out == ""


def test_traceback_on_request(recipe: str) -> None:
    with pytest.raises(ValueError, match="learnin_rate"):
        main(["train", recipe, "--traceback", "--learnin_rate=1"])


@pytest.mark.slow
def test_as_a_process(recipe: str, picture: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    trained = run("train", recipe, "--output_dir", out)
    assert trained.returncode == 0, trained.stderr
    assert "fused" in trained.stdout
    scores = run("evaluate", out, "--recipe", recipe)
    assert scores.returncode == 0, scores.stderr
    assert (
        json.loads(scores.stdout)["accuracy"] == json.loads(Path(out, "metrics.json").read_text())["test"]["accuracy"]
    )
    answer = run("predict", out, "--image", picture)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["label"]


def test_mistake_as_a_process() -> None:
    failed = run("env", "x")
    assert failed.returncode == 2
    assert failed.stdout == "" and failed.stderr == "hf-dgl env: `hf-dgl env` takes no further words, got 'x'.\n"


@pytest.mark.parametrize(("rank", "who"), [("0", "hf-dgl train: "), ("3", "hf-dgl train, process 3: ")])
def test_what_one_process_alone_finds_is_said(
    rank: str, who: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("hf_dgl.cli._OTHERS_WAIT", 0.0)
    assert main(["train", "no/such/recipe.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(who) and "no/such/recipe.yaml" in said


def test_two_processes_print_and_write_once(recipe: str, tmp_path: Path) -> None:
    words = ["train", recipe, "--ddp_backend=gloo", "--output_dir", str(tmp_path / "out")]
    said = hf_dgl_as_launched(words, tmp_path)
    assert said.count("before, after: validation split") == said.count("The model is in") == 1
    assert (tmp_path / "out" / "metrics.json").is_file() and (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.slow
def test_two_processes_by_a_launcher(recipe: str, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "hf_dgl"]
    words = ["train", recipe, "--ddp_backend=gloo", "--output_dir", str(tmp_path)]
    done = subprocess.run([*launcher, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("before, after: validation split") == done.stdout.count("The model is in") == 1
    assert (tmp_path / "metrics.json").is_file() and (tmp_path / "model.safetensors").is_file()
