"""DeepSpeed ZeRO-2 and ZeRO-3 over two gloo processes: DGL's steps are those of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = ["attention", "tied", "interleaved", "cross_attention+lora", "cross_attention+checkpointing", "concat"]
CASES = [
    *(f"3:dgl:{name}" for name in MODELS),
    *("3:auxiliary:interleaved", "3:multimodal_truncation:tied", "3:dgl:attention+no_sync", "3:joint:tied"),
    *("2:dgl:interleaved", "2:dgl:attention+no_sync", "2:auxiliary:tied"),
    *("2:dgl:trainer", "3:dgl:trainer", "3:multimodal_truncation:trainer"),
]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="needs `DS_BUILD_OPS=0 pip install -c constraints.txt deepspeed`")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    command = [*launch, "--rdzv_endpoint", "localhost:0", "-m", "tests.distributed.zero", str(tmp_path), *CASES]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line for line in done.stdout.splitlines() if line.startswith("EQUAL")] == [
        f"EQUAL {case}" for case in CASES
    ]
