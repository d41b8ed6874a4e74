"""Two gloo processes (`gradients.py`) against one: every gradient and three steps, under DDP and FSDP2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hf_dgl.method.methods import METHODS

MODELS = ["cross_attention", "concat", "attention", "tied", "interleaved", "cross_attention+checkpointing"]
MODELS += ["cross_attention+lora"]
MATRIX = ["cross_attention", "concat", "tied", "interleaved"]  # as in test_equivalence.py
CASES = {
    "ddp": [
        *(f"ddp:dgl:{model}" for model in MODELS),
        *(f"ddp_unused:dgl:{model}" for model in MODELS),
        *(f"ddp:{method}:{model}" for method in METHODS for model in MATRIX),
        "ddp+no_sync:dgl:cross_attention",
        "ddp+no_sync:dgl:tied",
        "ddp+first:dgl:cross_attention",  # disentangled before it was wrapped
    ],
    "fsdp": [
        *(f"fsdp:dgl:{model}" for model in MODELS),
        *(f"fsdp_blocks:{method}:{model}" for method in METHODS for model in MATRIX),
        "fsdp_blocks:dgl:merged_attention",
        "fsdp_blocks:dgl:cross_attention+checkpointing",
        "fsdp_blocks:dgl:cross_attention+lora",
        "fsdp_blocks+kept:dgl:cross_attention",
        "fsdp_fusion:dgl:cross_attention",
        "fsdp_fusion:dgl:interleaved",
        "fsdp_blocks+first:dgl:cross_attention",
    ],
}


@pytest.mark.parametrize("kind", CASES)
def test_two_processes_equal_one(kind):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", "localhost:0", "-m", "tests.distributed.gradients", *CASES[kind]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)
    equal = [line.removeprefix("EQUAL ") for line in done.stdout.splitlines() if line.startswith("EQUAL ")]
    assert done.returncode == 0 and equal == CASES[kind], done.stderr[-3000:]
