"""ONNX: the graph answers as torch does, for every subset of modalities, batch size and length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hf_dgl.inference.onnx
from hf_dgl.inference.cross_modal_pipeline import CrossModalPipeline
from hf_dgl.inference.onnx import OnnxModel, export_onnx
from tests import tiny

MODALITIES = ("image", "text")
GRAPHS: list[Any] = []


@pytest.fixture(scope="module")
def pipeline() -> CrossModalPipeline:
    model = tiny.tiny_model(MODALITIES, num_fusion_layers=1)
    return CrossModalPipeline(model, tiny.tiny_processor(MODALITIES), device="cpu")


@pytest.fixture(scope="module", params=[pytest.param("cpu", marks=pytest.mark.slow)])  # so is every test of it
def exported(pipeline: CrossModalPipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    file, export = tmp_path_factory.mktemp("onnx") / "model.onnx", hf_dgl.inference.onnx._export
    with pytest.MonkeyPatch.context() as patch:  # it takes its time: once is enough
        patch.setattr(hf_dgl.inference.onnx, "_export", lambda *words: GRAPHS.append(export(*words)) or GRAPHS[-1])
        return str(file), export_onnx(pipeline, file)


def test_every_subset_and_batch_size_is_compared(exported: tuple[str, Any]) -> None:
    file, checks = exported
    subsets = {check.modalities for check in checks}
    assert subsets == {("image",), ("text",), ("image", "text")}
    assert {check.batch_size for check in checks} == {1, 2, 5}
    assert max(check.difference for check in checks) < 1e-5
    assert [path.name for path in Path(file).parent.iterdir() if path.suffix != ".data"] == ["model.onnx"]


def test_rows_that_lack_a_modality(pipeline: CrossModalPipeline, exported: tuple[str, Any]) -> None:
    model = OnnxModel(exported[0])
    rows = tiny.tiny_rows(MODALITIES, num_rows=7)
    images = [row["image"] if i % 2 else None for i, row in enumerate(rows)]
    texts = [row["text"] if i % 3 else None for i, row in enumerate(rows[1:])] + ["a digit"]
    images[0] = rows[0]["image"]
    logits = model(**pipeline.processor(image=images, text=texts))
    probabilities = torch.tensor(logits).softmax(-1)
    answers = pipeline(image=images, text=texts)
    for row, answer in zip(probabilities, answers, strict=True):
        assert row.tolist() == pytest.approx(list(answer["scores"].values()), abs=1e-5)
    assert model.labels == list(answers[0]["scores"])


def test_a_graph_that_differs_is_not_written(
    pipeline: CrossModalPipeline, exported: tuple[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    call = OnnxModel.__call__
    monkeypatch.setattr(hf_dgl.inference.onnx, "_export", lambda *words: GRAPHS[-1])
    monkeypatch.setattr(OnnxModel, "__call__", lambda self, **inputs: call(self, **inputs) + np.float32(0.1))
    with pytest.raises(ValueError, match="does not answer as torch does.*Nothing was written"):
        export_onnx(pipeline, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_unknown_inputs(exported: tuple[str, Any]) -> None:
    with pytest.raises(ValueError, match="audio.input_values"):
        OnnxModel(exported[0])(audio={"input_values": np.zeros((1, 10))})


def test_the_extra_is_named(monkeypatch: Any, pipeline: CrossModalPipeline, tmp_path: Path) -> None:
    monkeypatch.setattr("hf_dgl.models.extras.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"\.\[onnx\]"):
        export_onnx(pipeline, tmp_path / "model.onnx")
