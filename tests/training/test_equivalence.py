"""The equivalence matrix: feature x model x method, every gradient against the oracle.

| column | where |
|---|---|
| accumulation, activation checkpointing, LoRA, bf16 | here |
| DDP, FSDP2 (two real processes) | `distributed/test_gradients.py` |
| resume (killed and started again: bit-identical weights) | `test_faults.py` |
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.checkpoint import checkpoint

from hf_dgl.architectures import modalities_of
from hf_dgl.architectures.attach import disentangle
from hf_dgl.method.methods import METHODS
from hf_dgl.models.adapters import add_adapters
from tests.devices import current
from tests.method.test_checkpointing import checkpointed
from tests.method.test_cross_modal_gradients import make, model_losses
from tests.method.test_disentangle import EXACT, settings
from tests.oracle import Interleaved, TiedToHead, gradients, make_toy, max_difference, oracle, toy_batch

pytestmark = pytest.mark.device

MODELS = ["cross_attention", "concat", "tied", "interleaved"]
FEATURES = ["accumulation", "checkpointing", "lora", "bf16"]


def build(name, feature):
    """A model in float64 with the feature switched on, its modalities, a batch, and its losses for the oracle."""
    if name in ("cross_attention", "concat"):
        model, batch = make(("image", "text"), name)
        if feature == "checkpointing":
            model.gradient_checkpointing_enable()
        if feature == "lora":
            model = with_random_adapters(add_adapters(model, {"r": 2, "modules": "encoders"}).double().train())
        return model, modalities_of(model), batch, model_losses(model, batch)
    toy = {"tied": TiedToHead, "interleaved": Interleaved}[name]
    model = make_toy(checkpointed(toy) if feature == "checkpointing" else toy)
    if feature == "checkpointing" and name == "interleaved":
        for module in (model.enc_image[0], model.enc_text[2], *model.bridges):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    batch, modalities, names = toy_batch(model), model.declared(), model.modalities
    if feature == "lora":
        targets = ["enc_image.0", "enc_text.0", "head"]
        model = with_random_adapters(get_peft_model(model, LoraConfig(r=2, target_modules=targets)).double().train())
    losses = {"multimodal": lambda: model(**batch)["loss"]}
    losses |= {m: (lambda m=m: model(**batch, only=m)["loss"]) for m in names}
    return model, modalities, batch, losses


def with_random_adapters(model):
    """`lora_B` starts at zero, where `lora_A` has no gradient that could be wrong."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def rows_of(tree, rows):
    return {key: rows_of(value, rows) for key, value in tree.items()} if isinstance(tree, dict) else tree[rows]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("feature", FEATURES)
def test_gradients_are_the_oracles(feature, name, method):
    model, modalities, batch, losses = build(name, feature)
    chosen = settings(method)
    precision = torch.autocast(current().type, torch.bfloat16) if feature == "bf16" else nullcontext()
    if feature == "bf16":
        model.float()
        batch = to_float(batch, out=batch)
    with disentangle(model, modalities, **chosen) as handle, precision:
        owners = handle.partition.owners
        if feature == "accumulation":
            rows = len(batch["labels"])
            for start in range(0, rows, 2):
                (2 / rows * model(**rows_of(batch, slice(start, start + 2)))["loss"]).backward()
        else:
            model(**batch)["loss"].backward()
    actual = gradients(model)
    model.zero_grad()
    per_modality = {key: dict.fromkeys(modalities, chosen[key]) for key in ("alpha", "multimodal_to_encoders")}
    with precision:
        expected = oracle(model, losses, owners, *per_modality.values(), chosen["unimodal_to_fusion"])
    assert max(float(value.abs().max()) for value in actual.values()) > 0
    scale = max(float(value.abs().max()) for value in expected.values())
    # bf16: the same rounded terms, summed in another order
    assert max_difference(actual, expected) < (4e-2 * scale if feature == "bf16" else EXACT)


def to_float(tree, out):
    """In place, since the losses look at the same batch."""
    for key, value in tree.items():
        if isinstance(value, dict):
            to_float(value, value)
        elif value.is_floating_point():
            out[key] = value.float()
    return out
