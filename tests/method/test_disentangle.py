from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hf_dgl.architectures.attach import disentangle
from hf_dgl.method.methods import METHODS
from hf_dgl.method.modalities import FUSION
from tests.oracle import (
    TOYS,
    Attention,
    BatchNormFusion,
    Bypass,
    CallsOnceLess,
    CallsOnceMore,
    Concat,
    Interleaved,
    SharedStem,
    ShorterAlone,
    ThreeConcat,
    TiedEncoders,
    TiedToHead,
    gradients,
    make_toy,
    max_difference,
    oracle,
    toy_batch,
    toy_losses,
)

pytestmark = pytest.mark.device

EXACT = 1e-12


def settings(method: str, alpha: float = 1.7) -> dict:
    chosen = METHODS[method]
    return {
        "alpha": alpha if chosen.alpha is None else chosen.alpha,
        "multimodal_to_encoders": chosen.multimodal_to_encoders,
        "unimodal_to_fusion": chosen.unimodal_to_fusion,
    }


def expected_gradients(model, batch, handle_settings, owners):
    per_modality = {key: handle_settings[key] for key in ("alpha", "multimodal_to_encoders")}
    for key, value in per_modality.items():
        if not isinstance(value, dict):
            per_modality[key] = dict.fromkeys(model.modalities, value)
    return oracle(
        model,
        toy_losses(model, batch),
        owners,
        per_modality["alpha"],
        per_modality["multimodal_to_encoders"],
        handle_settings["unimodal_to_fusion"],
    )


def assert_exact(model, batch, handle_settings):
    """The gradients of one disentangled backward are the oracle's."""
    with disentangle(model, model.declared(), **handle_settings) as handle:
        owners = handle.partition.owners
        model(**batch)["loss"].backward()
        actual = gradients(model)
        model.zero_grad()
    assert max_difference(actual, expected_gradients(model, batch, handle_settings, owners)) < EXACT
    return handle


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.__name__)
def test_gradients_are_the_oracles(toy, method):
    model = make_toy(toy)
    assert_exact(model, toy_batch(model), settings(method))


@pytest.mark.parametrize("share", [0.3, {"image": 0.0, "text": 0.5}, {"image": 1.0, "text": 0.25}], ids=str)
@pytest.mark.parametrize("toy", [Concat, Attention, Bypass, Interleaved, TiedToHead], ids=lambda toy: toy.__name__)
def test_a_share_of_the_multimodal_gradient(toy, share):
    model = make_toy(toy)
    assert_exact(model, toy_batch(model), {"alpha": 0.8, "multimodal_to_encoders": share, "unimodal_to_fusion": False})


# ---- what the loss of each kind may touch ----


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.__name__)
def test_losses_reach_only_their_group(toy):
    """Each term of the total, differentiated alone, changes its own group and nothing else."""
    model = make_toy(toy)
    batch = toy_batch(model)
    with disentangle(model, model.declared()) as handle:
        output = model(**batch)
        parameters = dict(model.named_parameters())
        for term, loss in output["losses"].items():
            grads = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
            reached = {n for n, g in zip(parameters, grads, strict=True) if g is not None and g.abs().max() > 0}
            owned = {n for n in parameters if (term in handle.partition.owners[n] or not handle.partition.owners[n])}
            if term == "multimodal":
                owned = {n for n in parameters if not handle.partition.owners[n]}
            else:
                owned = {n for n in parameters if term in handle.partition.owners[n]}
            assert reached <= owned and reached


def test_total_is_the_weighted_sum_of_the_terms():
    model = make_toy(ThreeConcat)
    batch = toy_batch(model)
    alpha = {"image": 0.5, "text": 2.0, "audio": 3.0}
    with disentangle(model, model.declared(), alpha=alpha):
        output = model(**batch)
    losses = output["losses"]
    assert set(losses) == {"multimodal", *alpha}
    torch.testing.assert_close(output["loss"], losses["multimodal"] + sum(a * losses[m] for m, a in alpha.items()))
    for term, compute in toy_losses(model, batch).items():
        torch.testing.assert_close(losses[term], compute(), rtol=0, atol=EXACT)


def test_alpha_zero_skips_the_pass_and_share_one_is_plain_training():
    model = make_toy(Concat)
    batch = toy_batch(model)
    model(**batch)["loss"].backward()
    plain = gradients(model)
    model.zero_grad()
    with disentangle(model, model.declared(), **settings("joint")):
        output = model(**batch)
        output["loss"].backward()
    assert set(output) == {"logits", "loss"}
    assert all(torch.equal(gradients(model)[name], plain[name]) for name in plain)


