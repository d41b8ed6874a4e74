"""The fusions' own promises: their formulas, absent modalities and rows, masks, gradients."""

import itertools

import pytest
import torch

from hf_dgl.models.configuration_cross_modal import FUSION_TYPES
from hf_dgl.models.fusion import FUSIONS, init_fusion_weights, masked_mean
from hf_dgl.models.modeling_cross_modal import sequence_classification_loss
from tests.devices import current, put
from tests.tiny import tiny_batch, tiny_config, tiny_model

pytestmark = pytest.mark.device

MODALITIES = {1: ("text",), 2: ("image", "text"), 3: ("image", "text", "audio")}
CASES = list(itertools.product(FUSION_TYPES, (1, 2, 3)))


def double(batch):
    """Float inputs in float64, so that equality can be asked for exactly."""
    if isinstance(batch, dict):
        return {key: double(value) for key, value in batch.items()}
    return batch.double() if batch.is_floating_point() else batch


def rows_of(batch, row):
    return {
        name: {key: value[row : row + 1] for key, value in inputs.items()}
        for name, inputs in batch.items()
        if name != "labels"
    }


def make(config, **tokens):
    """A fusion, and tokens as given with nothing masked."""
    torch.manual_seed(0)
    fusion = put(FUSIONS[config.fusion_type](config))
    return fusion, tokens, {name: put(torch.ones(t.shape[:2], dtype=torch.bool)) for name, t in tokens.items()}


def z(seed, batch=2, length=3, width=16):
    return put(torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed)))


# --------------------------------------------------------------------------------------------------- the paper's forms


def test_concat():
    fusion, tokens, masks = make(tiny_config(fusion_type="concat"), image=z(1), text=z(2))
    image, text = z(1).mean(1), z(2).mean(1)
    torch.testing.assert_close(fusion(tokens, masks), torch.cat([image, text], dim=-1))
    alone = fusion({"text": tokens["text"]}, masks)
    torch.testing.assert_close(alone, torch.cat([torch.zeros_like(image), text], dim=-1))


def test_sum():
    fusion, tokens, masks = make(tiny_config(fusion_type="sum"), image=z(1), text=z(2))
    torch.testing.assert_close(fusion(tokens, masks), z(1).mean(1) + z(2).mean(1))
    torch.testing.assert_close(fusion({"text": tokens["text"]}, masks), z(2).mean(1))


def test_gated():
    config = tiny_config(MODALITIES[3], fusion_type="gated")
    fusion, tokens, masks = make(config, image=z(1), text=z(2), audio=z(3))
    image, text, audio = (z(seed).mean(1) for seed in (1, 2, 3))
    torch.testing.assert_close(fusion(tokens, masks), image.sigmoid() * (text + audio) / 2)
    torch.testing.assert_close(
        fusion({"image": tokens["image"], "text": tokens["text"]}, masks), image.sigmoid() * text
    )
    torch.testing.assert_close(fusion({"audio": tokens["audio"]}, masks), audio.sigmoid() * audio)


def test_bilinear():
    config = tiny_config(MODALITIES[3], fusion_type="bilinear")
    fusion, tokens, masks = make(config, image=z(1), text=z(2), audio=z(3))
    low = {name: fusion.low_rank[name](tokens[name].mean(1)) for name in tokens}
    outer = {
        (a, b): (low[a][:, :, None] * low[b][:, None, :]).flatten(1)
        for a, b in itertools.combinations_with_replacement(tokens, 2)
    }
    expected = (outer["image", "text"] + outer["image", "audio"] + outer["text", "audio"]) / 3
    torch.testing.assert_close(fusion(tokens, masks), expected)
    torch.testing.assert_close(fusion({"text": tokens["text"]}, masks), outer["text", "text"])


def test_masked_mean_of_nothing_is_zero():
    mask = torch.tensor([[True, False, False], [False, False, False]])
    mean = masked_mean(torch.full((2, 3, 4), float("nan")).masked_fill(mask[:, :, None], 2.0), mask)
    assert torch.equal(mean, torch.tensor([[2.0] * 4, [0.0] * 4]))


@pytest.mark.parametrize("fusion_type", ["cross_attention", "merged_attention"])
def test_attention_fusions_let_modalities_meet_and_read_out_each(fusion_type):
    config = tiny_config(fusion_type=fusion_type)
    config._attn_implementation = "sdpa"
    fusion, tokens, masks = make(config, image=z(1), text=z(2))
    together = fusion(tokens, masks)
    assert together.shape == (2, 16 + 16 + 4**2)
    other = fusion({**tokens, "text": z(9)}, masks)
    assert not torch.allclose(together[:, :16], other[:, :16])  # the image's read-out has seen the text
    alone = fusion({"image": tokens["image"]}, masks)
    assert alone[:, 16:].abs().max() == 0 and alone[:, :16].abs().max() > 0


