"""Every row of the table of architectures, in each of its partitions, against every promise of the method.

A row needs a builder of a tiny model in `tests/architectures_tiny.py`, or one in `tests/shrunk/` (then
`test_shrunk.py` asks the same of it at once); without one its tests fail.
"""

from __future__ import annotations

import contextlib
import re
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_dgl.architectures.attach import disentangle
from hf_dgl.architectures.lookup import ARCHITECTURES, modalities_of
from hf_dgl.method.modalities import resolve
from hf_dgl.method.outputs import map_tensors
from tests.architectures_tiny import TINY
from tests.devices import current, put
from tests.oracle import gradients, oracle
from tests.shrunk import SHRUNK

pytestmark = pytest.mark.device

CASES = [
    pytest.param(name, partition, id=f"{name}-{partition}")
    for name, row in ARCHITECTURES.items()
    if not row.refused and name not in SHRUNK
    for partition in row.partitions
]
ALPHA = 2.0
every_case = pytest.mark.parametrize("name, partition", CASES)
A_ROW_OF_EACH_KIND = {
    *("CrossModalForSequenceClassification", "BridgeTowerForImageAndTextRetrieval", "LxmertForQuestionAnswering"),
    *("ViltForQuestionAnswering", "Gemma3ForSequenceClassification", "LlavaForConditionalGeneration"),
    *("BlipForQuestionAnswering", "Blip2ForConditionalGeneration", "Florence2ForConditionalGeneration"),
}
thinned = pytest.mark.parametrize(
    "name, partition",
    [
        case
        if case.values[0] in A_ROW_OF_EACH_KIND
        else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
        for case in CASES
    ],
)
"""What the fast tier looks at beside the gradients, which it looks at in every row."""


def build(name, partition, dtype=torch.float32):
    assert name in TINY, f"{name} is in the table, but has no builder in tests/architectures_tiny.py."
    model, batch = TINY[name]()
    return model.to(dtype), modalities_of(model, partition), cast(batch, dtype)


def cast(batch, dtype):
    return map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, batch)


def quietly_training(model):
    """No dropout and no batch statistics: only the root, at which the hooks look, is in training mode."""
    model.eval()
    model.training = True
    return model


def losses_of(model, modalities, batch):
    """The multimodal and the unimodal losses, computed by plain hooks of this file (nothing of `method/passes.py`)."""
    partition = resolve(model, modalities)

    def alone(name):
        call, hooks = dict(batch), []
        for other, modality in partition.modalities.items():
            if other == name:
                continue
            call = modality.without(call)
            if modality.absent != "omit":
                empty = zeros if modality.absent == "zero" else modality.absent
                hooks += [replace_output(module, empty) for module in partition.encoders[other].values()]
            hooks += [replace_output(module, zeros) for module in partition.silent[other]]
        try:
            return model(**call)["loss"]
        finally:
            for hook in hooks:
                hook.remove()

    return {"multimodal": lambda: model(**batch)["loss"]} | {name: partial(alone, name) for name in modalities}


def replace_output(module, function):
    return module.register_forward_hook(lambda module, args, output: function(output))


def zeros(output):
    return map_tensors(lambda tensor: torch.zeros_like(tensor) if tensor.is_floating_point() else tensor, output)


def assert_exact(model, modalities, batch, before_the_oracle=lambda: None, tolerance=1e-7):
    """What one disentangled backward leaves in `.grad` is the oracle's, in each group relative to its own size."""
    with disentangle(model, modalities, alpha=ALPHA) as handle:
        owners, groups = handle.partition.owners, handle.partition.groups
        names_of = {group: handle.partition.parameter_names(group) for group in groups}
        model(**batch)["loss"].backward()
    actual = gradients(model)
    model.zero_grad()
    before_the_oracle()
    alpha, shares = dict.fromkeys(modalities, ALPHA), dict.fromkeys(modalities, 0.0)
    expected = oracle(model, losses_of(model, modalities, batch), owners, alpha, shares, unimodal_to_fusion=False)
    assert actual.keys() == expected.keys()
    for group in groups:
        names = [name for name in names_of[group] if name in expected]
        if not names:
            continue
        size = max(float(expected[name].abs().max()) for name in names)
        error = max(float((actual[name] - expected[name]).abs().max()) for name in names)
        assert size > 0, f"no gradient reaches {group}"
        assert error <= tolerance * size, f"{group}: {error} of {size}"


