"""OGM-GE and G-Blending on two processes: the coefficients, gradients, noise and weights that one process has."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from hf_dgl.architectures.attach import disentangle
from hf_dgl.method.baselines.g_blending import Blending
from hf_dgl.method.baselines.ogm_ge import Modulation
from tests.oracle import Concat, gradients, make_toy, toy_batch
from tests.processes import in_two_processes


def modulated(wrapped, model, batch) -> dict:
    """Gradients after one modulated backward, its coefficients, and weights after a super-epoch of one step."""
    handle = disentangle(wrapped, model.declared(), alpha=0.0, multimodal_to_encoders=1.0)
    modulation, blending = Modulation(handle, alpha=0.8, seed=5), Blending(list(model.modalities))
    output = wrapped(**batch)
    output["loss"].backward()
    modulation.count({name: one["logits"] for name, one in output["unimodal"].items()}, batch["labels"])
    modulation.modulate(step=7)
    blending.end_of_super_epoch(dict.fromkeys(blending.names, 2.0))
    blending.total(output["losses"])
    blending.end_of_super_epoch(dict.fromkeys(blending.names, 1.5))
    return {"gradients": gradients(model), "coefficients": modulation.logs(), "weights": blending.weights}


def work(rank: int, folder: str) -> None:
    torch.manual_seed(rank)  # the noise does not come from the processes' own generators
    model = make_toy(Concat)
    torch.manual_seed(rank)
    batch = {key: value[rank::2] for key, value in toy_batch(model).items()}
    torch.save(modulated(DistributedDataParallel(model), model, batch), Path(folder, f"{rank}.pt"))


def test_two_processes_do_what_one_does(tmp_path):
    in_two_processes(work, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    model = make_toy(Concat)
    alone = modulated(model, model, toy_batch(model))
    assert min(alone["coefficients"].values()) < 0.5
    for what in ("coefficients", "weights"):
        assert first[what] == second[what]
        torch.testing.assert_close(first[what], alone[what])
    for name, expected in alone["gradients"].items():
        assert torch.equal(first["gradients"][name], second["gradients"][name]), name
        torch.testing.assert_close(first["gradients"][name], expected, msg=name)
