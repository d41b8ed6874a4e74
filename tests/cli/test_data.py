"""`hf-dgl data`: what it prints, its exit code, and that it needs no recipe file."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from hf_dgl.cli import main
from tests.recipes import TINY_ENCODERS, tiny_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    lines = ["photo,title,kind"]
    for index in range(60):
        Image.new("RGB", (8, 8), (index, 4 * index, 0)).save(folder / f"{index}.png")
        lines.append(f"{index}.png,number {index},{'cat' if index % 3 else 'dog'}")
    (folder / "7.png").write_text("no image")
    (folder / "my.csv").write_text("\n".join(lines))
    return folder


def words(folder: Path, **changes: Any) -> list[str]:
    encoders = [f"{name}={json.dumps(TINY_ENCODERS[name])}" for name in ("image", "text")]
    columns = {"image": "photo", "text": "title", "label": "kind", **changes}
    return ["--data", str(folder / "my.csv"), "--encoders", *encoders] + [
        word for key, value in columns.items() for word in (f"--{key}", str(value))
    ]


def test_report_of_a_csv_without_recipe(folder: Path, capsys: Any) -> None:
    assert main(["data", *words(folder)]) == 1
    text = capsys.readouterr().out
    for part in (
        "train",
        "validation",
        "test",
        "cat",
        "dog",
        "majority baseline",
        "8 x 8",
        "tokens",
        "longer than 32",
    ):
        assert part in text
    assert "1 rows cannot be used" in text and "row train[7], image" in text and "7.png" in text
    assert "--on_error skip" in text


def test_json(folder: Path, capsys: Any) -> None:
    assert main(["data", *words(folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert sum(split["num_rows"] for split in report["splits"].values()) == 60
    assert [row["row"] for row in report["broken"]] == ["train[7]"]


def test_duplicates_only_warn(folder: Path, tmp_path: Path, capsys: Any) -> None:
    lines = (folder / "my.csv").read_text().splitlines()
    rows = [line for line in lines[1:] if not line.startswith("7.png")]
    (folder / "twice.csv").write_text("\n".join([lines[0], *rows, *rows]))
    assert main(["data", *words(folder, dataset_name=folder / "twice.csv")[2:]]) == 0
    text = capsys.readouterr().out
    assert "rows occur in several splits with the same inputs" in text and " = " in text
    assert "Every row can be used." in text


def test_recipe_preview_and_streaming(tmp_path: Path, capsys: Any) -> None:
    recipe = tmp_path / "digits.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "out")))
    assert main(["data", str(recipe), "--preview", str(tmp_path / "data.png"), "--max_train_samples", "30"]) == 0
    assert (tmp_path / "data.png").stat().st_size > 10_000
    assert "30" in capsys.readouterr().out
    assert main(["data", str(recipe), "--streaming", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "only the first 1,000 rows" in report["note"] and report["splits"]["train"]["num_rows"] == 40
    assert not (tmp_path / "out").exists(), "nothing is trained or written"


def test_mistakes(folder: Path, capsys: Any) -> None:
    assert main(["data", *words(folder, image="foto")]) == 2
    assert "did you mean 'photo'" in capsys.readouterr().err
    assert main(["data"]) == 2
    assert "names no data" in capsys.readouterr().err


def test_help(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["data", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(part in text for part in ("[RECIPE]", "--json", "--preview FILE", "The exit code is 1"))


def test_no_encoders_are_needed_merely_to_look(folder: Path, tmp_path: Path, capsys: Any) -> None:
    table = ["--data", str(folder / "my.csv"), "--label", "kind"]
    assert main(["data", *table, "--preview", str(tmp_path / "a.png")]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "Read: photo (image), title (text)." in text and "row train[7], photo" in text and "8 x 8" in text
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert main(["data", *table, "--image", "photo", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert list(report["splits"]["train"]["missing"]) == ["image"]
    assert main(["data", "--data", str(folder / "my.csv")]) == 2
    assert "no column 'label' for 'label'" in capsys.readouterr().err


def test_what_is_not_wrong_but_odd_is_mentioned(tmp_path: Path, capsys: Any) -> None:
    lines = ["photo,kind"]
    for index in range(60):
        picture = Image.new("LA", (8, 8), (index, 0 if index % 2 else 255))
        picture.save(tmp_path / f"{index}.png", save_all=True, append_images=[picture.rotate(9)] if index == 7 else [])
        lines.append(f"{index}.png,{['cat', 'Cat ', 'dog'][index % 3]}")
    (tmp_path / "my.csv").write_text("\n".join(lines))
    assert main(["data", "--data", str(tmp_path / "my.csv"), "--image", "photo", "--label", "kind"]) == 0
    text = capsys.readouterr().out
    assert "classes that may be one: 'Cat', 'cat'" in text and "transparent" in text
    assert "several frames: the first" in text


def test_a_terminal_that_lacks_the_letters_of_a_label(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "d.csv").write_text("text,label\n" + "".join(f"w{i},{'猫犬'[i % 2]}\n" for i in range(30)))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    assert main(["data", "--data", str(tmp_path / "d.csv")]) == 0
    assert b"\\u732b" in written.getvalue()