@pytest.mark.parametrize("method", ["dgl", "unimodal_truncation", "auxiliary"])
@pytest.mark.parametrize("toy", [ThreeConcat, Attention, Bypass, TiedToHead], ids=lambda toy: toy.__name__)
def test_passes_taken_in_turn_give_the_gradients_on_average(toy, method):
    """`alpha` may change between steps: in its turn by as much as there are modalities, else 0."""
    model, chosen = make_toy(toy), settings(method)
    batch, number = toy_batch(model), len(model.modalities)
    with disentangle(model, model.declared(), **chosen) as handle:
        owners = handle.partition.owners
        for index, turn in enumerate(model.modalities):
            handle.alpha.update({name: number * chosen["alpha"] * (name == turn) for name in model.modalities})
            output = model(**batch)
            assert set(output["unimodal"]) == {turn}
            output["loss"].backward()
            if method == "dgl" and index == 0:  # the others are left alone: no zeros that an optimizer would average
                trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
                assert trained == {name for name, found in owners.items() if not found or turn in found}
        actual = {name: gradient / number for name, gradient in gradients(model).items()}
        model.zero_grad()
    assert max_difference(actual, expected_gradients(model, batch, chosen, owners)) < EXACT


def forwards_of(module: nn.Module) -> list:
    calls: list = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_encoders_run_once_where_the_cut_is_clean_and_the_handle_says_why_not():
    model = make_toy(Concat)
    inner = forwards_of(model.enc_image[0])
    with disentangle(model, model.declared()) as handle:
        assert "decided at the first" in handle.explain()
        model(**toy_batch(model))
        inner.clear()
        model(**toy_batch(model))
        assert len(inner) == 1
        assert "encoder output reused" in handle.explain()
    model = make_toy(TiedToHead)
    inner = forwards_of(model.enc_text[0])
    with disentangle(model, model.declared()) as handle:
        model(**toy_batch(model))
        inner.clear()
        model(**toy_batch(model))
        assert len(inner) == 2  # multimodal pass, own pass; not in the image's
        assert handle.cuts["image"].reuse
        assert "mixer.weight" in handle.cuts["text"].obstacle or "enc_text.2.weight" in handle.cuts["text"].obstacle
        assert "runs again" in handle.explain()


@pytest.mark.parametrize(
    ("toy", "why"),
    [
        (CallsOnceMore, "'enc_text' is called 2 times with all modalities, and 1 times without the others"),
        (CallsOnceLess, "'enc_text' is called 1 times with all modalities, and 2 times without the others"),
        (ShorterAlone, "'enc_text' is called with other shapes without the other modalities"),
    ],
)
def test_an_encoder_that_is_called_otherwise_alone_runs_again(toy, why):
    """Matched call by call, its outputs would be those of other calls (Granite Speech's text had no gradient so)."""
    model = make_toy(toy)
    batch = toy_batch(model)
    expected = toy_losses(model, batch)["text"]()
    passes = []
    model.attention.register_forward_hook(lambda *_: passes.append(1))
    with disentangle(model, model.declared()) as handle:
        model(**batch)["loss"].backward()
        assert why in handle.explain()
        assert handle.cuts["image"].reuse
        first = gradients(model)
        model.zero_grad()
        passes.clear()
        model(**batch)["loss"].backward()
        assert len(passes) == 3  # it is known now: no pass is tried and repeated
        assert max_difference(first, gradients(model)) < EXACT
        model.eval()
        with handle.unimodal_outputs():
            torch.testing.assert_close(model(**batch)["losses"]["text"], expected)


@pytest.mark.parametrize(
    ("toy", "word"), [(Bypass, "image_position"), (Interleaved, "feed one another"), (SharedStem, "stem")]
)
def test_why_an_encoder_is_not_reused(toy, word):
    model = make_toy(toy)
    with disentangle(model, model.declared()) as handle:
        model(**toy_batch(model))
    assert word in handle.cuts["image"].obstacle


def test_a_parameter_tied_between_encoders_belongs_to_both():
    model = make_toy(TiedEncoders)
    with disentangle(model, model.declared()) as handle:
        assert handle.partition.owners["enc_image.0.weight"] == {"image", "text"}


# ---- frozen parts, dropout, accumulation, other losses ----


