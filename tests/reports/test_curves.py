"""Curves of a training run: which numbers they show, and that every logger gets the same ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import TrainerCallback

from hf_dgl.recipe.finetune import FinetuneResult, finetune
from hf_dgl.recipe.recipe import make_recipe
from hf_dgl.reports.curves import PICTURES, as_svg, draw, panels, save_pictures
from tests.recipes import tiny_recipe

LOG: list[dict[str, Any]] = [
    {"step": 0, "eval_loss": 2.0, "eval_accuracy": 0.1, "eval_accuracy_image": 0.2, "eval_accuracy_text": 0.3},
    {"step": 1, "loss": 6.0, "loss_multimodal": 1.0, "loss_image": 2.0, "grad_norm": 9.0, "grad_norm_image": 4.0},
    {
        "step": 2,
        "loss": 5.0,
        "loss_multimodal": 0.5,
        "loss_image": math.nan,
        "grad_norm": 8.0,
        "grad_norm_fusion": 3.0,
    },
    {"step": 2, "loss": 5.0, "grad_ratio_image": 0.4},
    {"step": 2, "eval_loss": 1.0, "eval_accuracy": 0.4},
    {"step": 2, "eval_loss": 1.0, "eval_accuracy": 0.5},
    {"step": 2, "train_loss": 5.5},
]


def test_what_is_drawn() -> None:
    found = panels(LOG, ["image", "text"], None)
    assert found["losses"].lines == {"fused": [(1, 1.0), (2, 0.5)], "image": [(1, 2.0)]}  # no NaN, no empty line
    scores = {"fused": [(0, 0.1), (2, 0.5)], "image alone": [(0, 0.2)], "text alone": [(0, 0.3)]}
    assert found["scores"].lines == scores and found["scores"].y_label == "accuracy"
    assert found["gradient_norms"].lines == {"fusion": [(2, 3.0)], "image encoder": [(1, 4.0)]}


def test_other_problems_and_plain_training() -> None:
    log = [{"step": 3, "eval_mae": 0.7, "eval_loss": 1.0}, {"step": 3, "loss": 1.0, "grad_norm": 2.0}]
    found = panels(log, ["image"], "regression")
    assert found["scores"].y_label == "MAE" and found["scores"].lines == {"fused": [(3, 0.7)]}
    assert found["gradient_norms"].lines == {"all parameters": [(3, 2.0)]}  # clipped by one norm
    assert "losses" not in found
    assert panels([], ["image"], None) == {}
    measured = [{"step": 5, "loss": 1.0, "grad_ratio_image": 0.4, "grad_cosine_image": 0.9}]
    assert panels(measured, ["image", "text"], None)["suppression"].lines == {"image": [(5, 0.4)]}


def test_pictures(tmp_path: Path) -> None:
    assert save_pictures(tmp_path, LOG, ["image", "text"], None) == list(PICTURES)
    for name, wanted in PICTURES.items():
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 500 * len(wanted) and picture.height > 300
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 20  # not blank
    assert save_pictures(tmp_path, [], ["image"], None) == []
    assert list(tmp_path.iterdir()) == []  # pictures of an earlier run are no pictures of this one


def test_axes_of_many_points() -> None:
    """More points than can be read: the running mean, and the points pale behind it."""
    log = [{"step": step, "grad_norm_image": 10.0 ** (step % 2)} for step in range(100)]
    panel = panels(log, ["image"], None)["gradient_norms"]
    axes = draw([panel]).axes[0]
    points, mean = axes.get_lines()
    assert axes.get_yscale() == "log" and points.get_alpha() < 0.5 and len(mean.get_ydata()) == 100
    assert points.get_ydata()[10] == 1.0 and 4 < mean.get_ydata()[50] < 7


def test_svg_is_the_same_every_time_and_needs_no_other_file() -> None:
    panel = panels(LOG, ["image", "text"], None)["scores"]
    text = as_svg(panel)
    assert text is not None and text.startswith("<svg") and text == as_svg(panel)
    assert "xlink:href" in text and 'xlink:href="http' not in text


class Logger(TrainerCallback):
    """What any integration (TensorBoard, W&B, Trackio) sees."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.seen.append({"step": state.global_step, **logs})


@pytest.fixture
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[FinetuneResult, Logger, Path]:
    import hf_dgl.recipe.finetune

    logger, make = Logger(), hf_dgl.recipe.finetune.build_trainer
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))

    def with_logger(*args: Any) -> Any:
        trainer = make(*args)
        trainer.add_callback(logger)
        return trainer

    monkeypatch.setattr(hf_dgl.recipe.finetune, "build_trainer", with_logger)
    pytest.importorskip("tensorboard")
    values = tiny_recipe(tmp_path / "out", eval_strategy="steps", eval_steps=1, report_to="tensorboard")
    return finetune(make_recipe(values)), logger, tmp_path / "tensorboard"


def test_every_logger_gets_the_numbers_that_are_drawn(logged: tuple[FinetuneResult, Logger, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result, logger, folder = logged
    drawn = panels(result.trainer.state.log_history, ["image", "text"], None)
    callback = panels(logger.seen, ["image", "text"], None)
    assert drawn == callback and set(drawn) == {"losses", "scores", "gradient_norms"}

    board = EventAccumulator(str(folder)).Reload()
    names = {"fused": "train/loss_multimodal", "image": "train/loss_image", "text": "train/loss_text"}
    for line, tag in names.items():
        assert [(event.step, pytest.approx(event.value)) for event in board.Scalars(tag)] == drawn["losses"].lines[
            line
        ]
    for line, tag in {"fusion": "fusion", "image encoder": "image", "text encoder": "text"}.items():
        events = board.Scalars(f"train/grad_norm_{tag}")
        assert [(event.step, pytest.approx(event.value)) for event in events] == drawn["gradient_norms"].lines[line]
    events = {event.step: event.value for event in board.Scalars("eval/accuracy_text")}
    assert events == pytest.approx(dict(drawn["scores"].lines["text alone"]))
