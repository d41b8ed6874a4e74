"""Every fault that a file can have, in every command: the row is named, none is lost silently, no traceback."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from hf_dgl.cli import main
from tests.recipes import TINY
from tests.tiny import SPEECH

ENCODERS = {
    "image": {"model_type": "vit", "image_size": 16, "patch_size": 8, **TINY},
    "audio": {"model_type": "wav2vec2", **{k: list(v) if isinstance(v, tuple) else v for k, v in SPEECH.items()}},
    "text": {"model_type": "bert", "vocab_size": 200, "max_position_embeddings": 34, **TINY},
}
TONE = np.sin(np.arange(1600) / 5) / 2


def _encoded(array: np.ndarray, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, array, 16_000, format=kind, subtype=subtype)
    return buffer.getvalue()


def _claims_2_to_the_36() -> bytes:
    content = bytearray(_encoded(TONE, "FLAC"))
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    return bytes(content)


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((16, 16), 50).convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()


def _write(name: str, content: Callable[[], bytes]) -> Callable[[Path], Any]:
    def write(folder: Path) -> str:
        (folder / name).write_bytes(content())
        return name

    return write


def _pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe.png")
    return "pipe.png"


FAULTS: dict[str, tuple[str, Callable[[Path], Any], str]] = {  # column, its value, what is said
    "picture gone": ("image", lambda folder: "gone.png", "Cannot find the image"),
    "picture cut": ("image", _write("cut.png", lambda: _png()[:-60]), "Cannot read the image"),
    "picture no picture": ("image", _write("text.png", lambda: b"text"), "Cannot read the image"),
    "picture a pipe": ("image", _pipe, "a pipe or device"),
    "picture EPS": ("image", _write("a.eps", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n"), "cannot identify"),
    "picture by address": ("image", lambda folder: "http://localhost:9/a.png", "is an address, no file"),
    "sound short": ("audio", _write("short.wav", lambda: _encoded(TONE[:8])), "is too short: 8 samples"),
    "sound NaN": ("audio", _write("nan.wav", lambda: _encoded(TONE * np.nan, subtype="FLOAT")), "NaN or infinite"),
    "sound infinite": (
        "audio",
        _write("inf.wav", lambda: _encoded(TONE + np.inf, subtype="FLOAT")),
        "NaN or infinite",
    ),
    "sound huge": ("audio", _write("huge.flac", _claims_2_to_the_36), "Cannot read the audio"),
    "sound loud": ("audio", _write("loud.wav", lambda: _encoded(TONE * 1e3, subtype="FLOAT")), "samples up to 500"),
    "text an object": ("text", lambda folder: {"en": "x"}, "expected a string, got dict"),
    "label an object": ("label", lambda folder: {"id": 1}, "its label is no text"),
    "label of another type": ("label", lambda folder: 3, "its label 3 is a number"),
    "label missing": ("label", lambda folder: None, "no label"),
}
OF_LABELS = [name for name, (column, _, _) in FAULTS.items() if column == "label"]


def write_data(folder: Path, faults: list[str], num_rows: int = 24) -> tuple[Path, dict[str, int]]:
    """A folder of train, validation and test, each with these faults in rows 1, 2, ...; and the rows of the faults."""
    folder.mkdir(exist_ok=True)
    (folder / "good.png").write_bytes(_png())
    (folder / "good.wav").write_bytes(_encoded(TONE))
    rows = [
        {"image": "good.png", "audio": "good.wav", "text": "a b"} | {"label": "ab"[i % 2]} for i in range(num_rows)
    ]
    for row, name in enumerate(faults, start=1):
        column, make, _ = FAULTS[name]
        rows[row] = {**rows[row], column: make(folder)}
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, {name: row for row, name in enumerate(faults, start=1)}


def words(folder: Path, out: Path, on_error: str, workers: int, streaming: bool, *more: str) -> list[str]:
    encoders = [f"{name}={json.dumps(config)}" for name, config in ENCODERS.items()]
    common = f"--max_steps 2 --report_to none --use_cpu --disable_tqdm true --save_strategy no --on_error {on_error}"
    common += f" --dataloader_num_workers {workers} --preprocessing_num_workers 1 --per_device_train_batch_size 8"
    common += " --num_fusion_layers 1 --shuffle_buffer_size 1"
    stream = ["--streaming", "--class_names", "a", "b"] if streaming else []
    return ["--data", str(folder), "--output_dir", str(out), "--encoders", *encoders, *common.split(), *stream, *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of good rows."""
    root = tmp_path_factory.mktemp("trained")
    folder, _ = write_data(root / "data", [])
    assert main(["train", *words(folder, root / "out", "raise", 0, False)]) == 0
    return root / "out"