@pytest.mark.parametrize("toy", [Concat, Attention, Bypass, TiedToHead], ids=lambda toy: toy.__name__)
def test_frozen_encoder_costs_nothing_and_is_told(toy, caplog):
    model = make_toy(toy)
    model.enc_image.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("image" not in name)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    batch = toy_batch(model)
    with disentangle(model, model.declared()) as handle:
        output = model(**batch)
        output["loss"].backward()
        model(**batch)
        owners = handle.partition.owners
    assert set(output["losses"]) == {"multimodal", "text"}
    assert [r.message for r in caplog.records if "no trainable parameters" in r.message].__len__() == 1
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}
    actual = gradients(model)
    model.zero_grad()
    expected = expected_gradients(model, batch, settings("dgl", 1.0), owners)
    assert max_difference(actual, expected) < EXACT


def test_frozen_fusion_stays_frozen():
    model = make_toy(Concat)
    model.head.requires_grad_(False)
    with disentangle(model, model.declared()):
        model(**toy_batch(model))["loss"].backward()
    assert model.head.weight.grad is None and not model.head.weight.requires_grad
    assert model.enc_image[0].weight.grad.abs().max() > 0


def test_unfreezing_between_steps_is_noticed():
    model = make_toy(Concat)
    model.enc_image.requires_grad_(False)
    batch = toy_batch(model)
    with disentangle(model, model.declared()):
        model(**batch)
        model.enc_image.requires_grad_(True)
        output = model(**batch)
    assert set(output["losses"]) == {"multimodal", "image", "text"}


@pytest.mark.parametrize("toy", [Concat, Attention, Bypass, TiedToHead], ids=lambda toy: toy.__name__)
@pytest.mark.parametrize("method", METHODS)
def test_accumulation_over_four_batches_is_one_batch(toy, method):
    model = make_toy(toy)
    batch = toy_batch(model)
    with disentangle(model, model.declared(), **settings(method)):
        model(**batch)["loss"].backward()
        whole = gradients(model)
        model.zero_grad()
        for start in range(0, 8, 2):
            (model(**{key: value[start : start + 2] for key, value in batch.items()})["loss"] / 4).backward()
    assert max_difference(gradients(model), whole) < EXACT


class WithDropout(Concat):
    def build(self) -> None:
        super().build()
        self.dropout = nn.Dropout(0.5)

    def fuse(self, features):
        return super().fuse({name: self.dropout(f) for name, f in features.items()})


def test_dropout_draws_are_those_of_separate_forwards():
    """With one seed, DGL equals plain forwards run in the order of the passes (reused encoders have no dropout
    here)."""
    model = make_toy(WithDropout)
    batch = toy_batch(model)
    with disentangle(model, model.declared()) as handle:
        owners = handle.partition.owners
        torch.manual_seed(3)
        model(**batch)["loss"].backward()
    actual = gradients(model)
    model.zero_grad()
    torch.manual_seed(3)
    losses = {name: compute() for name, compute in toy_losses(model, batch).items()}  # multimodal, image, text
    expected = oracle_of(losses, model, owners)
    assert max_difference(actual, expected) < EXACT


def oracle_of(losses, model, owners):
    per_modality = dict.fromkeys(model.modalities, 1.0)
    computed = {name: (lambda loss=loss: loss) for name, loss in losses.items()}
    keep = {name: (lambda f=f: f() * 1.0) for name, f in computed.items()}
    grads = {}
    for name, parameter in model.named_parameters():
        term = next(iter(owners[name]), "multimodal")
        grads[name] = torch.autograd.grad(keep[term](), parameter, retain_graph=True)[0]
    assert set(per_modality) == set(model.modalities)
    return grads


def test_the_trial_forward_leaves_no_trace():
    """The first step equals the later ones: random numbers and batch statistics are put back after the trial."""
    results = []
    for warm in (False, True):
        model = make_toy(BatchNormFusion)
        model.norm.momentum = 0.5
        batch = toy_batch(model)
        with disentangle(model, model.declared()) as handle:
            if warm:
                handle._plan(["image", "text"], batch)
            torch.manual_seed(1)
            model(**batch)
            results.append((torch.rand(3), model.norm.running_mean.clone(), model.norm.num_batches_tracked.clone()))
    for cold, warmed in zip(*results, strict=True):
        assert torch.equal(cold, warmed)


