"""The shares that weigh the losses of `adaptive_dgl` are the same on all processes, and those of the whole batch."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hf_dgl.method.chance import ChanceLevel
from hf_dgl.method.explained import LATE_FUSION, Explained
from hf_dgl.method.passes import MULTIMODAL
from tests.processes import in_two_processes

LABELS = torch.tensor([0, 1, 1, 2, 2, 2, 0])
LOGITS = {name: torch.randn(7, 3, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("tim")}
ROWS = [[0, 1, 2, 3, 4], [5, 6]]  # of each process; the second has no text


def follow(parts: list[tuple[list[int], list[str]]]) -> Explained:
    explained = Explained(["i", "t"], ChanceLevel("single_label_classification", 3))
    for scale in (1.0, 0.5):
        for rows, names in parts:
            found = {MULTIMODAL if name == "m" else name: scale * LOGITS[name][rows] for name in names}
            explained.count(found, LABELS[rows])
        explained.step()
    return explained


def work(rank: int, folder: str) -> None:
    explained = follow([(ROWS[rank], ["m", "i"] if rank else ["m", "i", "t"])])
    Path(folder, f"{rank}.json").write_text(json.dumps(explained.state_dict()))


def test_two_processes_know_what_one_knows(tmp_path):
    in_two_processes(work, str(tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    alone = follow([(ROWS[0], ["m", "i", "t"]), (ROWS[1], ["m", "i"])]).state_dict()
    torch.testing.assert_close(torch.tensor(first["running"]), torch.tensor(alone["running"]))
    assert first["sums"] == alone["sums"]
    for key in ("weights", "curvature"):
        torch.testing.assert_close(torch.tensor(first[LATE_FUSION][key]), torch.tensor(alone[LATE_FUSION][key]))
