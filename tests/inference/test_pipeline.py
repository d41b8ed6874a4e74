"""`CrossModalPipeline`: any subset of modalities, single or batch, from values or files."""

from __future__ import annotations

import functools
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import hf_dgl
from hf_dgl.inference.cross_modal_pipeline import TASK, CrossModalPipeline
from tests import tiny


@pytest.fixture
def pipeline() -> CrossModalPipeline:
    modalities = ("image", "text", "audio")
    return CrossModalPipeline(tiny.tiny_model(modalities), tiny.tiny_processor(modalities))


IMAGE = Image.new("RGB", (20, 10), "red")
AUDIO = np.linspace(-1, 1, 4000, dtype=np.float32)


def test_one_example(pipeline: CrossModalPipeline) -> None:
    answer = pipeline(image=IMAGE, text="a digit", audio=AUDIO)
    assert isinstance(answer, dict)
    assert set(answer) == {"label", "score", "scores", "modalities"}
    assert answer["score"] == max(answer["scores"].values()) == answer["scores"][answer["label"]]
    assert sum(answer["scores"].values()) == pytest.approx(1)
    assert set(answer["modalities"]) == {"image", "text", "audio"}


@pytest.mark.parametrize("given", [("image",), ("text",), ("audio",), ("image", "audio"), ("text", "audio")])
def test_any_subset(pipeline: CrossModalPipeline, given: tuple[str, ...]) -> None:
    values = {"image": IMAGE, "text": "a digit", "audio": AUDIO}
    answer = pipeline(**{name: values[name] for name in given})
    assert isinstance(answer, dict)
    assert set(answer["modalities"]) == set(given)
    if len(given) == 1:  # alone means alone
        assert answer["modalities"][given[0]]["score"] == pytest.approx(answer["score"])


def test_batch_equals_single(pipeline: CrossModalPipeline) -> None:
    answers = pipeline(image=[IMAGE, None], text=["a digit", "the sound is loud"])
    assert isinstance(answers, list)
    alone = [pipeline(image=IMAGE, text="a digit"), pipeline(text="the sound is loud")]
    for answer, single in zip(answers, alone, strict=True):
        assert isinstance(single, dict)
        assert answer["scores"] == pytest.approx(single["scores"], abs=1e-5)
        assert set(answer["modalities"]) == set(single["modalities"])


def test_files(pipeline: CrossModalPipeline, tmp_path: Path) -> None:
    import soundfile

    IMAGE.save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", AUDIO, 16000, subtype="FLOAT")
    from_files = pipeline(image=str(tmp_path / "a.png"), audio=str(tmp_path / "a.wav"))
    from_values = pipeline(image=IMAGE, audio=AUDIO)
    assert isinstance(from_files, dict) and isinstance(from_values, dict)
    assert from_files["scores"] == pytest.approx(from_values["scores"])


