"""Two gloo processes (`gradients.py`) against one: every gradient and three steps, under DDP and FSDP2."""

from __future__ import annotations

import pytest

from hf_dgl.method.methods import METHODS
from tests.distributed.gradients import run_all
from tests.processes import in_two_processes
from tests.tiers import slow_but

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


CASES["one of each"] = [  # wrapping
    next(case for case in CASES[kind] if case.startswith(wrapping))
    for kind, wrapping in [("ddp", "ddp:"), ("ddp", "ddp+no_sync"), ("fsdp", "fsdp:"), ("fsdp", "fsdp_blocks:")]
]


@pytest.mark.parametrize("kind", slow_but("one of each", of=CASES))
def test_two_processes_equal_one(kind, tmp_path):
    in_two_processes(run_all, CASES[kind], str(tmp_path / "equal.txt"))
    assert (tmp_path / "equal.txt").read_text().splitlines() == CASES[kind]
