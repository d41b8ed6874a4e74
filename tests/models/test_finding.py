"""Mistyped folders are named with the nearest; what cannot be loaded bears its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_dgl.cli import main
from hf_dgl.models import CrossModalForSequenceClassification, CrossModalProcessor
from hf_dgl.models.finding import check_source


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("image_text", "audio_text"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / "config.json").write_text("{}")
    (tmp_path / "outputs" / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize("source", ["outputs/image_text", "./outputs/image_text", "org/name", "bert-base-uncased"])
def test_folders_that_are_there_and_hub_ids_pass(outputs: Path, source: str) -> None:
    check_source(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("outputs/image_txt", "There is no folder 'outputs/image_txt'.*did you mean 'outputs/image_text'"),
        ("outputs/nothing", "There is no folder 'outputs/nothing'"),
        ("./nothing", "There is no folder './nothing'"),
        ("a/b/c", "There is no folder 'a/b/c'"),
        ("outputs/empty", r"no model in the folder 'outputs/empty' \(no config.json\)"),
        ("outputs", r"There are models in outputs/audio_text, outputs/image_text"),
        ("outputs/image_text/config.json", "is a file; a model is a folder"),
    ],
)
def test_others_are_told_without_asking_the_hub(outputs: Path, source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_source(source)


@pytest.mark.parametrize("words", [["predict", "--text=a"], ["evaluate"], ["export", "--onnx", "m.onnx"]], ids=str)
def test_commands_ask_first(outputs: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([words[0], "outputs/image_txt", *words[1:]]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'outputs/image_text'" in said and "connect" not in said


@pytest.mark.parametrize("kind", [CrossModalForSequenceClassification, CrossModalProcessor])
def test_offline_errors_name_the_encoder(kind: type) -> None:
    with pytest.raises(OSError, match="encoders: 'image': cannot load 'org/not-in-the-cache', which is no folder"):
        kind.from_encoders({"image": "org/not-in-the-cache"})


def test_a_recipes_mapping_is_no_processor() -> None:
    with pytest.raises(ValueError, match="how a recipe writes an encoder from scratch. In Python give"):
        CrossModalProcessor.from_encoders({"image": {"model_type": "vit"}})