def test_multi_label_and_regression() -> None:
    model, processor = tiny.tiny_model(("text",)), tiny.tiny_processor(("text",))
    model.config.problem_type = "multi_label_classification"
    answer = CrossModalPipeline(model, processor)(text="a digit")
    assert isinstance(answer, dict)
    assert answer["label"] == [name for name, score in answer["scores"].items() if score >= 0.5]
    model.config.problem_type = "regression"
    model.classifier = torch.nn.Linear(model.classifier.in_features, 1)
    answer = CrossModalPipeline(model, processor)(text="a digit")
    assert isinstance(answer, dict) and set(answer) == {"score", "modalities"}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "at least one of the modalities"),
        ({"text": None}, "at least one of the modalities"),
        ({"smell": "rose"}, "Unknown modality 'smell': this model has"),
        ({"image": [IMAGE], "text": ["a", "b"]}, "as many entries as the others"),
        ({"image": "nowhere.png"}, "nowhere.png"),
    ],
)
def test_mistakes(pipeline: CrossModalPipeline, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(**inputs)


def test_top_k_and_fused_only(pipeline: CrossModalPipeline) -> None:
    answer = pipeline(image=IMAGE, text="a digit", top_k=2)
    assert len(answer["scores"]) == 2 and next(iter(answer["scores"])) == answer["label"]
    assert list(answer["scores"].values()) == sorted(answer["scores"].values(), reverse=True)
    fused = pipeline(image=IMAGE, text="a digit", unimodal=False)
    assert "modalities" not in fused and fused["score"] == pytest.approx(answer["score"])


def test_rows_streams_and_data_sets(pipeline: CrossModalPipeline) -> None:
    rows = [{"text": text, "other": 1} for text in ("a digit", "the sound", "a digit is loud")]
    expected = [pipeline(row)["score"] for row in rows]
    data = datasets.Dataset.from_list(rows)
    for inputs in (rows, (row for row in rows), data, data.to_iterable_dataset()):
        found = [answer["score"] for answer in pipeline(inputs, batch_size=2)]
        assert found == pytest.approx(expected, abs=1e-5)
    assert [a["score"] for a in pipeline(data, batch_size=2, num_workers=1)] == pytest.approx(expected, abs=1e-5)
    assert pipeline([]) == []


def test_long_audio_is_read_in_windows(pipeline: CrossModalPipeline) -> None:
    audio = np.sin(np.arange(8000) * np.linspace(0.01, 0.5, 8000)).astype(np.float32)
    part = pipeline.processor.processors["audio"]
    part.max_audio_seconds = 0.25  # as training would have noted: 4000 samples
    try:
        middle = pipeline(audio=audio)
        assert middle["score"] == pytest.approx(pipeline(audio=audio[2000:6000])["score"], abs=1e-5)
        windows = [pipeline(audio=piece, text="a digit") for piece in (audio[:4000], audio[4000:])]
        logits = np.mean([np.log(list(answer["scores"].values())) for answer in windows], axis=0)
        together = pipeline(audio=[audio, audio[:4000], None], text=["a digit"] * 3, long_audio="windows")
        expected = np.exp(logits) / np.exp(logits).sum()
        assert list(together[0]["scores"].values()) == pytest.approx(expected, abs=1e-4)
        assert together[1]["scores"] == pytest.approx(windows[0]["scores"], abs=1e-4)
        assert set(together[0]["modalities"]) == {"audio", "text"} and set(together[2]["modalities"]) == {"text"}
        assert together[2]["scores"] == pytest.approx(pipeline(text="a digit")["scores"], abs=1e-4)
    finally:
        del part.max_audio_seconds
    with pytest.raises(ValueError, match="long_audio: expected one of .'crop', 'windows'."):
        pipeline(audio=audio, long_audio="window")


def test_a_missing_file_gets_no_advice_about_data_files(pipeline: CrossModalPipeline) -> None:
    with pytest.raises(ValueError, match=r"^'image': Cannot find the image file 'nowhere.png'\.$"):
        pipeline(image="nowhere.png")
    with pytest.raises(ValueError, match="Scale it first"):  # advice that is about the value itself stays
        pipeline(image=np.zeros((4, 4), dtype=np.float32))


def test_errors_name_the_row_or_become_answers(pipeline: CrossModalPipeline) -> None:
    images = [IMAGE, "nowhere.png", IMAGE]
    with pytest.raises(ValueError, match="^Row 1, 'image': Cannot find"):
        pipeline(image=images)
    first, broken, last = pipeline(image=images, on_error="skip")
    assert set(broken) == {"error"} and "nowhere.png" in broken["error"]
    assert first["score"] == pytest.approx(last["score"])
    assert "error" in pipeline(image="nowhere.png", on_error="skip")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("saved")
    pipe = CrossModalPipeline(tiny.tiny_model(("image", "text")), tiny.tiny_processor(("image", "text")))
    pipe.save_pretrained(folder)
    return str(folder)


def test_transformers_and_hf_dgl_load_it(saved: str) -> None:
    answers = [
        load(image=IMAGE, text="a digit")["scores"]
        for load in (hf_dgl.pipeline(saved), transformers.pipeline(TASK, model=saved, device="cpu"))
    ]
    assert answers[0] == pytest.approx(answers[1])
    assert hf_dgl.pipeline(saved, dtype="bfloat16").dtype == torch.bfloat16
    assert "score" in hf_dgl.pipeline(saved, dtype="bfloat16")(image=IMAGE)


@pytest.mark.parametrize("settings", [{"device": "cudaa"}, {"dtype": "flaot"}])
def test_device_and_dtype_that_are_not_there(saved: str, settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings.values()))):
        hf_dgl.pipeline(saved, **settings)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    IMAGE.save(tmp_path / "a.png")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/slow.png":
                time.sleep(1)
            super().do_GET()

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_addresses(pipeline: CrossModalPipeline, server: str) -> None:
    assert pipeline(image=f"{server}/a.png")["scores"] == pytest.approx(pipeline(image=IMAGE)["scores"])
    assert pipeline(text=f"{server}/a.png")["label"]  # a text is a text
    with pytest.raises(ValueError, match=r"Cannot fetch http.*/gone\.png: the server answered 404"):
        pipeline(image=f"{server}/gone.png")
    with pytest.raises(ValueError, match=r"slow\.png: no answer within 0\.2 seconds"):
        pipeline(image=f"{server}/slow.png", timeout=0.2)
    with pytest.raises(ValueError, match="Cannot fetch http://127.0.0.1:9/a.png"):
        pipeline(image="http://127.0.0.1:9/a.png")
