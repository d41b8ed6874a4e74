"""Collectives and bytes of a step in two gloo processes, against what the sizes of the model say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_dgl.analysis.benchmark.communication import WRAPPINGS, communication, on_paper
from tests.processes import hf_dgl_as_launched, in_two_processes
from tests.tiny import tiny_batch, tiny_model

NAMES = ("image", "text")


def work(rank: int, folder: str) -> None:
    model, batch = tiny_model(NAMES), tiny_batch(NAMES)
    found = {wrapping: communication(model, batch, wrapping) for wrapping in WRAPPINGS}
    sizes = {
        "all": sum(p.numel() for p in model.parameters()),
        "layers": sum(p.numel() for p in model.cross_modal.fusion.layers.parameters()),
    }
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps({"found": found, "sizes": sizes}))


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    in_two_processes(work, str(tmp_path))
    everything = json.loads((tmp_path / "found.json").read_text())
    found, sizes = everything["found"], everything["sizes"]
    for method in ("joint", "dgl"):  # DDP sends every gradient once, whatever the method
        reduced = found["ddp"][method]["all-reduce"]["bytes"]
        assert 4 * sizes["all"] <= reduced < 4 * sizes["all"] * 1.1
        for wrapping in WRAPPINGS[1:]:
            scattered = found[wrapping][method]["reduce-scatter"]["bytes"]
            assert 4 * sizes["all"] * 0.9 <= scattered < 4 * sizes["all"] * 1.3
    gathered = {w: {m: found[w][m]["all-gather"]["bytes"] for m in ("joint", "dgl")} for w in WRAPPINGS[1:]}
    # Each modality alone gathers its own layers of the fusion, for forward and backward; encoders answer from memory.
    assert gathered["fsdp"]["dgl"] - gathered["fsdp"]["joint"] == 2 * 4 * sizes["layers"]
    assert gathered["fsdp, fusion kept"]["dgl"] == gathered["fsdp"]["joint"]


@pytest.mark.slow
def test_the_command_under_a_launcher(tmp_path: Path) -> None:
    sizes = "--image_layers 1 --text_layers 1 --hidden_size 16 --image_size 32 --text_length 4 --fusion_layers 1"
    words = ["--steps", "0", "--json", str(tmp_path / "cost.json")]
    printed = hf_dgl_as_launched(["benchmark", *words, *sizes.split()], tmp_path)
    assert printed.count("collectives of one training step") == printed.count("one training step, and its ratio") == 1
    assert printed.count("fsdp, fusion kept") == 2
    told = json.loads((tmp_path / "cost.json").read_text())["communication"]
    assert list(told) == list(WRAPPINGS)
    assert told["ddp"]["dgl"]["all-reduce"] == told["ddp"]["joint"]["all-reduce"]
    assert told["fsdp"]["dgl"]["all-gather"]["bytes"] > told["fsdp"]["joint"]["all-gather"]["bytes"] > 0


def test_an_unknown_wrapping() -> None:
    with pytest.raises(ValueError, match="expected one of"):
        communication(tiny_model(NAMES), tiny_batch(NAMES), "zero")


def test_on_paper() -> None:
    found = on_paper(7e9, fusion_share=0.1, num_modalities=2, num_processes=8)
    assert found["joint"] == pytest.approx(3 * 14 * 7 / 8)
    assert found["dgl"] == pytest.approx(found["joint"] * 1.1333, rel=1e-3)
    assert found["dgl, fusion kept"] == found["joint"]