def evaluated(trained: Path, folder: Path, on_error: str, workers: int, streaming: bool) -> int:
    """The exit code of `hf-dgl evaluate` on the folder's test split."""
    stream = ["--streaming", "true", "--class_names", "a", "b"] if streaming else []
    more = ["--dataset_name", str(folder), "--on_error", on_error, "--dataloader_num_workers", str(workers), *stream]
    return main(["evaluate", str(trained), *more])


def slow_unless(fast: bool, *values: Any) -> Any:
    return pytest.param(*values, marks=() if fast else pytest.mark.slow)


WAYS = [slow_unless((w, s) == (0, False), w, s) for w in (0, 2) for s in (False, True)]
RAISES = [
    slow_unless((w, s) == (0, False) and name in ("sound short", "label an object"), name, w, s)
    for name in FAULTS
    for w in (0, 2)
    for s in (False, True)
]


@pytest.mark.parametrize("workers, streaming", WAYS)
def test_skip_leaves_out_each_faulty_row_by_name_and_no_other(
    trained: Path, tmp_path: Path, workers: int, streaming: bool, caplog: Any, capsys: Any
) -> None:
    logging.getLogger("hf_dgl").propagate = True
    names = list(FAULTS)
    folder, rows = write_data(tmp_path / "data", names, num_rows=40)
    assert main(["train", *words(folder, tmp_path / "out", "skip", workers, streaming, "--max_steps", "4")]) == 0
    listed = [json.loads(line) for line in (tmp_path / "out" / "broken_rows.jsonl").read_text().splitlines()]
    found = {(entry["split"], entry["row"]): entry for entry in listed}
    assert len(found) == len(listed) == 3 * len(names)
    for name, row in rows.items():
        column, _, message = FAULTS[name]
        for split in ("train", "validation", "test"):
            entry = found[split, f"{split}[{row}]"]
            assert entry["modality"] == column and message in entry["reason"], (name, entry)
    assert evaluated(trained, folder, "skip", workers, streaming) == 0
    assert "Traceback" not in capsys.readouterr().err
    assert f"test[{rows['picture gone']}]" in caplog.text


@pytest.mark.parametrize("name, workers, streaming", RAISES)
def test_raise_names_the_row(
    trained: Path, tmp_path: Path, name: str, workers: int, streaming: bool, capsys: Any
) -> None:
    folder, rows = write_data(tmp_path / "data", [name])
    message = FAULTS[name][2]
    assert main(["train", *words(folder, tmp_path / "out", "raise", workers, streaming)]) == 2
    said = capsys.readouterr().err
    assert message in said and f"[{rows[name]}]" in said and "Traceback" not in said, said
    assert evaluated(trained, folder, "raise", workers, streaming) == 2
    said = capsys.readouterr().err
    assert message in said and f"test[{rows[name]}]" in said and "Traceback" not in said, said
    assert not multiprocessing.active_children()  # no worker that somebody would wait for later


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_predict(trained: Path, tmp_path: Path, workers: int, capsys: Any) -> None:
    names = [name for name in FAULTS if name not in OF_LABELS and name != "picture by address"]  # it fetches those
    folder, rows = write_data(tmp_path / "data", names)
    common = ["predict", str(trained), "--input", str(folder / "test.jsonl"), "--num_workers", str(workers)]
    answers = tmp_path / "answers.jsonl"
    assert main([*common, "--output", str(answers)]) == 2
    said = capsys.readouterr().err
    assert "Row 1, " in said and "Traceback" not in said
    assert main([*common, "--output", str(answers), "--overwrite", "--on_error", "skip"]) == 0
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    errors = {row["row"]: row["error"] for row in found if "error" in row}
    assert len(found) == 24 and set(errors) == set(rows.values())
    for name, row in rows.items():
        assert FAULTS[name][2] in errors[row], (name, errors[row])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("has_encoders", [False, True])
def test_data_finds_all_of_them_before_training(
    tmp_path: Path, streaming: bool, has_encoders: bool, capsys: Any
) -> None:
    names = [name for name in FAULTS if has_encoders or name != "sound short"]  # the encoder says what is short
    folder, rows = write_data(tmp_path / "data", names, num_rows=40)
    options = words(folder, tmp_path / "out", "raise", 0, streaming)
    if not has_encoders:
        options = ["--data", str(folder), "--image", "image", "--audio", "audio", "--text", "text"]
        options += ["--streaming", "--class_names", "a", "b"] if streaming else []
    assert main(["data", "--json", *options]) == 1
    found = {entry["row"]: entry for entry in json.loads(capsys.readouterr().out)["broken"]}
    for name, row in rows.items():
        for split in ("train", "validation", "test"):
            assert FAULTS[name][2] in found[f"{split}[{row}]"]["reason"], name
    assert len(found) == 3 * len(names)
