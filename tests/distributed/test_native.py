"""Two DDP processes leave the weights that one leaves: silenced streams, dropped tokens, encoders that run again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

NAMES = ["BridgeTowerForImageAndTextRetrieval", "LxmertForQuestionAnswering", "FlavaForSequenceClassification"]


def test_two_processes_equal_one(tmp_path):
    module = ["-m", "tests.distributed.native", str(tmp_path), *NAMES]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    for words in (module, [*launch, "--rdzv_endpoint", "localhost:0", *module]):
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
    for name in NAMES:
        one, two = (torch.load(tmp_path / f"{name}-{processes}.pt") for processes in (1, 2))
        for key, value in one.items():
            torch.testing.assert_close(value, two[key], atol=1e-6, rtol=1e-5, msg=f"{name}: {key}")