def test_batch_statistics_are_moved_by_the_multimodal_pass_only():
    model = make_toy(BatchNormFusion)
    plain = copy.deepcopy(model)
    batch = toy_batch(model)
    plain(**batch)
    with disentangle(model, model.declared()):
        model(**batch)
    torch.testing.assert_close(model.norm.running_mean, plain.norm.running_mean, rtol=0, atol=EXACT)
    assert model.norm.num_batches_tracked == 1 and model.norm.track_running_stats


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("toy", [Concat, Attention, TiedToHead], ids=lambda toy: toy.__name__)
def test_a_loss_of_the_users_own(toy, method):
    """Label smoothing computed outside of the model, through `handle.loss`."""
    model = make_toy(toy)
    batch = toy_batch(model)
    labels = batch.pop("labels")

    def criterion(output):
        return nn.functional.cross_entropy(output["logits"], labels, label_smoothing=0.2)

    with disentangle(model, model.declared(), **settings(method)) as handle:
        output = model(**batch)
        assert "loss" not in output
        handle.loss(output, criterion).backward()
        owners = handle.partition.owners
    actual = gradients(model)
    model.zero_grad()
    chosen = settings(method)
    losses = {"multimodal": lambda: criterion(model(**batch))}
    losses |= {m: (lambda m=m: criterion(model(**batch, only=m))) for m in model.modalities}
    per = {key: dict.fromkeys(model.modalities, chosen[key]) for key in ("alpha", "multimodal_to_encoders")}
    expected = oracle(model, losses, owners, per["alpha"], per["multimodal_to_encoders"], chosen["unimodal_to_fusion"])
    assert max_difference(actual, expected) < EXACT


class ReturnsTensor(Concat):
    def forward(self, labels=None, only=None, **batch):
        return super().forward(**batch)["logits"]


class ReturnsTuple(Concat):
    def forward(self, labels=None, only=None, **batch):
        output = super().forward(labels, only, **batch)
        return output["loss"], output["logits"]


def test_models_that_return_a_tensor_or_a_tuple():
    model = make_toy(ReturnsTensor)
    batch = toy_batch(model)
    with disentangle(model, model.declared()) as handle:
        output = model(**batch)
        assert output.loss is None and set(output.unimodal) == {"image", "text"}
        loss = handle.loss(output, lambda logits: nn.functional.cross_entropy(logits, batch["labels"]))
        assert set(output.losses) == {"multimodal", "image", "text"}
        loss.backward()
    reference = make_toy(Concat)
    with disentangle(reference, reference.declared()):
        reference(**batch)["loss"].backward()
    assert max_difference(gradients(model), gradients(reference)) < EXACT
    model = make_toy(ReturnsTuple)
    with disentangle(model, model.declared()) as handle:
        output = model(**batch)
        torch.testing.assert_close(handle.loss(output, lambda pair: pair[0]), sum(output.losses.values()))


def test_absent_as_a_function():
    """The mean feature of the batch instead of zeros."""
    model = make_toy(Concat)
    batch = toy_batch(model)
    declared = model.declared()
    for entry in declared.values():
        entry["absent"] = lambda feature: feature.mean(0, keepdim=True).expand_as(feature)
    with disentangle(model, declared):
        output = model(**batch)
    image = model.enc_image(batch["image"])
    text = model.enc_text(batch["text"]).mean(0, keepdim=True).expand_as(image)
    torch.testing.assert_close(output["unimodal"]["image"]["logits"], model.fuse({"image": image, "text": text}))


# ---- the model is left as it was ----


def hooks_of(model):
    names = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
    return {
        (path, name): dict(getattr(m, name)) for path, m in model.named_modules() for name in names if hasattr(m, name)
    }


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.__name__)
def test_remove_leaves_the_model_as_it_was(toy):
    model = make_toy(toy)
    batch = toy_batch(model)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = hooks_of(model)
    attributes = {path: set(vars(m)) for path, m in model.named_modules()}
    plain = copy.deepcopy(model)(**batch)["loss"]
    handle = disentangle(model, model.declared())
    model(**batch)["loss"].backward()
    assert model.state_dict().keys() == state.keys()
    handle.remove()
    assert hooks_of(model) == hooks
    assert attributes == {path: set(vars(m)) for path, m in model.named_modules()}
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}
    for name, value in model.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, state[name])
    torch.testing.assert_close(model(**batch)["loss"], plain, rtol=0, atol=0)


def test_eval_and_no_grad_pass_through():
    model = make_toy(Concat)
    batch = toy_batch(model)
    expected = model(**batch)
    with disentangle(model, model.declared()) as handle:
        with torch.no_grad():
            assert set(model(**batch)) == {"logits", "loss"}
        model.eval()
        output = model(**batch)
        assert torch.equal(output["loss"], expected["loss"]) and "unimodal" not in output
        with handle.unimodal_outputs(), torch.no_grad():
            output = model(**batch)
        assert torch.equal(output["loss"], expected["loss"])
        for name in model.modalities:
            torch.testing.assert_close(output["unimodal"][name]["logits"], model(**batch, only=name)["logits"])


