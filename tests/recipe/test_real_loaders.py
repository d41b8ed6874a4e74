"""The loaders of `recipes/real`, on made-up packages of the same form as those that they download."""

from __future__ import annotations

import csv
import io
import json
import runpy
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from hf_dgl.data import load_data

FOLDER = Path(__file__).parents[2] / "recipes" / "real"
KINDS = ("animals", "food", "town", "vehicles")
PER_KIND = 14


def call(script: str, monkeypatch: pytest.MonkeyPatch, *words: Any) -> dict[str, Any]:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr("sys.argv", [script, *map(str, words)])
    return runpy.run_path(str(FOLDER / script), run_name="__main__")


def rows_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    splits = {}
    for name in ("train", "validation", "test"):
        with open(folder / f"{name}.csv", newline="", encoding="utf-8") as file:
            splits[name] = list(csv.DictReader(file))
    return splits


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    """Four categories, a small one, letters, mirrored pictures, and pictures without sentence or speech."""
    root = tmp_path / "package" / "usr/share/tuxpaint/stamps"
    draw = np.random.default_rng(0)
    for kind in (*KINDS, "space", "symbols/alphabets"):
        folder = root / kind / "some"
        folder.mkdir(parents=True)
        for i in range(3 if kind == "space" else PER_KIND):
            stem = folder / f"{i}"
            picture = Image.fromarray(draw.integers(0, 255, (300, 20, 4), np.uint8))
            for name in (f"{i}", f"{i}_mirror"):
                picture.save(folder / f"{name}.png")
            stem.with_suffix(".txt").write_text(f"A nice {kind} picture, number {i}.\nfr.utf8=Une image.\n")
            soundfile.write(folder / f"{i}_desc_fr.ogg", draw.normal(0, 0.1, (4410, 2)), 22050)
        picture.save(folder / "silent.png")
    return tmp_path / "package"


def test_stamps(stamps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    call("stamps.py", monkeypatch, tmp_path / "out", "--package", stamps)
    said = capsys.readouterr().out
    assert "animals 14" in said and "space" not in said and "symbols" not in said
    splits = rows_of(tmp_path / "out")
    assert {name: len(part) for name, part in splits.items()} == {"train": 28, "validation": 8, "test": 20}
    every = [row for part in splits.values() for row in part]
    assert len({row["photo"] for row in every}) == len(every) == PER_KIND * len(KINDS)
    with Image.open(tmp_path / "out" / every[0]["photo"]) as picture:
        assert picture.height == 256
    assert soundfile.info(tmp_path / "out" / every[0]["speech"]).samplerate == 16000
    words = [(word, shown) for row in every for word, shown in zip(*_both(row), strict=True)]
    hidden = [shown == "…" for _, shown in words]
    assert all(shown in (word, "…") for word, shown in words) and 0.4 < np.mean(hidden) < 0.6
    wrong = [row["sentence"] != row["wrong_sentence"] for row in every]
    assert 0.2 < np.mean(wrong) < 0.6
    for part in splits.values():  # exchanged within the split
        assert {row["wrong_sentence"] for row in part} <= {row["sentence"] for row in part}


def _both(row: dict[str, Any]) -> tuple[list[str], list[str]]:
    return row["sentence"].split(), row["hidden_words"].split()


def test_questions_about_stamps(stamps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("stamps.py", monkeypatch, tmp_path / "out", "--package", stamps)
    whole = rows_of(tmp_path / "out")
    kind_of = {row["photo"]: row["category"] for part in whole.values() for row in part}
    nature, question = (rows_of(tmp_path / "out" / task) for task in ("nature", "question"))
    for name, part in nature.items():
        assert {_picture(row) for row in part} == {row["photo"] for row in whole[name]}
        answers: dict[str, list[str]] = {}
        for row in part:
            answers.setdefault(row["photo"], []).append(row["answer"])
        assert all(sorted(pair) == ["no", "yes"] for pair in answers.values())  # the picture tells nothing
    script = call("stamps.py", monkeypatch, tmp_path / "again", "--package", stamps)
    for row in (row for tables in (nature, question) for part in tables.values() for row in part):
        if row["question"] in script["WHAT"]:
            assert row["answer"] == kind_of[_picture(row)]
        else:
            (meant,) = (kinds for kinds, texts in script["QUESTIONS"].items() if row["question"] in texts)
            assert row["answer"] == ("yes" if kind_of[_picture(row)] in meant else "no")
    asked_what = Counter(row["question"] in script["WHAT"] for row in question["train"])
    assert asked_what[True] == asked_what[False]
    columns = {"image": "photo", "text": "question", "label": "answer"}
    read = load_data(str(tmp_path / "out" / "question"), column_mapping=columns, modalities=["image", "text"])
    assert all(Path(row["image"]).is_file() for row in read["test"])


def _picture(row: dict[str, Any]) -> str:
    return row["photo"].removeprefix("../")


def test_the_seed_says_it_all(stamps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        call("stamps.py", monkeypatch, tmp_path / name, "--package", stamps, "--seed", seed)
    a, b, c = ((tmp_path / name / "train.csv").read_text() for name in "abc")
    assert a == b != c


def test_a_package_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for script in ("stamps.py", "emoji.py"):
        with pytest.raises(SystemExit, match="--package: expected"):
            call(script, monkeypatch, tmp_path / "out", "--package", tmp_path / "nothing")


def test_emoji(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = io.BytesIO()
    Image.new("RGBA", (64, 64)).save(picture, "PNG")
    described = [
        {"name": f"NICE {kind} {i}", "short_name": "x", "image": f"{kind}{i}.png", "category": kind}
        | {"has_img_google": i != 0}
        for kind in ("Flags", "Objects", "Symbols")
        for i in range(21)
    ]
    with tarfile.open(tmp_path / "emoji.tgz", "w:gz") as files:
        contents = {"emoji.json": json.dumps(described).encode()}
        contents |= {f"img/google/64/{emoji['image']}": picture.getvalue() for emoji in described}
        for name, content in contents.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            files.addfile(member, io.BytesIO(content))
    call("emoji.py", monkeypatch, tmp_path / "out", "--package", tmp_path / "emoji.tgz")
    splits = rows_of(tmp_path / "out")
    assert {name: len(part) for name, part in splits.items()} == {"train": 20, "validation": 6, "test": 14}
    every = [row for part in splits.values() for row in part]
    assert {row["category"] for row in every} == {"Objects", "Symbols"}
    pairs = [pair for row in every for pair in zip(row["name"], row["misspelt"], strict=True) if pair[0].isalpha()]
    assert 0.2 < np.mean([a != b for a, b in pairs]) < 0.4
