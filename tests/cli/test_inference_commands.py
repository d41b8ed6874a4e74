"""`hf-dgl predict --input`, `export` and `demo`: what they pass on, print and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_dgl.cli import main
from hf_dgl.inference.cross_modal_pipeline import CrossModalPipeline
from tests import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("saved")
    CrossModalPipeline(tiny.tiny_model(("text",)), tiny.tiny_processor(("text",))).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"caption": "a digit"}\n{"caption": null}\n')
    return str(path)


def test_predict_a_file(saved: str, rows: str, tmp_path: Path, capsys: Any) -> None:
    output = str(tmp_path / "out.jsonl")
    words = ["predict", saved, "--input", rows, "--output", output, "--device", "cpu", "--batch_size", "1"]
    assert main([*words, "--text", "caption"]) == 2  # row 1 has no modality
    assert "Row 1: Every example needs at least one of the modalities" in capsys.readouterr().err
    assert main([*words, "--column_mapping", "text=caption", "--on_error", "skip", "--traceback"]) == 0
    printed = capsys.readouterr().out
    assert "2 rows labelled, 1 of them by an earlier run; 1 could not be read" in printed
    first, second = [json.loads(line) for line in Path(output).read_text().splitlines()]
    assert first["label"] and second["error"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "OUT", "--input", "ROWS"], "--output ANSWERS is missing"),
        (["predict", "OUT", "--input", "ROWS", "--output", "x.csv", "--column_mapping", "text"], "NAME=COLUMN"),
        (["predict", "OUT", "--text", "a", "--device", "cudaa"], "Cannot use the device 'cudaa'"),
        (["predict", "OUT", "--text", "a", "--text", "b"], "--text is given 2 times, and one example has one"),
        (["predict", "OUT", "--text", "-great"], "A value that begins with a dash is written --text=VALUE"),
        (["export", "OUT", "--onnx", "nowhere/model.onnx"], "There is no folder 'nowhere'"),
        (["export", "OUT", "--onnx", "m.onnx", "x"], "Did not understand 'x'"),
        (["demo", "OUT", "x"], "Did not understand 'x'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes(saved: str, rows: str, words: list[str], message: str, capsys: Any) -> None:
    assert main([{"OUT": saved, "ROWS": rows}.get(word, word) for word in words]) == 2
    assert message in capsys.readouterr().err


def test_demo_binds_to_this_machine_and_shares_nothing(saved: str, monkeypatch: Any) -> None:
    import gradio

    seen: dict[str, Any] = {}
    monkeypatch.setattr(gradio.Blocks, "launch", lambda self, **settings: seen.update(settings))
    assert main(["demo", saved, "--device", "cpu", "--port", "7999"]) == 0
    assert (seen["server_name"], seen["server_port"], seen["share"]) == ("127.0.0.1", 7999, False)


@pytest.mark.parametrize("command", ["predict", "export", "demo"])
def test_help(command: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0 and capsys.readouterr().out.startswith(f"usage: hf-dgl {command}")
