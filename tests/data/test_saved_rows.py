"""Rows as files: what is written, and that it is the same row when it is read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from hf_dgl.cli import main
from hf_dgl.data import load_data
from hf_dgl.data.collator import decode_value
from hf_dgl.data.saved_rows import read_rows, save_rows
from tests.recipes import tiny_recipe
from tests.tiny import tiny_processor

MODALITIES = ("image", "audio", "text")


def test_they_are_the_rows(tmp_path: Path) -> None:
    data = load_data("sample:image_audio_text", modalities=MODALITIES, max_eval_samples=7)["test"]
    processor = tiny_processor(MODALITIES)
    rows = save_rows(data, processor, tmp_path / "rows", 3)
    assert [row["image"] for row in rows] == ["1-image.png", "2-image.png", "3-image.png"]
    for index, row in zip((0, 3, 6), read_rows(tmp_path / "rows"), strict=True):
        assert (
            row["label"] == data.features["label"].int2str(data[index]["label"]) and row["text"] == data[index]["text"]
        )
        image, audio = (decode_value(processor, name, data[index][name], float("inf")) for name in ("image", "audio"))
        assert np.array_equal(np.asarray(Image.open(row["image"]).convert("RGB")), np.asarray(image.convert("RGB")))
        assert np.allclose(decode_value(processor, "audio", row["audio"], float("inf")), audio, atol=1e-4)


def test_missing_values_stay_missing_and_nothing_is_written_over(tmp_path: Path) -> None:
    data = load_data("sample:image_text", modalities=["image", "text"], max_eval_samples=2)["test"]
    data = data.map(lambda row: {"text": None})
    assert [row["text"] for row in save_rows(data, tiny_processor(("image", "text")), tmp_path / "rows", 9)] == [
        None
    ] * 2
    with pytest.raises(ValueError, match="there are saved rows in"):
        save_rows(data, tiny_processor(("image", "text")), tmp_path / "rows", 1)
    with pytest.raises(ValueError, match="--save_rows 3 DIR"):
        read_rows(tmp_path)


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    recipe, rows = tmp_path / "digits.yaml", tmp_path / "my rows"
    recipe.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "out")))
    assert main(["data", str(recipe), "--save_rows", "2", str(rows)]) == 0
    printed = capsys.readouterr().out
    assert "2 rows of the test split" in printed and f"--image '{rows}/1-image.png' --text " in printed
    assert len((rows / "rows.jsonl").read_text().splitlines()) == 2
    for words in (["2", str(rows)], ["two", str(tmp_path / "other")]):
        assert main(["data", str(recipe), "--save_rows", *words]) == 2
        assert capsys.readouterr().err.startswith("hf-dgl data: --save_rows: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "RECIPE", "--preview", "data.jpeg2"], "pictures are written as"),
        (["data", "RECIPE", "--preview", "/proc/data.png"], "cannot be written"),
        (["benchmark", "RECIPE", "--plot", "plot"], "has no ending"),
        (["benchmark", "RECIPE", "--json", "."], "is a folder"),
        (["inspect", "RECIPE", "--picture", "nowhere/model.svg"], "there is no folder 'nowhere'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_places_of_pictures_are_looked_at_first(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "nowhere.yaml"  # would be the next error
    assert main([str(recipe) if word == "RECIPE" else word for word in words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == "" and not list(tmp_path.iterdir())


def test_the_report_outlives_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    recipe = tmp_path / "digits.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "out")))

    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("hf_dgl.data.preview.draw_preview", fail)
    assert main(["data", str(recipe), "--preview", str(tmp_path / "data.png")]) == 2
    printed = capsys.readouterr()
    assert "Every row can be used." in printed.out and "the disk is full" in printed.err