@pytest.mark.parametrize("fusion_type", ["cross_attention", "merged_attention"])
@pytest.mark.parametrize("num", [2, 3])
def test_the_read_out_holds_products_of_the_modalities(fusion_type, num):
    names = MODALITIES[num]
    config = tiny_config(names, fusion_type=fusion_type, fusion_dropout=0.0)
    config._attn_implementation = "sdpa"
    fusion, tokens, masks = make(config, **{name: z(seed) for seed, name in enumerate(names)})
    read: list[dict[str, torch.Tensor]] = []
    fusion.read_out.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    output = fusion(tokens, masks)
    low = [fusion.products.low_rank[name](tokens[name].mean(1)) for name in names]
    outer = [(a[:, :, None] * b[:, None, :]).flatten(1) for a, b in itertools.combinations(low, 2)]
    means = torch.cat([read[0][name].mean(1) for name in names], dim=-1)
    torch.testing.assert_close(output, torch.cat([means, sum(outer) / len(outer)], dim=-1))


@pytest.mark.parametrize("fusion_type", ["cross_attention", "merged_attention"])
def test_without_products_the_read_out_is_the_means(fusion_type):
    for names, settings in ((MODALITIES[2], {"fusion_read_out": "means"}), (MODALITIES[1], {})):
        config = tiny_config(names, fusion_type=fusion_type, **settings)
        assert config.fusion_read_out == "means"
        fusion = FUSIONS[fusion_type](config)
        assert fusion.products is None and fusion.output_size == 16 * len(names)


@pytest.mark.parametrize("width", [16, 64, 768])
def test_products_start_at_unit_scale_whatever_the_width(width):
    config = tiny_config(fusion_hidden_size=width, num_fusion_layers=1, bilinear_size=64)
    config._attn_implementation = "sdpa"
    fusion, tokens, masks = make(config, **{n: z(i, 64, 1, width) for i, n in enumerate(config.modalities)})
    for module in fusion.modules():
        init_fusion_weights(module, config.initializer_range)
    output = fusion(tokens, masks).detach()
    assert output[:, : 2 * width].std().item() == pytest.approx(1, abs=0.05)
    assert 0.3 < output[:, 2 * width :].std() < 2.5


def accuracy_of_a_sum(fusion_type, read_out, steps=60):
    """In the last 20 training steps; one token of each modality tells a digit, the label is their sum modulo 3."""
    torch.manual_seed(0)
    width = {"fusion_hidden_size": 64, "bilinear_size": 64, "num_fusion_layers": 1}
    config = tiny_config(fusion_type=fusion_type, fusion_read_out=read_out, **width)
    config._attn_implementation = "sdpa"
    fusion = FUSIONS[fusion_type](config)
    head = torch.nn.Linear(fusion.output_size, 3)
    for module in [*fusion.modules(), head]:
        init_fusion_weights(module, config.initializer_range)
    codes = dict(zip(config.modalities, torch.randn(2, 9, 64), strict=True))
    masks = {name: torch.ones(64, 4, dtype=torch.bool) for name in codes}
    optimizer = torch.optim.AdamW([*fusion.parameters(), *head.parameters()], lr=2e-3)
    is_right = []
    for _ in range(steps):
        digits = torch.randint(9, (2, 64))
        tokens = {name: torch.randn(64, 4, 64) for name in codes}
        for name, told in zip(codes, digits, strict=True):
            tokens[name][:, 0] = codes[name][told]
        logits, labels = head(fusion(tokens, masks)), digits.sum(0) % 3
        is_right.append((logits.argmax(-1) == labels).double().mean())
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(torch.stack(is_right[-20:]).mean())


@pytest.mark.parametrize("fusion_type", ["cross_attention", "merged_attention"])
def test_products_learn_an_interplay_before_means_do(fusion_type):
    assert accuracy_of_a_sum(fusion_type, "products") > 0.65
    assert accuracy_of_a_sum(fusion_type, "means") < 0.5


# ---------------------------------------------------------------------------------- absent modalities, rows and tokens


@pytest.mark.parametrize(("fusion_type", "num"), CASES)
def test_any_subset_of_modalities(fusion_type, num):
    names = MODALITIES[num]
    model, batch = tiny_model(names, fusion_type=fusion_type), tiny_batch(names)
    results = []
    for size in range(1, num + 1):
        for subset in itertools.combinations(names, size):
            out = model(**{name: batch[name] for name in subset}, labels=batch["labels"])
            assert out.logits.shape == (4, 3) and out.logits.isfinite().all() and out.loss.isfinite()
            assert torch.equal(out.logits, model(**{n: batch.get(n) if n in subset else None for n in names}).logits)
            results.append(out.logits)
    for a, b in itertools.combinations(results, 2):
        assert not torch.allclose(a, b)


