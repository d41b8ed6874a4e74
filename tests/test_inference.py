"""`CrossModalPipeline`: any subset of modalities, single or batch, from values or files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_dgl.inference import CrossModalPipeline
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