# ---- (a) gradients ----


@every_case
def test_gradients_are_the_oracles(name, partition):
    model, modalities, batch = build(name, partition, torch.float64)
    assert_exact(quietly_training(model), modalities, batch)


@thinned
def test_a_leaking_oracle_would_be_seen(name, partition):
    """The comparison above can fail: with everything trained by everything (plain joint training) it does."""
    model, modalities, batch = build(name, partition, torch.float64)
    quietly_training(model)
    with disentangle(model, modalities, alpha=ALPHA, multimodal_to_encoders=1.0) as handle:
        owners = handle.partition.owners
        model(**batch)["loss"].backward()
    actual = gradients(model)
    model.zero_grad()
    alpha, shares = dict.fromkeys(modalities, ALPHA), dict.fromkeys(modalities, 0.0)
    expected = oracle(model, losses_of(model, modalities, batch), owners, alpha, shares, unimodal_to_fusion=False)
    for modality in modalities:
        names = [name for name in expected if modality in owners[name]]
        size = max(float(expected[name].abs().max()) for name in names)
        assert max(float((actual[name] - expected[name]).abs().max()) for name in names) > 1e-3 * size


# ---- (b) the partition ----


@thinned
def test_nothing_leaks_and_every_encoder_learns_from_its_own_loss(name, partition):
    model, modalities, batch = build(name, partition)
    with disentangle(model, modalities) as handle:
        report = handle.check(batch)
        assert set(report.leak) == set(modalities)
        assert None not in report.leak.values()  # each modality names its inputs, so each leak was looked for
        quietly_training(model)(**batch)["loss"].backward()  # the encoders get their own losses only
        encoders = handle.partition.encoders
    for modality, declared in modalities.items():
        for pattern in declared.encoder:
            below = [module for path, module in encoders[modality].items() if path_matches(pattern, path)]
            found = [p.grad for module in below for p in module.parameters() if p.requires_grad]
            assert below
            assert any(grad is not None and bool(grad.any()) for grad in found), (
                f"{modality}: {pattern} learns nothing"
            )


def path_matches(pattern, path):
    parts, names = pattern.split("."), path.split(".")
    names = names[-len(parts) :]  # behind a prefix
    return len(parts) == len(names) and all(part in ("*", name) for part, name in zip(parts, names, strict=True))


# ---- (c) LoRA ----


@thinned
def test_with_lora(name, partition):
    model, modalities, batch = build(name, partition)
    inside_attention = {
        f"{path}.out_proj" for path, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)
    }
    linear = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path not in inside_attention  # read as a weight, never called
    ]
    exactly = "|".join(map(re.escape, linear))  # a list would match the ends of paths
    model = get_peft_model(model, LoraConfig(r=2, target_modules=exactly)).double()
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:  # they start at zero, where `lora_A` has no gradient
            nn.init.normal_(parameter, std=0.3)
    before = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    assert_exact(quietly_training(model), modalities, cast(batch, torch.float64))
    assert {key: parameter.requires_grad for key, parameter in model.named_parameters()} == before
    assert all("lora_" in key for key, trained in before.items() if trained)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


# ---- (d) activation checkpointing ----


