"""The shares that weigh the losses of `adaptive_dgl` are the same on all processes, and those of the whole batch."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hf_dgl.method.adaptive import ChanceLevel, Explained
from hf_dgl.method.passes import MULTIMODAL
from tests.processes import in_two_processes

LABELS = torch.tensor([0, 1, 1, 2, 2, 2])
LOSSES = [{MULTIMODAL: 0.2, "image": 0.5, "text": 1.0}, {MULTIMODAL: 0.4, "image": 0.7}]  # no text on process 1


def follow(losses: list[dict[str, float]], labels: torch.Tensor) -> Explained:
    explained = Explained(["image", "text"], ChanceLevel("single_label_classification", 3))
    for scale in (1.0, 0.5):
        for entry in losses:
            explained.update({name: torch.tensor(scale * loss) for name, loss in entry.items()}, labels)
    return explained


def work(rank: int, folder: str) -> None:
    explained = follow([LOSSES[rank]], LABELS[rank::2])
    Path(folder, f"{rank}.json").write_text(json.dumps(explained.state_dict()))


def test_two_processes_know_what_one_knows(tmp_path):
    in_two_processes(work, str(tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    means = {MULTIMODAL: 0.3, "image": 0.6, "text": 1.0}
    alone = follow([means], LABELS).state_dict()
    torch.testing.assert_close(torch.tensor(first["running"]), torch.tensor(alone["running"]))
    assert first["sums"] == alone["sums"]
