"""Every class that puts features among text against every promise of the method: one test per class, one build.

`test_matrix.py` asks the same, question by question, of the classes built by hand.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_dgl.architectures.attach import disentangle
from hf_dgl.architectures.lookup import ARCHITECTURES, modalities_of
from tests.architectures.test_matrix import assert_exact, cast, path_matches, quietly_training
from tests.architectures.test_partitions import left_over
from tests.shrunk import SHRUNK, padded_left

SAMPLE = (
    "InternVLForConditionalGeneration",
    "Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "VoxtralForConditionalGeneration",
)
FLOAT32 = (  # upstream casts inside the model, its experts know no float64, or a mask overflows in it (Kosmos 2)
    *("Inkling2ForConditionalGeneration", "Gemma4ForConditionalGeneration", "Gemma3nForConditionalGeneration"),
    *("Dots3NoteForConditionalGeneration", "Kosmos2ForConditionalGeneration"),
)
EMBEDDINGS_TOLD = ("GroundingDinoForObjectDetection", "MMGroundingDinoForObjectDetection")  # as their note says
EVERY = [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in SHRUNK]


@pytest.mark.parametrize("name", EVERY)
def test_row(name: str, tmp_path: Any) -> None:
    model, batch = SHRUNK[name]()
    loses_nothing_when_saved(model, batch, tmp_path)
    dtype, exact = (torch.float32, 1e-4) if name in FLOAT32 else (torch.float64, 1e-7)
    model, batch = model.to(dtype), cast(batch, dtype)
    modalities = modalities_of(model)
    assert (batch["attention_mask"][:, -1] == 0).any(), "no row of the batch is padded"
    assert_exact(quietly_training(model), modalities, batch, tolerance=exact)
    learns_and_leaks_nothing(model, modalities, padded_left(batch))
    assert not left_over(model, modalities, batch, name), "met by one modality only, and yet fusion"
    exact_with_checkpointing(copy.deepcopy(model), modalities, batch, exact)
    exact_with_lora(copy.deepcopy(model), modalities, batch, exact)
    trains_for_two_steps(model, modalities, batch)


def loses_nothing_when_saved(model: Any, batch: Any, folder: Any) -> None:
    with disentangle(model, modalities_of(model)):
        quietly_training(model)(**batch)
        model.save_pretrained(folder)
    expected = model.eval()(**batch)["loss"]
    loaded = type(model).from_pretrained(folder).eval()
    assert torch.allclose(loaded(**batch)["loss"], expected, atol=1e-6)
    assert loaded.state_dict().keys() == model.state_dict().keys()


def learns_and_leaks_nothing(model: Any, modalities: Any, batch: Any) -> None:
    """No leak, and every encoder gets a gradient of its own."""
    with disentangle(model, modalities) as handle:
        report = handle.check(batch)
        quietly_training(model)(**batch)["loss"].backward()
        encoders = handle.partition.encoders
    assert set(report.leak) == set(modalities) and None not in report.leak.values()
    for modality, declared in modalities.items():
        for pattern in declared.encoder:
            below = [module for path, module in encoders[modality].items() if path_matches(pattern, path)]
            found = [p.grad for module in below for p in module.parameters() if p.requires_grad]
            assert any(grad is not None and bool(grad.any()) for grad in found), f"{pattern} learns nothing"
    model.zero_grad()


def exact_with_checkpointing(model: Any, modalities: Any, batch: Any, tolerance: float) -> None:
    if not model.supports_gradient_checkpointing:
        return
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()
    quietly_training(model)
    switched = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in switched:
        module.training = True
    assert switched
    # The oracle's own hooks are gone when a region would be recomputed, so it keeps all activations.
    assert_exact(model, modalities, batch, before_the_oracle=lambda: quietly_training(model), tolerance=tolerance)


def exact_with_lora(model: Any, modalities: Any, batch: Any, tolerance: float) -> None:
    if type(model).__name__ in EMBEDDINGS_TOLD:
        with pytest.raises(NotImplementedError, match="get_input_embeddings"):
            get_peft_model(copy.deepcopy(model), LoraConfig(target_modules="all-linear"))
        model.get_input_embeddings = model.model.text_backbone.get_input_embeddings
    dtype = next(model.parameters()).dtype
    read_as_weights = tuple(path for path, module in model.named_modules() if type(module) is nn.MultiheadAttention)
    linear = [
        path
        for path, module in model.named_modules()
        if type(module) is nn.Linear and not path.startswith(read_as_weights or ("-",))
    ]
    model = get_peft_model(model, LoraConfig(r=2, target_modules=linear)).to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # they start at zero, where `lora_A` has no gradient
            nn.init.normal_(parameter, std=0.3)
    assert_exact(quietly_training(model), modalities, batch, tolerance=tolerance)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def trains_for_two_steps(model: Any, modalities: Any, batch: Any) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with disentangle(model.train(), modalities) as handle:
        for _ in range(2):
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        groups = {group: handle.partition.parameter_names(group) for group in handle.partition.groups}
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    for group, names in groups.items():
        assert moved & set(names), f"{group} has not moved"


def test_every_row_is_tested() -> None:
    from tests.architectures_tiny import TINY

    missing = [name for name, row in ARCHITECTURES.items() if not row.refused and name not in {**TINY, **SHRUNK}]
    assert not missing
