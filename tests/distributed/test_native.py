"""Two DDP processes leave the weights that one leaves: silenced streams, dropped tokens, encoders that run again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_dgl import DGLTrainer, DGLTrainingArguments
from tests.architectures.test_trainer import Rows
from tests.architectures_tiny import TINY
from tests.processes import as_launched
from tests.tiers import slow_but

NAMES = ["BridgeTowerForImageAndTextRetrieval", "LxmertForQuestionAnswering", "FlavaForSequenceClassification"]


def train(name: str, folder: str, processes: int = 1) -> None:
    """Two steps; the weights are left in FOLDER/PROCESSES.pt."""
    model, batch = TINY[name]()
    rows = Rows({key: torch.cat([value, value[:1]]) for key, value in batch.items()}, 8)
    arguments = DGLTrainingArguments(
        folder,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        max_steps=2,
        save_strategy="no",
        per_device_train_batch_size=4 // processes,
        learning_rate=1e-2,
        optim="sgd",
    )
    trainer = DGLTrainer(model, arguments, train_dataset=rows)
    trainer.train()
    if trainer.is_world_process_zero():
        plain = trainer.accelerator.unwrap_model(trainer.model)
        torch.save(plain.state_dict(), Path(folder, f"{processes}.pt"))


def train_one_of_two(rank: int, name: str, folder: str) -> None:
    train(name, folder, processes=2)


@pytest.mark.parametrize("name", slow_but("LxmertForQuestionAnswering", of=NAMES))
def test_two_processes_equal_one(name, tmp_path):
    train(name, str(tmp_path))
    as_launched(train_one_of_two, name, str(tmp_path))
    one, two = (torch.load(tmp_path / f"{processes}.pt") for processes in (1, 2))
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], atol=1e-6, rtol=1e-5, msg=f"{name}: {key}")