@pytest.mark.parametrize("failing_call", [1, 2, 3])
def test_an_exception_in_any_pass_restores_everything(failing_call):
    model = make_toy(Concat)
    batch = toy_batch(model)
    handle = disentangle(model, model.declared())
    model(**batch)
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == failing_call:
            raise RuntimeError("planted")

    planted = model.head.register_forward_hook(fail)
    attributes = {path: set(vars(m)) for path, m in model.named_modules()}
    with pytest.raises(RuntimeError, match="planted"):
        model(**batch)
    planted.remove()
    assert all(p.requires_grad for p in model.parameters())
    assert attributes == {path: set(vars(m)) for path, m in model.named_modules()}
    model(**batch)["loss"].backward()
    actual = gradients(model)
    owners = handle.partition.owners
    handle.remove()
    model.zero_grad()
    assert max_difference(actual, expected_gradients(model, batch, settings("dgl", 1.0), owners)) < EXACT


def test_a_deep_copy_is_disentangled_by_itself():
    model = make_toy(Concat)
    batch = toy_batch(model)
    with disentangle(model, model.declared()):
        model(**batch)
        twin = copy.deepcopy(model)
        twin(**batch)["loss"].backward()
        model(**batch)["loss"].backward()
    assert max_difference(gradients(twin), gradients(model)) < EXACT


# ---- mistakes ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modalities": {"image": "enc_imag"}}, "no module 'enc_imag': did you mean 'enc_image'"),
        ({"modalities": {}}, "`modalities` is empty"),
        ({"modalities": {"fusion": "enc_image"}}, "another name"),
        ({"alpha": -1.0}, "`alpha` must be 0 or more, got -1"),
        ({"alpha": float("nan")}, "`alpha` must be 0 or more"),
        ({"multimodal_to_encoders": 1.5}, "between 0 and 1, got 1.5"),
        ({"alpha": {"imag": 1.0, "text": 1.0}}, "unknown modality 'imag': did you mean 'image'"),
        ({"alpha": {"image": 1.0}}, "no value for \\['text'\\]"),
        ({"modalities": {"image": "enc_image", "text": "enc_image"}}, "cannot be the encoder of two"),
    ],
)
def test_mistakes_in_the_call(arguments, message):
    model = make_toy(Concat)
    with pytest.raises(ValueError, match=message):
        disentangle(model, **{"modalities": model.declared(), **arguments})
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_mistakes_seen_later():
    model = make_toy(Concat)
    batch = toy_batch(model)
    with disentangle(model, model.declared()):
        with pytest.raises(ValueError, match="disentangled already"):
            disentangle(model, model.declared())
        model.extra = nn.Linear(2, 2)
        with pytest.raises(ValueError, match="'extra.weight' was added after"):
            model(**batch)
    model = make_toy(Concat)
    with pytest.raises(ValueError, match="accelerate launch"):
        disentangle(nn.DataParallel(model), model.declared())
    model = make_toy(Interleaved)
    with disentangle(model, {"image": "enc_image", "text": "enc_text"}):
        with pytest.raises(ValueError, match="'enc_image', an encoder of modality 'image', is never called"):
            model(**toy_batch(model))


class NoGradEncoder(Concat):
    def encode(self, name, x):
        with torch.no_grad():
            return super().encode(name, x)


def test_an_encoder_that_cannot_be_trained_is_refused():
    model = make_toy(NoGradEncoder)
    with disentangle(model, model.declared()), pytest.raises(ValueError, match="No gradient reaches the encoder"):
        model(**toy_batch(model))


def test_a_data_parallel_replica_is_refused():
    model = make_toy(Concat)
    with disentangle(model, model.declared()):
        model._is_replica = True
        with pytest.raises(ValueError, match="accelerate launch"):
            model(**toy_batch(model))


def test_groups_cover_every_parameter_once():
    model = make_toy(Attention)
    with disentangle(model, model.declared()) as handle:
        names = [name for group in handle.partition.groups for name in handle.partition.parameter_names(group)]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    assert handle.partition.groups == ["image", "text", FUSION]


def test_what_a_hook_does_to_an_encoders_output_is_done_once():
    """A remembered output has been through the user's hooks."""
    model = make_toy(Concat)
    batch = toy_batch(model)
    hook = lambda module, args, output: 2 * output  # noqa: E731
    for name in model.modalities:
        getattr(model, f"enc_{name}").register_forward_hook(hook)
    with disentangle(model, model.declared()) as handle:
        handle.check(batch)
        assert all(cut.reuse for cut in handle.cuts.values())
        alone = {name: float(loss) for name, loss in model(**batch)["losses"].items()}
    for name in model.modalities:
        assert alone[name] == pytest.approx(float(model(**batch, only=name)["loss"]), abs=1e-12)
