"""The shares that weigh the losses of `adaptive_dgl` are the same on all processes, and those of the whole batch."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import torch
import torch.multiprocessing

from hf_dgl.adaptive import ChanceLevel, Explained
from hf_dgl.passes import MULTIMODAL

LABELS = torch.tensor([0, 1, 1, 2, 2, 2])
LOSSES = [{MULTIMODAL: 0.2, "image": 0.5, "text": 1.0}, {MULTIMODAL: 0.4, "image": 0.7}]  # no text on process 1


def follow(losses: list[dict[str, float]], labels: torch.Tensor) -> Explained:
    explained = Explained(["image", "text"], ChanceLevel("single_label_classification", 3))
    for scale in (1.0, 0.5):
        for entry in losses:
            explained.update({name: torch.tensor(scale * loss) for name, loss in entry.items()}, labels)
    return explained


def work(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    explained = follow([LOSSES[rank]], LABELS[rank::2])
    Path(folder, f"{rank}.json").write_text(json.dumps(explained.state_dict()))
    torch.distributed.destroy_process_group()


def test_two_processes_know_what_one_knows(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, args=(port, str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    means = {MULTIMODAL: 0.3, "image": 0.6, "text": 1.0}
    alone = follow([means], LABELS).state_dict()
    torch.testing.assert_close(torch.tensor(first["running"]), torch.tensor(alone["running"]))
    assert first["sums"] == alone["sums"]
