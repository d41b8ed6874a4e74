from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_dgl.training import trainer as module
from hf_dgl.training.arguments import DGLTrainingArguments
from hf_dgl.training.modality_dropout import drop_modalities
from tests.training.small import build
from tests.training.test_trainer import Rows, make, same, weights

NAMES = ("image", "audio", "text")


def drop(has: torch.Tensor, probability: float, seed: int = 0) -> torch.Tensor:
    batch: dict[str, Any] = {
        name: {"values": torch.zeros(len(has), 2), "present": has[:, index]} for index, name in enumerate(NAMES)
    }
    found = drop_modalities(batch, NAMES, probability, torch.Generator().manual_seed(seed))
    assert all(found[name]["values"] is batch[name]["values"] for name in NAMES)
    return torch.stack([found[name]["present"] for name in NAMES], dim=1)


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.9, 1.0])
def test_how_often_and_one_stays(probability: float) -> None:
    stays = drop(torch.ones(20_000, 3, dtype=torch.bool), probability)
    assert stays.any(dim=1).all()
    expected = 1 - probability + probability**3 / 3  # all three would be lost: one of them stays, each as likely
    assert stays.float().mean(dim=0).tolist() == pytest.approx([expected] * 3, abs=0.012)


def test_rows_that_lack_something_lose_no_more_than_they_have() -> None:
    has = torch.tensor([[True, False, False], [False, True, True], [False, False, False]]).repeat(200, 1)
    stays = drop(has, 0.8)
    assert not (stays & ~has).any()
    assert stays[0::3].equal(has[0::3])  # the only one
    assert stays[1::3].any(dim=1).all() and not stays[1::3].equal(has[1::3])


def test_what_a_batch_lacks_is_left_out() -> None:
    batch = {"text": {"ids": torch.zeros(3, 2)}, "labels": torch.zeros(3)}
    found = drop_modalities(batch, NAMES, 1.0, torch.Generator().manual_seed(0))
    assert set(found) == {"text", "labels"} and found["text"]["present"].all()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """`present` of every batch that lost something."""
    lost: list[Any] = []

    def record(*arguments: Any) -> Any:
        batch = drop_modalities(*arguments)
        lost.append(torch.stack([batch[name]["present"] for name in ("image", "text")]).tolist())
        return batch

    monkeypatch.setattr(module, "drop_modalities", record)
    return lost


def test_only_in_training_and_the_same_again_and_when_resumed(tmp_path: Path, seen: list[Any]) -> None:
    settings = {"method": "joint", "modality_dropout": 0.5, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    settings["gradient_accumulation_steps"] = 2
    whole = make(tmp_path / "whole", eval_dataset=Rows(8), **settings)
    before = whole.evaluate()
    assert not seen
    plain = make(tmp_path / "plain", eval_dataset=Rows(8), **{**settings, "modality_dropout": 0.0})
    assert plain.evaluate()["eval_loss"] == before["eval_loss"]
    whole.train()
    drawn = list(seen)
    assert len(drawn) == 6 == len({str(batch) for batch in drawn})  # three batches an epoch
    plain.train()
    assert len(seen) == 6
    with pytest.raises(AssertionError):
        same(weights(plain), weights(whole))
    seen.clear()
    resumed = make(tmp_path / "whole", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert seen == drawn[3:]
    same(weights(resumed), weights(whole))


def test_the_loss_of_a_row_does_not_read_what_it_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of SGD with every text marked as absent is one step on rows without text."""

    def lose_text(batch: Any, *_: Any) -> Any:
        return {**batch, "text": {**batch["text"], "present": torch.zeros(8, dtype=torch.bool)}}

    class WithoutText(Rows):
        def __getitem__(self, index: int) -> Any:
            return {name: value for name, value in super().__getitem__(index).items() if name != "text"}

    settings = {"method": "joint", "max_steps": 1, "optim": "sgd", "learning_rate": 0.1}
    monkeypatch.setattr(module, "drop_modalities", lose_text)
    lost = make(tmp_path / "lost", modality_dropout=0.5, **settings)
    lost.train()
    without = make(tmp_path / "without", train_dataset=WithoutText(), **settings)
    without.train()
    same(weights(lost), weights(without), rtol=1e-5, atol=1e-6)


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Small cannot do: it needs a model that is built from `encoders`"):
        build(tmp_path, method="joint", modality_dropout=0.3)
    with pytest.raises(ValueError, match="modality_dropout: expected a number from 0 to 1, got 1.5"):
        DGLTrainingArguments(str(tmp_path), modality_dropout=1.5)
