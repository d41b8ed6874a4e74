"""A newcomer with 200 images, a csv and no config file: train, evaluate and predict."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from hf_dgl.cli import main
from tests.processes import hf_dgl_as_launched

IMAGE = (
    "{model_type: vit, image_size: 8, patch_size: 4, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
)
TEXT = "{model_type: bert, vocab_size: 200, max_position_embeddings: 34, hidden_size: 16, num_hidden_layers: 1, "
TEXT += "num_attention_heads: 2}"
COLUMNS = ["--data", "my.csv", "--image", "photo", "--text", "title", "--label", "kind"]
ENCODERS = ["--encoders", f"image={IMAGE}", f"text={TEXT}"]
STREAMED = ["train", *COLUMNS, *ENCODERS, *"--streaming --class_names cat dog --use_cpu --disable_tqdm".split()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newcomer")
    rng = np.random.default_rng(0)
    (folder / "img").mkdir()
    lines = ["photo,title,kind"]
    for index in range(200):
        kind = index % 2
        pixels = rng.integers(0, 100, (12, 10, 3), dtype=np.uint8)
        pixels[..., kind] += 120
        Image.fromarray(pixels).save(folder / "img" / f"{index}.jpg")
        lines.append(f"img/{index}.jpg,a {['red', 'green'][kind]} picture,{['cat', 'dog'][kind]}")
    (folder / "my.csv").write_text("\n".join(lines))
    return folder


def test_train_evaluate_predict(folder: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    settings = ["--learning_rate", "1e-2", "--num_train_epochs", "2", "--use_cpu", "--disable_tqdm"]
    assert main(["train", *COLUMNS, *ENCODERS, *settings]) == 0
    assert "The model is in outputs/my" in capsys.readouterr().out
    recipe = yaml.safe_load((folder / "outputs/my/recipe.yaml").read_text())
    assert recipe["column_mapping"] == {"image": "photo", "text": "title", "label": "kind"}
    assert main(["evaluate", "outputs/my"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.9
    assert main(["predict", "outputs/my", "--image", "img/3.jpg", "--text", "a green picture"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "dog"


def test_broken_file_stops_or_is_skipped(folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    lines = (folder / "my.csv").read_text().splitlines()
    (folder / "bad.csv").write_text("\n".join([*lines, "img/gone.jpg,a red picture,cat"] * 1))
    words = ["train", "--data", "bad.csv", *COLUMNS[2:], *ENCODERS, "--max_steps", "30", "--use_cpu", "--disable_tqdm"]
    words += ["--save_strategy", "no", "--output_dir", str(tmp_path)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "Row train[200], 'image': Cannot find the image file" in error and "--on_error skip" in error
    assert main([*words, "--dataloader_num_workers", "2"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("hf-dgl train: Row train[200], 'image'"), "one message, without the worker's traceback"
    assert main([*words, "--on_error", "skip"]) == 0
    (row,) = map(json.loads, (tmp_path / "broken_rows.jsonl").read_text().splitlines())
    assert row["row"] == "train[200]" and row["file"].endswith("img/gone.jpg")


def test_streaming(folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    words = ["train", *COLUMNS, *ENCODERS, "--streaming", "--use_cpu", "--disable_tqdm", "--save_strategy", "no"]
    words += ["--output_dir", str(tmp_path)]
    assert main(words) == 2
    assert "streaming: nobody knows how long a stream is" in (error := capsys.readouterr().err)
    assert "--max_steps 1000" in error
    words += ["--max_steps", "20"]
    assert main(words) == 2
    assert "--class_names cat dog" in capsys.readouterr().err
    assert main([*words, "--class_names", "cat", "dog"]) == 0
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "cat", "1": "dog"}
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path)]) == 0
    expected = json.loads((tmp_path / "metrics.json").read_text())["test"]
    assert json.loads(capsys.readouterr().out) == pytest.approx(expected)


def test_several_data_sets(folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    lines = (folder / "my.csv").read_text().splitlines()
    (folder / "more.csv").write_text("\n".join([lines[0], *[line.replace(",cat", ",bird") for line in lines[1:101]]]))
    words = ["train", "--data", "my.csv=0.7", "more.csv=0.3", *COLUMNS[2:], *ENCODERS, "--max_steps", "2", "--use_cpu"]
    assert main([*words, "--disable_tqdm", "--save_strategy", "no", "--output_dir", str(tmp_path)]) == 0
    assert set(json.loads((tmp_path / "config.json").read_text())["label2id"]) == {"cat", "dog", "bird"}
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path)]) == 0


@pytest.mark.slow
def test_worker_processes_change_nothing(folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    words = ["train", *COLUMNS, *ENCODERS, "--max_steps", "6", "--use_cpu", "--disable_tqdm", "--save_strategy", "no"]
    found = []
    for workers in ("0", "2"):
        assert main([*words, "--dataloader_num_workers", workers, "--output_dir", str(tmp_path / workers)]) == 0
        found.append((tmp_path / workers / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_nothing_to_train(capsys: Any) -> None:
    assert main(["train"]) == 2
    assert "name a recipe" in (error := capsys.readouterr().err) and "--data my.csv" in error


def test_two_processes_share_a_stream(folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    words = [
        *STREAMED,
        "--max_steps",
        "6",
        "--save_strategy",
        "no",
        "--ddp_backend",
        "gloo",
        "--max_eval_samples",
        "17",
    ]
    hf_dgl_as_launched([*words, "--output_dir", str(tmp_path / "out")], tmp_path)
    expected = json.loads((tmp_path / "out" / "metrics.json").read_text())["test"]
    assert main(["evaluate", str(tmp_path / "out")]) == 0  # one process
    assert json.loads(capsys.readouterr().out) == pytest.approx(expected, abs=1e-5), "no row counts twice"


def test_two_processes_need_to_know_how_many_rows_they_score(monkeypatch: Any) -> None:
    from hf_dgl.recipe import finetune
    from hf_dgl.recipe.recipe import load_recipe

    words = [*COLUMNS, *ENCODERS, "--streaming", "--class_names", "cat", "dog", "--max_steps", "6", "--use_cpu"]
    recipe = load_recipe(None, words)
    monkeypatch.setattr(type(recipe.training), "world_size", property(lambda self: 2))
    with pytest.raises(ValueError, match="--max_eval_samples 2000"):
        finetune.finetune(recipe)


def test_resumed_in_the_second_pass_over_a_stream(folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    words = [
        *STREAMED,
        "--max_steps",
        "30",
        "--save_strategy",
        "steps",
        "--save_steps",
        "25",
        "--save_total_limit",
        "5",
    ]
    assert main([*words, "--output_dir", str(tmp_path / "whole")]) == 0
    state = json.loads((tmp_path / "whole/checkpoint-25/trainer_state.json").read_text())
    assert state["epoch"] > 1, "a pass has about 17 batches"
    shutil.copytree(tmp_path / "whole/checkpoint-25", tmp_path / "again/checkpoint-25")
    resumed = [*words, "--output_dir", str(tmp_path / "again"), "--resume_from_checkpoint"]
    assert main(resumed) == 0
    whole, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again"))
    assert whole == again
