"""A run that resumes is compared with the one that saved; what it sums up goes on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from hf_dgl.method.chance import ChanceLevel
from hf_dgl.method.explained import LATE_FUSION, Explained
from hf_dgl.training import resume
from hf_dgl.training.callbacks import RememberExplained
from hf_dgl.training.resume import compare, settings_of
from hf_dgl.training.sums import RunningMeans
from tests.tiers import slow_but
from tests.tiny import tiny_model
from tests.training.test_trainer import SINGLE, Rows, make, same, weights

RUN = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "logging_steps": 3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    make(folder, method="joint", **RUN).train()
    return folder / "checkpoint-2"


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(resume.logger, "warning", said.append)
    return said


def test_the_same_settings_say_nothing(tmp_path: Path, saved: Path, warnings: list[str]) -> None:
    assert compare(saved, settings_of(make(tmp_path, method="joint", **RUN))) == [] == warnings
    # nor do those that change nothing of what is learned
    other = {"logging_steps": 1, "save_total_limit": 3, "report_to": "none", "log_level": "error"}
    assert compare(saved, settings_of(make(tmp_path / "b", method="joint", **{**RUN, **other}))) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "dgl"}, "method: joint (saved), dgl (asked for)"),
        ({"optim": "sgd"}, "optim: adamw_torch"),
        ({"model": tiny_model(**SINGLE, num_labels=5)}, 'labels: ["single'),
        ({"model": tiny_model(**SINGLE, fusion_type="concat")}, "model.fusion_type: cross_attention (saved), concat"),
        ({"model": tiny_model(**SINGLE, num_fusion_layers=1)}, "model.num_fusion_layers: 2 (saved), 1 (asked for)"),
        ({"encoder_learning_rate": 0.1}, "encoder_learning_rate: not given (saved), 0.1"),
        ({"freeze": ["text"]}, 'freeze: not given (saved), ["text"]'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_another_run_is_refused(tmp_path: Path, saved: Path, settings: dict[str, Any], words: str) -> None:
    trainer = make(tmp_path, **{"method": "joint", **RUN, **settings})
    with pytest.raises(ValueError, match="Cannot resume from .*, which another run saved") as caught:
        trainer.train(resume_from_checkpoint=str(saved))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert f"model_name_or_path: {saved}" in str(caught.value) and "parameters" not in str(caught.value)


def test_a_run_saved_before_there_was_a_choice_of_read_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(**settings: Any) -> dict[str, Any]:
        return settings_of(make(tmp_path, tiny_model(**SINGLE, **settings), method="joint", **RUN))

    for fusion in ({"fusion_read_out": "means"}, {"fusion_type": "concat"}):
        old = asked(**fusion)
        del old["model.fusion_read_out"]
        monkeypatch.setattr(resume, "read_manifest", lambda _, old=old: {"settings": old})
        assert compare(tmp_path, asked(**fusion)) == []
        with pytest.raises(ValueError, match=r"model.fusion_read_out: means \(saved\), products \(asked for\)"):
            compare(tmp_path, asked())


def test_differences_are_named_and_told_in_the_card(tmp_path: Path, saved: Path, warnings: list[str]) -> None:
    settings = {**RUN, "seed": 8, "learning_rate": 3e-2, "train_dataset": Rows(20), "max_steps": 5}
    trainer = make(tmp_path, method="joint", **settings)
    trainer.train(resume_from_checkpoint=str(saved))
    (said,) = warnings
    for words in ("seed: 7 (saved), 8", "(saved), 0.03 (asked for)", "rows of the training data: 24 (saved), 20"):
        assert words in said, said
    from hf_dgl.hub.model_card import create_model_card

    assert "from step 2" in str(create_model_card(trainer)) and "seed: 7 (saved), 8" in str(create_model_card(trainer))


@pytest.mark.slow
def test_another_learning_rate_holds_as_it_is_asked_for(tmp_path: Path, saved: Path) -> None:
    """torch would put back the old one, and the card would state the new."""
    settings = {"method": "joint", **RUN, "logging_steps": 1, "lr_scheduler_type": "linear"}
    whole = make(tmp_path / "whole", learning_rate=0.02, weight_decay=0.1, **settings)
    whole.train()
    resumed = make(tmp_path / "resumed", learning_rate=0.02, weight_decay=0.1, **settings)
    resumed.train(resume_from_checkpoint=str(saved))
    rates = [
        [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry] for run in (whole, resumed)
    ]
    assert rates[1][-2:] == pytest.approx(rates[0][-2:])
    groups = [[group["weight_decay"] for group in run.optimizer.param_groups] for run in (whole, resumed)]
    assert groups[0] == groups[1]


@pytest.mark.slow
def test_a_plateau_cannot_be_moved(tmp_path: Path) -> None:
    settings = {**RUN, "lr_scheduler_type": "reduce_lr_on_plateau", "eval_dataset": Rows(8), "eval_strategy": "steps"}
    settings |= {"eval_steps": 2, "metric_for_best_model": "loss"}
    make(tmp_path, **settings).train()
    with pytest.raises(ValueError, match="cannot begin anew with another learning rate"):
        make(tmp_path, learning_rate=0.5, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def without_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    state = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps({**state, "stateful_callbacks": {}}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": tiny_model(**SINGLE, num_labels=5)}, "it holds another model .size mismatch for classifier"),
        ({"optim": "sgd"}, "state of another optimizer, which differs in"),
    ],
)
def test_without_a_manifest_what_does_not_fit_is_one_sentence(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    make(tmp_path, **RUN).train()
    without_manifest(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match=words):
        make(tmp_path, **{**RUN, **settings}).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# ---- sums ----


@pytest.mark.parametrize("method", slow_but("dgl", of=["dgl", "ogm_ge"]))
def test_what_is_logged_after_a_resume_is_what_the_uninterrupted_run_logs(tmp_path: Path, method: str) -> None:
    """The first logs after it are of steps before and after it; `train_loss` and `train_runtime` are of all steps."""
    settings = {**RUN, "max_steps": 7, "method": method, "log_gradients": True, "gradient_accumulation_steps": 2}
    whole = make(tmp_path / "whole", **settings)
    first = whole.train()
    resumed = make(tmp_path / "resumed", **settings)
    second = resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    same(weights(whole), weights(resumed))
    assert second.training_loss == first.training_loss
    timed = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
    for one, other in zip(whole.state.log_history, resumed.state.log_history, strict=True):
        assert {key: one[key] for key in one if key not in timed} == {
            key: other[key] for key in other if key not in timed
        }
    kept = json.loads((tmp_path / "whole" / "checkpoint-2" / "trainer_state.json").read_text())
    seconds = kept["stateful_callbacks"]["Sums"]["seconds"]
    assert seconds > 0 and second.metrics["train_runtime"] > seconds
    ratio = second.metrics["train_steps_per_second"] * second.metrics["train_runtime"]
    assert ratio == pytest.approx(7, rel=0.01)


def test_running_means_go_on_bit_for_bit() -> None:
    torch.manual_seed(0)
    values = torch.rand(1000)
    whole, part = RunningMeans(), RunningMeans()
    for value in values:
        whole.add("image", value)
    for value in values[:333]:
        part.add("image", value)
    kept = json.loads(json.dumps(part.state_dict(["image", "text"], "cpu")))
    assert kept["text"] == [0.0, 0] and kept["image"][1] == 333
    resumed = RunningMeans()
    resumed.load_state_dict(kept, "cpu")
    for value in values[333:]:
        resumed.add("image", value)
    assert resumed.means(["image", "text"], "cpu") == whole.means(["image", "text"], "cpu")
    assert whole.means(["image"], "cpu")["image"] == pytest.approx(values.mean().item())
    resumed.clear()
    assert resumed.means(["image"], "cpu") == {}


@pytest.mark.parametrize(
    ("method", "is_old", "is_told"), [("adaptive_dgl", 1, 1), ("adaptive_dgl", 0, 0), ("dgl", 1, 0)]
)
def test_a_run_that_goes_on_by_another_rule_is_told(
    method: str, is_old: int, is_told: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("hf_dgl"), "propagate", True)
    explained = Explained(["image", "text"], ChanceLevel("single_label_classification", 3))
    kept = explained.state_dict()
    if is_old:
        del kept[LATE_FUSION]
    callback = RememberExplained(lambda: explained, lambda: True)
    state = TrainerState()
    state.stateful_callbacks = {"Explained": kept}
    callback.on_train_begin(SimpleNamespace(method=method), state, TrainerControl())
    assert caplog.text.count("had another rule") == is_told
