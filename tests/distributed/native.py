"""Two steps of `DGLTrainer` on checkpoints as they are; run by one process, or by two under `torchrun`.

    python -m tests.distributed.native FOLDER NAME ...

The weights are left in FOLDER/NAME-<number of processes>.pt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from hf_dgl import DGLTrainer, DGLTrainingArguments
from hf_dgl.training.parallelism import leave_process_group
from tests.architectures.test_trainer import Rows
from tests.architectures_tiny import TINY


def train(name: str, folder: str, processes: int) -> None:
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
        torch.save(plain.state_dict(), Path(folder, f"{name}-{processes}.pt"))


if __name__ == "__main__":
    for name in sys.argv[2:]:
        train(name, sys.argv[1], int(os.environ.get("WORLD_SIZE", "1")))
    leave_process_group()
