"""The callback: in any run of a DGLTrainer, with numbers that are right, and words that follow from them."""

from __future__ import annotations

import pytest
from transformers import Trainer

from hf_dgl.analysis.diagnosis.callback import DiagnoseGradients, Suppression, suppression
from tests.training.test_trainer import make


def log(*ratios: float, name: str = "image") -> list[dict[str, float]]:
    return [{"step": i, f"grad_ratio_{name}": r, f"grad_cosine_{name}": 0.5} for i, r in enumerate(ratios)]


def test_a_run_in_numbers() -> None:
    found = suppression(log(1.0, 0.9, 0.8, 0.7, 0.6, 0.5), "image")
    assert found is not None
    assert found.first == 1.0 and found.last == pytest.approx(0.55) and found.cosine == 0.5
    assert found.error == pytest.approx(0.05)  # of two values, 0.1 apart
    assert suppression(log(1.0, 0.5), "image") is None and suppression(log(1, 1, 1), "text") is None


@pytest.mark.parametrize(
    ("last", "error", "verdict"),
    [
        (0.4, 0.02, "suppressed"),
        (0.74, 0.02, "slightly suppressed"),  # too close to 0.75 to call it that
        (0.9, 0.02, "slightly suppressed"),
        (0.99, 0.02, "not suppressed"),
        (1.3, 0.02, "not suppressed"),
    ],
)
def test_verdict(last: float, error: float, verdict: str) -> None:
    assert Suppression(1.0, last, error, 0.9).verdict() == verdict


@pytest.mark.parametrize("method", ["joint", "dgl"])
def test_in_a_trainer(tmp_path, method: str) -> None:
    callback = DiagnoseGradients()
    trainer = make(tmp_path, method=method, callbacks=[callback], logging_steps=1, max_steps=4)
    trainer.train()
    assert [entry["step"] for entry in callback.history] == [1, 2, 3, 4]
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    for kept, entry in zip(callback.history, logged, strict=True):
        for key in ("grad_ratio_image", "grad_cosine_text", "loss_image", "loss_multimodal"):
            assert kept[key] == entry[key]
    assert callback.suppression("image") == suppression(logged, "image")
    first, second = callback.summary().splitlines()
    assert first.startswith("image: the multimodal gradient is ") and second.startswith("text: ")


def test_it_measures_as_often_as_it_is_told(tmp_path) -> None:
    callback = DiagnoseGradients(every=2)
    make(tmp_path, method="joint", callbacks=[callback], logging_steps=1, max_steps=4).train()
    assert ["grad_ratio_image" in entry for entry in callback.history] == [True, False, True, False]
    assert "too rarely" in callback.summary()


def test_another_trainer_is_refused(tmp_path) -> None:
    trainer = make(tmp_path, trainer=Trainer, callbacks=[DiagnoseGradients()])
    with pytest.raises(ValueError, match="use DGLTrainer"):
        trainer.train()
