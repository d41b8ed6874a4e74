"""`python -m tests.gpu` runs on a CPU at tiny sizes, and finds nothing wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gpu.__main__ import main


@pytest.mark.slow
def test_every_part_but_the_tests(tmp_path: Path) -> None:
    parts = ["exactness", "no_synchronisation", "ratios", "loops"]
    assert main(["--out", str(tmp_path), "--device", "cpu", "--size", "tiny", "--only", *parts]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert all(case["passed"] for case in results["exactness"].values())
    assert {"float64", "bf16", "fp16 with a scaler", "checkpointing", "compiled", "fsdp2"} <= set(results["exactness"])
    assert all(entry["ratio"] > 0 for entry in results["loops"]["loops"].values())
    assert results["ratios"][0]["compiled"]["ratio"] > 0
    assert "| joint |" in (tmp_path / "summary.md").read_text()


def test_nothing_begins_when_the_time_is_up(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path), "--device", "cpu", "--only", "loops", "--minutes", "0"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["loops"] == {"left_out": "no time left"}
