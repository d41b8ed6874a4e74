"""Models of three kinds on batches of two: pictures alone, or sounds alone, beside the text."""

from __future__ import annotations

import pytest

from hf_dgl.architectures.attach import disentangle
from hf_dgl.architectures.lookup import modalities_of
from tests.architectures.test_matrix import quietly_training
from tests.shrunk import SHRUNK
from tests.shrunk.build import AUDIO, IMAGE, asked

LENGTHS = {  # of each medium's places, in two rows
    "Phi4MultimodalForCausalLM": {"image": (13, 13), "audio": (2, 1)},  # alone, the sound takes other projections
    "Gemma3nForConditionalGeneration": {"image": (16, 16), "audio": (6, 6)},
}


@pytest.mark.slow
@pytest.mark.parametrize("medium", ["image", "audio"])
@pytest.mark.parametrize("name", LENGTHS)
def test_exact_without_the_other_medium(name: str, medium: str) -> None:
    model, batch = SHRUNK[name]()
    modalities = modalities_of(model)
    (other,) = {"image", "audio"} - {medium}
    batch = {key: value for key, value in batch.items() if key not in modalities[other].inputs}
    first, second = LENGTHS[name][medium]
    place = {"image": IMAGE, "audio": AUDIO}[medium]
    batch |= asked([(place, first)], [(place, second)], [])
    with disentangle(model, modalities) as handle:
        report = handle.check(batch)
        losses = quietly_training(model)(**batch)["losses"]
    assert report.passed
    assert report.leak[medium] == report.leak["text"] == 0
    assert set(losses) == {"multimodal", medium, "text"}