@thinned
def test_with_activation_checkpointing(name, partition):
    model, modalities, batch = build(name, partition, torch.float64)
    if not model.supports_gradient_checkpointing:
        pytest.skip("the model does not support it")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()  # for the reentrant kind only; BLIP then writes into a leaf in place
    quietly_training(model)
    switched = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in switched:
        module.training = True
    assert switched
    # The oracle's own hooks are gone when a region would be recomputed, so it keeps all activations.
    assert_exact(model, modalities, batch, before_the_oracle=lambda: quietly_training(model))


# ---- (e) saving, evaluation, random numbers ----


@thinned
def test_what_is_saved_is_the_plain_model(name, partition, tmp_path):
    model, modalities, batch = build(name, partition)
    with disentangle(model, modalities):
        quietly_training(model)(**batch)
        model.save_pretrained(tmp_path)
        model.eval()
        expected = model(**batch)["loss"]
    loaded = put(type(model).from_pretrained(tmp_path).eval())
    assert torch.equal(loaded(**batch)["loss"], expected)
    for file in tmp_path.rglob("*"):
        assert "dgl" not in file.name
        # Our own models save their code, which knows nothing of the method.
        if file.suffix == ".json":
            assert not any(word in file.read_text() for word in ("disentangle", "alpha_m", "unimodal", "hf_dgl"))
    assert loaded.state_dict().keys() == model.state_dict().keys()


@thinned
def test_evaluation_is_unchanged_and_sees_the_same_modalities_as_training(name, partition):
    model, modalities, batch = build(name, partition)
    with torch.no_grad():
        torch.manual_seed(0)
        plain = model(**batch)
    with disentangle(model, modalities) as handle:
        with torch.no_grad():
            torch.manual_seed(0)
            again = model(**batch)
            with handle.unimodal_outputs():
                evaluated = model(**batch)["losses"]
        trained = quietly_training(model)(**batch)["losses"]
    assert type(again) is type(plain)
    assert torch.equal(again["loss"], plain["loss"])
    assert evaluated.keys() == trained.keys() == {"multimodal", *modalities}
    for term, loss in trained.items():
        torch.testing.assert_close(evaluated[term], loss.detach(), rtol=1e-4, atol=1e-6)


@thinned
def test_the_multimodal_pass_draws_the_random_numbers_of_plain_training(name, partition):
    """Dropout and ViLT's random order of patches: looking at the model's graph beforehand must leave no trace."""
    model, modalities, batch = build(name, partition)
    model.train()
    torch.manual_seed(3)
    plain = model(**batch)["loss"]
    with disentangle(model, modalities):
        for _ in range(2):  # with and without the first step's look at the graph
            torch.manual_seed(3)
            torch.testing.assert_close(model(**batch)["losses"]["multimodal"], plain, rtol=1e-5, atol=1e-6)


# ---- (f) mixed precision ----


@thinned
def test_bf16_is_finite(name, partition):
    model, modalities, batch = build(name, partition)
    quietly_training(model)
    with disentangle(model, modalities):
        with torch.autocast(current().type, torch.bfloat16):
            output = model(**batch)
        output["loss"].backward()
    assert all(bool(torch.isfinite(loss)) for loss in output["losses"].values())
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_every_known_row_is_described():
    for name, row in ARCHITECTURES.items():
        assert bool(row.refused) != bool(row.partitions), name
        if not row.refused:
            assert row.absent.endswith("."), name
            assert row.method in ("dgl", "multimodal_truncation"), name
            if row.modalities != ("any",):
                model, _ = {**TINY, **SHRUNK}[name]()
                assert set(row.modalities) == set(modalities_of(model)), name


def test_zeros_that_are_attended_are_never_trained_by_full_dgl():
    """`evidence.md` 3: where the fusion's attention refills an absent stream, it has to learn what that means."""
    for name, row in ARCHITECTURES.items():
        for partition in row.partitions:
            with contextlib.suppress(KeyError):
                model, _ = TINY[name]()
                for modality in modalities_of(model, partition).values():
                    bare = modality.absent == "zero" and modality.hide is None and not modality.silent
                    assert not bare or row.method == "multimodal_truncation", name
