"""`predict_file`: formats, columns, broken rows, a kill in the middle, and jobs that are not the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from PIL import Image

from hf_dgl.inference.cross_modal_pipeline import CrossModalPipeline
from hf_dgl.inference.predictions import predict_file
from tests import tiny
from tests.tiers import slow_but

NUM_ROWS = 20


@pytest.fixture(scope="module")
def pipeline() -> CrossModalPipeline:
    return CrossModalPipeline(tiny.tiny_model(("image", "text")), tiny.tiny_processor(("image", "text")), device="cpu")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Every third row lacks its image, paths are relative to the file."""
    (tmp_path / "pictures").mkdir()
    lines = []
    for i in range(NUM_ROWS):
        Image.new("RGB", (16, 16), (10 * i, 0, 99)).save(tmp_path / "pictures" / f"{i}.png")
        photo = f"pictures/{i}.png" if i % 3 else None
        lines.append(json.dumps({"id": f"r{i}", "photo": photo, "text": f"a digit {i}"}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "rows.jsonl"


MAPPING = {"image": "photo"}


def test_formats_agree_with_the_pipeline(pipeline: CrossModalPipeline, rows: Path) -> None:
    folder = rows.parent
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        done = predict_file(pipeline, rows, folder / name, MAPPING, keep=["id"], batch_size=3)
        assert (done.num_rows, done.num_errors, done.num_resumed) == (NUM_ROWS, 0, 0)
    lines = [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(NUM_ROWS))
    direct = pipeline(image=str(folder / "pictures/1.png"), text="a digit 1")
    assert lines[1]["scores"] == pytest.approx(direct["scores"], abs=1e-5)
    assert lines[1]["input"] == {"id": "r1"}
    assert set(lines[0]["modalities"]) == {"text"} and set(lines[1]["modalities"]) == {"image", "text"}
    for table in (pandas.read_csv(folder / "a.csv"), pandas.read_parquet(folder / "a.parquet")):
        assert list(table["label"]) == [line["label"] for line in lines]
        assert list(table["input.id"]) == [f"r{i}" for i in range(NUM_ROWS)]
        assert table["modalities.image.score"].isna().sum() == 7
    assert sorted(path.name for path in folder.iterdir()) == [
        "a.csv",
        "a.jsonl",
        "a.parquet",
        "pictures",
        "rows.jsonl",
    ]


def test_csv_and_parquet_in(pipeline: CrossModalPipeline, rows: Path) -> None:
    table = pandas.read_json(rows, lines=True)
    table.to_csv(rows.with_suffix(".csv"), index=False)
    table.to_parquet(rows.with_suffix(".parquet"))
    for suffix in (".csv", ".parquet"):
        done = predict_file(pipeline, rows.with_suffix(suffix), rows.parent / f"from{suffix}", MAPPING, top_k=1)
        assert (done.num_rows, done.num_errors) == (NUM_ROWS, 0)


def test_a_modality_without_a_column_is_told(pipeline: CrossModalPipeline, rows: Path, monkeypatch: Any) -> None:
    told: list[str] = []
    monkeypatch.setattr("hf_dgl.inference.predictions.logger.warning", told.append)
    predict_file(pipeline, rows, rows.parent / "a.jsonl", keep=["id"])
    assert "no column 'image', so every row is labelled without" in told[0]
    assert told[0].endswith("other columns are ['photo']; if one of them is meant: --image COLUMN.")
    predict_file(pipeline, rows, rows.parent / "b.jsonl", keep=["id", "photo"])
    predict_file(pipeline, rows, rows.parent / "c.jsonl", MAPPING)
    assert len(told) == 1


def test_goes_on_after_a_kill(pipeline: CrossModalPipeline, rows: Path, monkeypatch: Any) -> None:
    whole, killed = rows.parent / "whole.jsonl", rows.parent / "killed.jsonl"
    predict_file(pipeline, rows, whole, MAPPING, batch_size=4)
    seen: list[int] = []
    forward = pipeline._forward

    def dies(batch: Any, **kwargs: Any) -> Any:
        seen.append(len(batch["errors"]))
        if sum(seen) > 12:
            raise KeyboardInterrupt
        return forward(batch, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_forward", dies)
        with pytest.raises(KeyboardInterrupt):
            predict_file(pipeline, rows, killed, MAPPING, batch_size=4)
    assert not killed.exists()
    partial = killed.with_name("killed.jsonl.partial")
    partial.write_bytes(partial.read_bytes()[:-30])  # the last line was being written
    done = predict_file(pipeline, rows, killed, MAPPING, batch_size=4)
    assert done.num_resumed == 11 and not partial.exists()
    for left, right in zip(killed.read_text().splitlines(), whole.read_text().splitlines(), strict=True):
        assert json.loads(left)["row"] == json.loads(right)["row"]
        assert json.loads(left)["scores"] == pytest.approx(json.loads(right)["scores"], abs=1e-5)


@pytest.mark.parametrize("suffix", slow_but(".jsonl", of=[".jsonl", ".csv", ".parquet"]))
@pytest.mark.parametrize(
    "where",
    [("hf_dgl.inference.predictions.islice",), ("os.replace",), (Path, "unlink")],
    ids=["write", "move", "end"],
)
def test_goes_on_after_a_kill_in_the_last_phase(
    pipeline: CrossModalPipeline, rows: Path, monkeypatch: Any, suffix: str, where: tuple[Any, ...]
) -> None:
    """All rows are answered, and the output is being written, moved to its place, or there."""
    whole, killed = rows.parent / f"whole{suffix}", rows.parent / f"killed{suffix}"
    predict_file(pipeline, rows, whole, MAPPING, batch_size=8)

    def dies(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*where, dies)
        with pytest.raises(KeyboardInterrupt):
            predict_file(pipeline, rows, killed, MAPPING, batch_size=8)
    assert killed.exists() == (where == (Path, "unlink"))
    done = predict_file(pipeline, rows, killed, MAPPING, batch_size=8)
    assert done.num_resumed == done.num_rows == NUM_ROWS and killed.read_bytes() == whole.read_bytes()
    assert not list(rows.parent.glob("*killed*.partial")) and not list(rows.parent.glob(".*.tmp"))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_rows(pipeline: CrossModalPipeline, rows: Path, num_workers: int) -> None:
    (rows.parent / "pictures/5.png").write_text("no image")
    output = rows.parent / "out.parquet"
    with pytest.raises(ValueError, match=r"^Row 5, 'image': Cannot read .*5\.png.*--on_error skip"):
        predict_file(pipeline, rows, output, MAPPING, batch_size=2, num_workers=num_workers)
    assert not output.exists()
    done = predict_file(
        pipeline, rows, output, MAPPING, batch_size=2, on_error="skip", num_workers=num_workers
    )  # the same job: it goes on
    assert (done.num_errors, done.num_resumed) == (1, 4)
    table = pandas.read_parquet(output)
    assert "5.png" in table["error"][5] and table["error"].notna().sum() == 1
    assert table["label"].isna().sum() == 1


def test_another_job_is_refused(pipeline: CrossModalPipeline, rows: Path) -> None:
    (rows.parent / "pictures/5.png").unlink()
    output = rows.parent / "out.jsonl"
    with pytest.raises(ValueError, match="Row 5"):
        predict_file(pipeline, rows, output, MAPPING)
    with pytest.raises(ValueError, match="another job, with another top_k"):
        predict_file(pipeline, rows, output, MAPPING, top_k=2, on_error="skip")
    done = predict_file(pipeline, rows, output, MAPPING, top_k=2, on_error="skip", overwrite=True)
    assert done.num_resumed == 0
    with pytest.raises(ValueError, match="is there already"):
        predict_file(pipeline, rows, output, MAPPING)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"column_mapping": {"image": "phot"}}, "did you mean 'photo'"),
        ({"column_mapping": {"imag": "photo"}}, "did you mean 'image'"),
        ({"column_mapping": {"image": "text"}}, r"used for \['image', 'text'\]"),
        ({"keep": ["idd"]}, "did you mean 'id'"),
        ({"output_file": "out.jsn"}, "did you mean '.jsonl'"),
        ({"input_file": "rows.jsnl"}, "There is no file"),
        ({"output_file": "./rows.jsonl", "overwrite": True}, "is the file of rows itself"),
        ({"batch_size": 0}, "batch_size"),
        ({"top_k": 0}, "top_k"),
    ],
)
def test_mistakes(
    pipeline: CrossModalPipeline, rows: Path, monkeypatch: Any, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(rows.parent)
    before = rows.read_bytes()
    with pytest.raises(ValueError, match=message):
        predict_file(pipeline, **{"input_file": "rows.jsonl", "output_file": "out.jsonl", **settings})
    assert rows.read_bytes() == before
    assert not list(rows.parent.glob("out*"))