@pytest.mark.parametrize(("fusion_type", "num"), CASES)
def test_rows_without_a_modality_equal_a_run_without_it(fusion_type, num):
    names = MODALITIES[num]
    model = tiny_model(names, fusion_type=fusion_type).double()
    patterns = [p for p in itertools.product((True, False), repeat=num) if any(p)]
    batch = double(tiny_batch(names, batch_size=len(patterns), labels=False))
    for index, name in enumerate(names):
        batch[name]["present"] = put(torch.tensor([pattern[index] for pattern in patterns]))
    logits = model(**batch).logits
    for row, pattern in enumerate(patterns):
        there = {
            name: value
            for (name, value), is_there in zip(rows_of(batch, row).items(), pattern, strict=True)
            if is_there
        }
        for inputs in there.values():
            inputs.pop("present")
        torch.testing.assert_close(model(**there).logits[0], logits[row], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("fusion_type", "num"), CASES)
def test_what_absent_rows_hold_is_not_read(fusion_type, num):
    names = MODALITIES[num]
    model = tiny_model(names, fusion_type=fusion_type).double()
    batch = double(tiny_batch(names, labels=False))
    batch[names[-1]]["present"] = put(torch.tensor([True, False, True, False]))
    before = model(**batch).logits
    other = double(tiny_batch(names, seed=7, labels=False))[names[-1]]
    gone = ~batch[names[-1]]["present"]
    for key, value in batch[names[-1]].items():
        if key != "present":
            value[gone] = other[key][gone]
    torch.testing.assert_close(model(**batch).logits, before, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("fusion_type", "num"), CASES)
def test_more_padding_changes_nothing(fusion_type, num):
    names = MODALITIES[num]
    model = tiny_model(names, fusion_type=fusion_type).double()
    batch = double(tiny_batch(names, labels=False))
    before = model(**batch).logits
    for name, key in (("text", "input_ids"), ("audio", "input_values")):
        if name in batch:
            for entry in (key, "attention_mask"):
                batch[name][entry] = torch.nn.functional.pad(batch[name][entry], (0, 96 if name == "audio" else 5))
    torch.testing.assert_close(model(**batch).logits, before, rtol=0, atol=1e-10)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("fusion_type", "num"), CASES)
def test_nothing_is_nan_whatever_is_masked(fusion_type, num, implementation, autocast):
    names = MODALITIES[num]
    model = tiny_model(names, fusion_type=fusion_type, attn_implementation=implementation).train()
    batch = tiny_batch(names)
    for name in names:  # row 0: nothing at all; row 1: the last modality only; row 2: no unmasked token of text
        batch[name]["present"] = put(torch.tensor([False, name == names[-1], True, True]))
    batch["text"]["attention_mask"][2] = 0
    with torch.autocast(current().type, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        out = model(**batch)
    out.loss.backward()
    assert out.logits.isfinite().all() and out.loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    for name in names:
        batch[name]["present"] = put(torch.zeros(4, dtype=torch.bool))
    out = model(**batch)
    out.loss.backward()
    assert out.loss == 0 and out.logits.isfinite().all()


@pytest.mark.parametrize("num", [2, 3])
@pytest.mark.parametrize("fusion_type", ["cross_attention", "merged_attention"])
def test_eager_equals_sdpa(fusion_type, num):
    names = MODALITIES[num]
    model = tiny_model(names, fusion_type=fusion_type).double()
    batch = double(tiny_batch(names, labels=False))
    batch["text"]["present"] = put(torch.tensor([True, False, True, True]))
    sdpa = model(**batch).logits
    model.config._attn_implementation_internal = "eager"  # the fusion's only
    torch.testing.assert_close(model(**batch).logits, sdpa, rtol=0, atol=1e-12)
    model.set_attn_implementation("eager")
    assert model.cross_modal.encoders["text"].config._attn_implementation == "eager"
    # Upstream's eager ViT and BERT take their softmax in float32.
    torch.testing.assert_close(model(**batch).logits, sdpa, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("fusion_type", "num"), CASES)
def test_no_value_is_read_on_the_host(fusion_type, num):
    """On the meta device there are no values: `.item()`, `if mask.all()`, which make a GPU wait, raise."""
    config = tiny_config(MODALITIES[num], fusion_type=fusion_type)
    config._attn_implementation = "sdpa"
    fusion = FUSIONS[fusion_type](config).to("meta")
    tokens = {name: torch.empty(4, 5, 16, device="meta") for name in config.modalities}
    masks = {name: torch.empty(4, 5, dtype=torch.bool, device="meta") for name in config.modalities}
    pooled = fusion(tokens, masks)
    assert pooled.shape == (4, fusion.output_size)
    for problem_type, labels in {
        "single_label_classification": torch.empty(4, dtype=torch.long, device="meta"),
        "multi_label_classification": torch.empty(4, fusion.output_size, device="meta"),
    }.items():
        loss = sequence_classification_loss(pooled, labels, problem_type, masks[config.modalities[0]].any(1))
        assert loss.shape == ()
